"""Several sessions on one network, and guesses: what they get is what one position at a time gives each of them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_checkpoints import Floats, chunks, random_audio
from tests.runtime.models import (
    BLANK,
    BOS,
    BYTES,
    EOS,
    N_SPECIAL,
    WORD,
    CountingNetwork,
    ScriptedNetwork,
    byte_tokens,
    clip,
    drain,
    scripted_runner,
    scripted_session,
)
from voxpipe import Delta, StreamingSession, Transcriber
from voxpipe.runtime import runner as runner_module
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import RUT_BLANKS

TOKEN = 1_280
NOISE = random_audio(3 * 16_000 + 777, seed=8)
FUTURE = clip("future.flac")
BEACH = clip("beach.wav")
SOUND = random_audio(300 * TOKEN)
QUESTION = N_SPECIAL + ord("?")  # what a scripted network says behind a wrong guess
SIZES = (1, 2, 3, 5, 8)


@pytest.fixture(params=SIZES, ids=lambda size: f"chunks of {size}")
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every call brings so many positions, as far as there is audio."""
    monkeypatch.setattr(runner_module, "CHUNK_SIZES", (request.param,))
    return int(request.param)


def assert_same_deltas(got: Sequence[Delta], expected: Sequence[Delta]) -> None:
    assert got == expected
    for one, other in zip(got, expected, strict=True):
        assert (one.start, one.end, one.tokens) == (other.start, other.end, other.tokens)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)  # float32 in another order of operations


class Result:
    """A whole stream on a runner."""

    def __init__(self, runner: Runner, model: Transcriber, audio: Floats, feed_samples: int, **arguments: Any) -> None:
        session = StreamingSession(runner, model.tokenizer, keep_tokens=True, **arguments)
        self.deltas: list[Delta] = []
        for part in chunks(audio, feed_samples):
            session.feed(part)
            self.deltas += drain(session)
        session.close()
        self.deltas += drain(session)
        assert session.done
        self.tokens = session.tokens
        self.truncated = session.truncated

    def assert_same(self, other: "Result") -> None:
        assert self.tokens == other.tokens
        assert self.truncated is other.truncated
        assert_same_deltas(self.deltas, other.deltas)


# --- guesses change nothing but the number of calls ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_tiny(tiny: Transcriber) -> Result:
    return Result(Runner(tiny.network, speculate=False), tiny, FUTURE, 10**9)


def test_tiny_says_the_same_with_guesses_in_fewer_calls(tiny: Transcriber, plain_tiny: Result, size: int) -> None:
    counting = CountingNetwork(tiny.network)
    runner = Runner(counting)  # type: ignore[arg-type]
    Result(runner, tiny, FUTURE, 10**9).assert_same(plain_tiny)
    assert len(plain_tiny.deltas) > 10
    assert max(counting.decoded) <= [max(size, 8)]  # the rest of the prompt goes at once
    assert (runner.n_calls < 0.8 * len(plain_tiny.tokens)) is (size > 1)


def test_tiny_says_the_same_with_the_sizes_that_pay(tiny: Transcriber, plain_tiny: Result) -> None:
    for feed_samples in (10**9, 16_000, TOKEN):
        Result(Runner(tiny.network), tiny, FUTURE, feed_samples).assert_same(plain_tiny)


@pytest.mark.parametrize("model_name", ["narrow", "small"])
@pytest.mark.parametrize("delay_ms", [80, 480, 2_400])
def test_random_weights_say_the_same_with_guesses(
    model_name: str, delay_ms: int, size: int, request: pytest.FixtureRequest
) -> None:
    """They hardly ever choose a blank, so nearly every guess is taken back; windows are far shorter than the stream."""
    model: Transcriber = request.getfixturevalue(model_name)
    expected = Result(Runner(model.network, speculate=False), model, NOISE, 10**9, delay_ms=delay_ms)
    assert len(set(expected.tokens)) > 5
    for feed_samples in (10**9, 7 * TOKEN + 1):
        Result(Runner(model.network), model, NOISE, feed_samples, delay_ms=delay_ms).assert_same(expected)


SCRIPTED_AUDIO = np.zeros(60 * TOKEN, np.float32)
token = st.sampled_from([BLANK, BLANK, BLANK, BLANK, WORD, EOS, *byte_tokens(" a")])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    script=st.lists(token, max_size=80),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(sorted),
    step=st.integers(1, 20),
    delay_ms=st.sampled_from([80, 480, 2_400]),
    max_tokens=st.one_of(st.none(), st.integers(1, 70)),
)
def test_any_script_is_said_as_one_token_at_a_time_says_it(
    script: list[int], sizes: list[int], step: int, delay_ms: int, max_tokens: int | None
) -> None:
    """With blanks between, so that runs of right guesses of every length end in a wrong one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "CHUNK_SIZES", tuple(sizes))
        outcomes = []
        for speculate in (False, True):
            network = ScriptedNetwork(script)
            session = scripted_session(network, speculate=speculate, delay_ms=delay_ms, max_tokens=max_tokens)
            session.feed(SCRIPTED_AUDIO)
            session.close()
            deltas = drain(session, step)
            n_given = 33 + delay_ms // 80
            assert network.fed == [BOS] + [BLANK] * (n_given - 1) + session.tokens[:-1]
            outcomes.append((session.tokens, session.truncated, deltas, [(d.start, d.end, d.logprob) for d in deltas]))
        assert outcomes[0] == outcomes[1]
        assert QUESTION not in outcomes[1][0]


def test_a_scripted_network_sees_through_a_guess_that_is_not_taken_back() -> None:
    """Otherwise the tests above would prove nothing."""
    network = ScriptedNetwork([BLANK, N_SPECIAL + ord("a"), BLANK])
    state = network.begin(6)
    given = [BLANK] * 8  # the rest of the prompt
    embeds = network.encode([(state, np.zeros((8 * 12, 128), np.float32))])[0]
    logits = np.asarray(network.decode([embeds[:11]], [[*given, BLANK, BLANK, BLANK]], [state]))
    assert logits.argmax(axis=1)[7:].tolist() == [BLANK, N_SPECIAL + ord("a"), QUESTION, QUESTION]
    state.decoder.rollback(2)
    logits = np.asarray(network.decode([embeds[:1]], [[N_SPECIAL + ord("a")]], [state]))
    assert logits.argmax(axis=1).tolist() == [BLANK]


# --- the end and the guard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [80, 480, 2_400])
@pytest.mark.parametrize("early", [0, 1])
def test_end_of_sequence_ends_a_file_inside_the_right_padding_only(delay_ms: int, early: int, size: int) -> None:
    n_tokens, n_delay = 40, delay_ms // 80
    first_of_padding = n_tokens - n_delay
    script = [BLANK] * (first_of_padding - early) + [EOS, *byte_tokens("behind")]
    network = ScriptedNetwork(script)
    session = scripted_session(network, delay_ms=delay_ms)
    session.feed(np.zeros(n_tokens * TOKEN - 100, np.float32))
    session.close()
    deltas = drain(session)
    assert session.done
    assert not session.truncated
    assert "".join(deltas) == ("behind" if early else "")
    n_expected = n_tokens + 11 if early else first_of_padding + 1
    assert session.tokens == [*script, *[BLANK] * 60][:n_expected]
    assert len(network.fed) == 33 + n_delay - 1 + n_expected  # what was guessed behind the end is taken back


@pytest.mark.parametrize("cap", range(1, 12))
def test_max_tokens_truncates_in_the_middle_of_right_guesses(cap: int, size: int) -> None:
    network = ScriptedNetwork([])
    session = scripted_session(network, max_tokens=cap)
    session.feed(np.zeros(48_777, np.float32))
    session.close()
    drain(session)
    assert session.tokens == [BLANK] * cap
    assert session.n_tokens == cap
    assert session.truncated
    assert len(network.fed) == 38 + cap


def guarded(audio: Floats, margin: float, *, speculate: bool, script: Sequence[int] = ()) -> tuple[list[int], int]:
    session = scripted_session(ScriptedNetwork(script, margin=margin), speculate=speculate)
    session.feed(audio)
    session.close()
    drain(session)
    return session.tokens, session.n_guarded


@pytest.mark.parametrize("margin", [0.1, 5.0, 8.5])
def test_the_guard_acts_on_the_same_tokens(margin: float, size: int) -> None:
    """At a margin of 5 the text comes with the 212th token, wherever in a call that is."""
    tokens, n_guarded = guarded(SOUND, margin, speculate=True)
    assert (tokens, n_guarded) == guarded(SOUND, margin, speculate=False)
    first = {0.1: 201, 5.0: 211, 8.5: None}[margin]
    text = [i for i, token in enumerate(tokens) if token != BLANK]
    assert text[:1] == ([] if first is None else [first])
    assert n_guarded == (len(tokens) - 201 if first is None else first - 200)


@pytest.mark.parametrize("first", [52, 225, 226, 229])
@pytest.mark.parametrize("margin", [0.1, 1.2])
def test_the_guard_listens_to_the_same_200_tokens(first: int, margin: float, size: int) -> None:
    """The tenth of them that must sound is reached, or left behind, in the middle of a call."""
    audio = np.zeros(300 * TOKEN, np.float32)
    audio[first * TOKEN : (first + 24) * TOKEN] = 0.3 * np.sin(np.arange(24 * TOKEN) / 3)
    expected = guarded(audio, margin, speculate=False)
    assert expected[1] > 0
    assert guarded(audio, margin, speculate=True) == expected


def test_silence_is_left_alone_by_the_guard_and_skipped_in_few_calls(size: int) -> None:
    network = ScriptedNetwork([], margin=0.1)
    runner = scripted_runner(network)
    session = StreamingSession(runner, BYTES, keep_tokens=True)
    session.feed(np.zeros(300 * TOKEN, np.float32))
    session.close()
    drain(session, 16)
    assert session.tokens == [BLANK] * 311
    assert len(session.tokens) > RUT_BLANKS
    assert session.n_guarded == 0
    assert runner.n_calls <= 311 / size + 2 * 311 / 16 + 2  # a group of 16 and a step of 16 need not divide


# --- several sessions --------------------------------------------------------------------------------------------------

PLANS = [(FUTURE[:16_000], 480, 1_280), (BEACH[:14_000], 80, 3_001), (FUTURE[16_000:32_000], 2_400, 640)]


def run_together(runner: Runner, model: Transcriber, plans: Sequence[tuple[Floats, int, int]]) -> list[Any]:
    """(tokens, deltas) of streams that are fed in turns and run in one call."""
    sessions = [
        StreamingSession(runner, model.tokenizer, delay_ms=delay_ms, keep_tokens=True) for _, delay_ms, _ in plans
    ]
    feeds = [chunks(audio, size) for audio, _, size in plans]
    deltas: list[list[Delta]] = [[] for _ in plans]
    while not all(session.done for session in sessions):
        for session, feed in zip(sessions, feeds, strict=True):
            part = next(feed, None)
            if part is None:
                session.close()
            else:
                session.feed(part)
        while live := [session for session in sessions if not session.starved]:
            runner.run(live)
            for session in live:
                session.finish_if_exhausted()
        for collected, session in zip(deltas, sessions, strict=True):
            collected += session.take_deltas()
    return [(session.tokens, collected) for session, collected in zip(sessions, deltas, strict=True)]


@pytest.mark.parametrize("model_name", ["tiny", "narrow"])
@pytest.mark.parametrize("rows_expected", [1, 3, 8])
@pytest.mark.parametrize("speculate", [True, False])
def test_sessions_in_one_call_get_what_each_gets_alone(
    model_name: str, rows_expected: int, speculate: bool, request: pytest.FixtureRequest
) -> None:
    model: Transcriber = request.getfixturevalue(model_name)
    alone = [
        Result(Runner(model.network, speculate=False), model, audio, 10**9, delay_ms=delay) for audio, delay, _ in PLANS
    ]
    model.network.expect_streams(rows_expected)
    try:
        together = run_together(Runner(model.network, speculate=speculate), model, PLANS)
    finally:
        model.network.expect_streams(1)
    for (tokens, deltas), expected in zip(together, alone, strict=True):
        assert tokens == expected.tokens
        assert_same_deltas(deltas, expected.deltas)


def test_sessions_in_one_call_with_chunks_of_any_size(narrow: Transcriber, size: int) -> None:
    expected = run_together(Runner(narrow.network, speculate=False), narrow, PLANS)
    got = run_together(Runner(narrow.network), narrow, PLANS)
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in expected]
    for (_, deltas), (_, others) in zip(got, expected, strict=True):
        assert_same_deltas(deltas, others)


def test_a_run_is_one_encoder_call_and_one_decoder_call_for_all(narrow: Transcriber) -> None:
    counting = CountingNetwork(narrow.network)
    runner = Runner(counting)  # type: ignore[arg-type]
    sessions = [StreamingSession(runner, narrow.tokenizer) for _ in range(3)]
    for session, n_tokens in zip(sessions, (1, 12, 40), strict=True):
        session.feed(np.tile(NOISE, 2)[: n_tokens * TOKEN + 40])
    n_runs = 0
    while live := [session for session in sessions if not session.starved]:
        runner.run(live, max_tokens=9, group_tokens=5)
        n_runs += 1
        assert len(counting.encoded) <= n_runs
        assert len(counting.decoded) == n_runs
    assert max(max(call) for call in counting.encoded) == 5
    assert max(max(call) for call in counting.decoded) <= 9
    assert counting.encoded[0] == [2, 5, 5]
    assert [session.n_tokens for session in sessions] == [0, 12 - 6, 40 - 6]


def test_a_run_with_nothing_to_do_does_nothing(narrow: Transcriber) -> None:
    counting = CountingNetwork(narrow.network)
    runner = Runner(counting)  # type: ignore[arg-type]
    assert runner.run([]) == 0
    assert runner.run([StreamingSession(runner, narrow.tokenizer)]) == 0
    assert (counting.encoded, counting.decoded, runner.n_calls) == ([], [], 0)


# --- how much is guessed -------------------------------------------------------------------------------------------------


def test_the_counters_add_up(tiny: Transcriber, size: int) -> None:
    counting = CountingNetwork(tiny.network)
    runner = Runner(counting)  # type: ignore[arg-type]
    n_run = 0
    sessions = [StreamingSession(runner, tiny.tokenizer, keep_tokens=True) for _ in range(2)]
    for session, audio in zip(sessions, (FUTURE, BEACH), strict=True):
        session.feed(audio)
        session.close()
    while live := [session for session in sessions if not session.done]:
        n_run += runner.run(live)
        for session in live:
            session.finish_if_exhausted()
    assert runner.n_calls == len(counting.decoded)
    assert runner.n_positions == n_run == sum(7 + len(session.tokens) for session in sessions)
    brought = sum(sum(call) for call in counting.decoded)
    assert brought == runner.n_positions + runner.n_guessed - runner.n_right
    assert 0 <= runner.n_right <= runner.n_guessed


def test_what_is_given_is_no_guess(narrow: Transcriber) -> None:
    runner = Runner(narrow.network, speculate=False)
    Result(runner, narrow, NOISE, 10**9)
    assert (runner.n_guessed, runner.n_right) == (0, 0)


def test_a_live_stream_is_not_guessed(narrow: Transcriber) -> None:
    """What has come is one token at a time: there is nothing to verify a guess with."""
    counting = CountingNetwork(narrow.network)
    session = StreamingSession(Runner(counting), narrow.tokenizer)  # type: ignore[arg-type]
    for part in chunks(NOISE, TOKEN):
        session.feed(part)
        drain(session)
    assert counting.decoded == [[1]] * len(counting.decoded)
    assert session.n_tokens > 20


def test_without_guesses_each_call_brings_one_position_behind_the_prompt() -> None:
    network = ScriptedNetwork([])
    session = scripted_session(network, speculate=False)
    session.feed(SCRIPTED_AUDIO)
    session.close()
    drain(session)
    assert network.n_decoded == [[8], *[[1]] * 70]


class SlowNetwork(ScriptedNetwork):
    """Each call takes a second, and a fifth of one for every position: on a clock of its own."""

    now_s = 0.0

    def decode(self, embeds: Any, tokens: Any, states: Any) -> Any:
        self.now_s += 1.0 + 0.2 * sum(map(len, tokens))
        return super().decode(embeds, tokens, states)


def tokens_a_call(network: SlowNetwork, monkeypatch: pytest.MonkeyPatch) -> float:
    """By how many positions a call brought a file on, on the network's clock."""
    monkeypatch.setattr(time, "perf_counter", lambda: network.now_s)
    runner = scripted_runner(network)
    session = StreamingSession(runner, BYTES)
    session.feed(np.zeros(1_000 * TOKEN, np.float32))
    session.close()
    drain(session)
    assert session.n_tokens == 1_011
    return runner.n_positions / runner.n_calls


@pytest.mark.parametrize(
    ("script", "least", "most"),
    [
        (byte_tokens("a") * 1_100, 1.0, 1.05),  # guesses are always wrong: they are given up
        ([], 5.0, 8.0),  # always right: as many as are allowed, but for what a group of 16 and a step of 16 leave
        ([BLANK, BLANK, BLANK, *byte_tokens("a")] * 300, 1.2, 4.0),
    ],
)
def test_as_many_tokens_are_guessed_as_pay(
    script: list[int], least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert least <= tokens_a_call(SlowNetwork(script), monkeypatch) <= most


class CompilingNetwork(SlowNetwork):
    """The first call of every size takes a minute more."""

    sizes: frozenset[int] = frozenset()

    def decode(self, embeds: Any, tokens: Any, states: Any) -> Any:
        size = sum(map(len, tokens))
        self.now_s += 0.0 if size in self.sizes else 60.0
        self.sizes |= {size}
        return super().decode(embeds, tokens, states)


def test_what_is_prepared_once_does_not_count_against_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_a_call(CompilingNetwork([]), monkeypatch) >= 4.0


def test_costs_are_learned_where_every_turn_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that began one after another: some of them needs the encoder at every turn, and its time is no call's."""

    class DearNetwork(ScriptedNetwork):
        now_s = 0.0

        def encode(self, pieces: Any) -> Any:
            self.now_s += 100.0
            return super().encode(pieces)

        def decode(self, embeds: Any, tokens: Any, states: Any) -> Any:
            self.now_s += 0.1 + sum(map(len, tokens))
            return super().decode(embeds, tokens, states)

    network = DearNetwork([BLANK, *byte_tokens("a")] * 200)
    monkeypatch.setattr(time, "perf_counter", lambda: network.now_s)
    runner = scripted_runner(network)
    sessions = []
    n_turns = n_encoding = 0
    while not all(session.done for session in sessions) or len(sessions) < 16:
        if len(sessions) < 16:
            sessions.append(StreamingSession(runner, BYTES))
            sessions[-1].feed(np.zeros(200 * TOKEN, np.float32))
            sessions[-1].close()
        before = network.now_s
        runner.run([session for session in sessions if not session.starved])
        n_encoding += network.now_s - before > 100.0
        n_turns += 1
        for session in sessions:
            session.finish_if_exhausted()
    assert n_encoding > 0.6 * n_turns
    later = network.n_decoded[70:190]
    assert sum(sizes == [1] * len(sizes) for sizes in later) > 0.9 * len(later)
