"""One stream on a model: schedule, chunks, flush, end, bounds, guard, words."""

import itertools
import json
import threading
import time
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.model.offline import greedy_tokens
from tests.random_checkpoints import Floats, chunks, random_audio
from tests.runtime.models import (
    BLANK,
    BOS,
    BYTES,
    EOS,
    N_SPECIAL,
    SPEECH,
    WORD,
    CountingNetwork,
    ScriptedNetwork,
    byte_tokens,
    clip,
    drain,
    scripted_runner,
    scripted_session,
    sizes_held,
)
from voxpipe import Delta, StreamingAudioSource, StreamingSession, Transcriber, UsageError
from voxpipe.config import DELAYS_MS
from voxpipe.model.voxtral import VoxtralRealtime
from voxpipe.runtime.runner import Runner

TOKEN = 1_280
BEACH = clip("beach.wav")
FUTURE = clip("future.flac")
WORDS: dict[str, list[tuple[str, float, float]]] = {
    name: entry["words"] for name, entry in json.loads((SPEECH / "words.json").read_text()).items()
}
BEACH_TEXT = " ".join(word for word, _, _ in WORDS["beach.wav"])
FUTURE_TEXT = " ".join(word for word, _, _ in WORDS["future.flac"])
NOISE = random_audio(3 * 16_000 + 777, seed=8)


def run(
    model: Transcriber, parts: Iterable[Floats], *, first_token: int = 0, **arguments: int
) -> tuple[list[int], str]:
    """Tokens and text of a stream whose chunks are decoded as they come."""
    session = StreamingSession(
        model.runner,
        model.tokenizer,
        keep_tokens=True,
        first_token=first_token,
        **arguments,  # type: ignore[arg-type]
    )
    deltas: list[Delta] = []
    for part in parts:
        session.feed(part)
        deltas += drain(session)
    session.close()
    deltas += drain(session)
    assert session.done
    return session.tokens, "".join(deltas)


def n_sampled(n_samples: int, delay_ms: int) -> int:
    """N - L + 1 (specification 5.3)."""
    n_delay = delay_ms // 80
    n_audio = 32 + -(-n_samples // TOKEN) + n_delay + 11
    return n_audio - (33 + n_delay) + 1


def words_of(deltas: Iterable[Delta]) -> list[tuple[str, float, float]]:
    """(word, start, end) from the pieces."""
    words: list[tuple[str, float, float]] = []
    for delta in deltas:
        if delta.startswith(" ") or not words:
            words.append((delta.strip(), delta.start, delta.end))
        else:
            assert (delta.start, delta.end) == words[-1][1:], "the pieces of a word share its times"
            words[-1] = (words[-1][0] + delta, delta.start, delta.end)
    return words


MOST_LATE_S = (
    0.53  # `tiny` dates a word at the 80 ms slot in which it is sure of it; at a delay of 80 ms "man" 0.52 s late
)


def assert_on_time(
    words: list[tuple[str, float, float]], expected: list[tuple[str, float, float]], at: float = 0.0
) -> None:
    assert [word for word, _, _ in words] == [word for word, _, _ in expected]
    for (word, start, end), (_, true_start, true_end) in zip(words, expected, strict=True):
        assert abs(start - at - true_start) <= MOST_LATE_S, f"{word} starts at {start}, not {true_start + at}"
        assert abs(end - at - true_end) <= MOST_LATE_S, f"{word} ends at {end}, not {true_end + at}"


# --- any chunks give the same tokens -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_beach(tiny: Transcriber) -> tuple[list[int], str]:
    return run(tiny, [BEACH])


@pytest.mark.parametrize("size", [1_280, 7_919])
def test_any_chunk_size_gives_the_tokens_of_the_whole_on_tiny(
    tiny: Transcriber, whole_beach: tuple[list[int], str], size: int
) -> None:
    assert run(tiny, chunks(BEACH, size)) == whole_beach
    assert whole_beach[1].strip() == BEACH_TEXT


def test_single_samples_and_odd_numbers_of_them_on_tiny(tiny: Transcriber, whole_beach: tuple[list[int], str]) -> None:
    """The right padding makes only the tokens of the common audio comparable."""
    session = tiny.create_streaming_session(keep_tokens=True)
    for part in itertools.chain(chunks(BEACH[:11_000], 1), chunks(BEACH[11_000:24_000], 641)):
        session.feed(part)
        drain(session)
    assert len(session.tokens) == (24_000 - 40) // TOKEN - 6
    assert session.tokens == whole_beach[0][: len(session.tokens)]


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 400), st.integers(0, 20_000)), max_size=40),
    delay_ms=st.sampled_from([80, 480, 2_400]),
)
@example(sizes=[1] * 3_000, delay_ms=80)
@example(sizes=[40, 1_280, 1_279, 1, 1_281], delay_ms=480)
def test_any_chunks_give_the_tokens_of_the_whole_with_narrow_windows(
    narrow: Transcriber, sizes: list[int], delay_ms: int
) -> None:
    audio = NOISE[:20_011]
    ends = list(itertools.accumulate(sizes))
    parts = [audio[end - size : end] for size, end in zip(sizes, ends, strict=True)] + [audio[sum(sizes) :]]
    tokens, text = run(narrow, parts, delay_ms=delay_ms)
    whole = narrow.generate(audio, transcription_delay_ms=delay_ms)
    assert tokens == whole.tokens
    assert text.strip() == whole.text


@pytest.mark.parametrize("delay_ms", DELAYS_MS[::5])
def test_a_session_samples_what_the_bare_network_does(narrow: Transcriber, delay_ms: int) -> None:
    """And every schedule's count: N - L + 1."""
    expected = greedy_tokens(narrow.network, NOISE, delay_ms, eos=None)
    assert len(set(expected)) > 10
    assert run(narrow, [NOISE], delay_ms=delay_ms)[0] == expected
    assert len(expected) == n_sampled(len(NOISE), delay_ms)


@pytest.mark.parametrize("n_samples", [1, 1_279, 1_280, 1_281, 48_777])
@pytest.mark.parametrize("delay_ms", [80, 480, 2_400])
def test_as_many_tokens_are_sampled_as_the_schedule_has(n_samples: int, delay_ms: int) -> None:
    session = scripted_session(ScriptedNetwork([]), delay_ms=delay_ms)
    session.feed(np.zeros(n_samples, np.float32))
    session.close()
    drain(session)
    assert session.n_tokens == len(session.tokens) == n_sampled(n_samples, delay_ms)
    assert session.audio_s == n_samples / 16_000
    if n_samples == 48_777 and delay_ms == 480:
        assert session.n_tokens == 50  # specification 12


def test_the_prompt_is_bos_and_blanks_and_every_token_is_fed_back() -> None:
    script = [WORD, *byte_tokens(" a"), EOS, BLANK, WORD]
    network = ScriptedNetwork(script)
    session = scripted_session(network, delay_ms=480)
    session.feed(np.zeros(10 * TOKEN, np.float32))
    drain(session)
    assert network.fed[:39] == [BOS] + [BLANK] * 38
    assert session.tokens == script[: len(session.tokens)]
    assert network.fed[39:] == session.tokens[:-1]


def test_minutes_fed_at_once_are_decoded_in_bounded_steps(narrow: Transcriber) -> None:
    counting = CountingNetwork(narrow.network)
    session = StreamingSession(Runner(counting), narrow.tokenizer, keep_tokens=True)  # type: ignore[arg-type]
    minutes = np.tile(NOISE, 150)  # 7 min
    session.feed(minutes)
    n_steps = 0
    while session.n_tokens < 200:
        n_before = len(counting.encoded), len(counting.decoded)
        session.step(max_decode_tokens=3)
        assert len(counting.encoded) - n_before[0] <= 2
        assert len(counting.decoded) - n_before[1] <= 3
        n_steps += 1
    assert n_steps >= 200 / 3
    assert max(counting.encoded) <= [16]
    assert max(counting.decoded) <= [3]
    assert session.audio_s < 20.0  # the rest waits in the queue
    live = run(narrow, chunks(minutes[: 12 * 16_000], TOKEN))[0]
    assert session.tokens[:130] == live[:130]
    session.step(max_decode_tokens=0)
    n_tokens = session.n_tokens
    assert session.step(max_decode_tokens=0) == []
    assert session.n_tokens == n_tokens


def test_the_rest_of_the_prompt_goes_in_one_call(narrow: Transcriber) -> None:
    """31 tokens of its left padding are in the first state; of its last 8, the audio of 7 is there."""
    counting = CountingNetwork(narrow.network)
    session = StreamingSession(Runner(counting, speculate=False), narrow.tokenizer)  # type: ignore[arg-type]
    session.feed(NOISE[: 6 * TOKEN + 40])
    drain(session)
    assert counting.decoded == [[7]]
    assert session.n_tokens == 0
    session.feed(NOISE[6 * TOKEN + 40 : 10 * TOKEN + 40])
    drain(session)
    assert counting.decoded == [[7], [1], [1], [1], [1]]
    assert session.n_tokens == 4


def test_nothing_is_decoded_before_its_audio_and_delay_have_come(narrow: Transcriber) -> None:
    """The first token needs 562.5 ms at a delay of 480 ms (specification 5.3), and each later one 80 ms more."""
    session = narrow.create_streaming_session(transcription_delay_ms=480)
    session.feed(NOISE[: 9_000 - 1])
    drain(session)
    assert session.n_tokens == 0
    for n in range(5):
        session.feed(NOISE[9_000 - 1 + n * TOKEN : 9_000 + n * TOKEN])
        drain(session)
        assert session.n_tokens == n + 1
        session.feed(NOISE[9_000 + n * TOKEN : 9_000 - 1 + (n + 1) * TOKEN])
        assert session.starved
        drain(session)
        assert session.n_tokens == n + 1


# --- many sessions, one model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["tiny", "narrow"])
def test_interleaved_sessions_get_what_each_gets_alone(model_name: str, request: pytest.FixtureRequest) -> None:
    model: Transcriber = request.getfixturevalue(model_name)
    plans = [(FUTURE[:16_000], 480, 1_280), (BEACH[:14_000], 80, 3_001), (FUTURE[16_000:32_000], 2_400, 640)]
    alone = [run(model, [audio], delay_ms=delay_ms) for audio, delay_ms, _ in plans]
    sessions = [model.create_streaming_session(transcription_delay_ms=delay, keep_tokens=True) for _, delay, _ in plans]
    feeds = [chunks(audio, size) for audio, _, size in plans]
    texts = [""] * len(plans)
    while not all(session.done for session in sessions):
        for index, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            part = next(feed, None)
            if part is None:
                session.close()
            else:
                session.feed(part)
            texts[index] += "".join(session.step(3))
    assert [(session.tokens, text) for session, text in zip(sessions, texts, strict=True)] == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == len(plans)


@pytest.mark.parametrize("model_name", ["tiny", "narrow"])
def test_the_clocks_first_position_does_not_matter(model_name: str, request: pytest.FixtureRequest) -> None:
    model: Transcriber = request.getfixturevalue(model_name)
    audio = FUTURE if model_name == "tiny" else np.tile(NOISE, 4)
    at_zero = run(model, chunks(audio, 20 * TOKEN))
    assert run(model, chunks(audio, 20 * TOKEN), first_token=10_000_000) == at_zero
    assert len(set(at_zero[0])) > 10


def test_feed_and_close_from_other_threads_while_stepping(narrow: Transcriber) -> None:
    session = narrow.create_streaming_session(keep_tokens=True)

    def produce() -> None:
        for part in chunks(NOISE, 1_777):
            session.feed(part)
            time.sleep(0.002)
        session.close()

    producer = threading.Thread(target=produce)
    producer.start()
    text = ""
    while not session.done:
        text += "".join(session.step(2))
    producer.join()
    assert (session.tokens, text) == run(narrow, [NOISE])


# --- flush -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [480, 2_400])
def test_a_flush_brings_out_pending_words_and_the_clock_stays_right(tiny: Transcriber, delay_ms: int) -> None:
    said = BEACH[: int(4.9 * 16_000)]  # the last word ends at 4.84 s
    session = tiny.create_streaming_session(transcription_delay_ms=delay_ms)
    session.feed(said)
    deltas = drain(session)
    n_early = len(words_of(deltas))
    session.flush()
    deltas += drain(session)
    assert not session.done
    assert n_early < len(words_of(deltas))
    assert "".join(deltas).strip() == BEACH_TEXT
    assert_on_time(words_of(deltas), WORDS["beach.wav"])
    assert all(delta.end <= 4.9 for delta in deltas)

    session.feed(FUTURE)
    session.flush()
    again = drain(session)
    assert "".join(again).strip() == FUTURE_TEXT
    assert_on_time(words_of(again), WORDS["future.flac"], at=4.9)
    session.close()
    assert drain(session) == []
    assert session.audio_s == pytest.approx(4.9 + len(FUTURE) / 16_000)


def test_a_flush_with_nothing_pending_changes_nothing() -> None:
    network, plain = ScriptedNetwork([]), ScriptedNetwork([])
    session, other = scripted_session(network), scripted_session(plain)
    session.flush()
    assert session.step() == []
    for one in (session, other):
        one.feed(np.zeros(20 * TOKEN, np.float32))
        drain(one)
    n_before = session.n_tokens
    assert n_before == other.n_tokens
    session.flush()
    drain(session)
    n_flushed = session.n_tokens
    # the slot that waited for 2.5 ms more, the 17 of right padding
    assert n_flushed == n_before + 18
    for _ in range(3):
        session.flush()
        assert session.starved
        assert session.step() == []
    assert session.n_tokens == n_flushed


def test_words_after_a_flush_are_timed_from_the_moment_of_the_flush() -> None:
    """Slot k is 80 ms of what the model hears, inserted silence too; the stream's clock knows real samples only."""
    n_first = 10  # tokens of audio before the flush; 18 of silence are inserted
    script = [BLANK] * (n_first + 18 + 5) + [WORD, *byte_tokens(" hi")]
    session = scripted_session(ScriptedNetwork(script))
    session.feed(np.zeros(n_first * TOKEN, np.float32))
    session.flush()
    drain(session)
    session.feed(np.zeros(30 * TOKEN, np.float32))
    deltas = drain(session)
    assert "".join(deltas) == " hi"
    # the mark's slot is real token n_first + 5 and the word ends in its middle
    assert [delta.end for delta in deltas] == pytest.approx([(n_first + 5.5) * 0.08] * 3)


# --- end ---------------------------------------------------------------------------------------------------------------


def test_end_of_sequence_is_one_more_blank_in_a_live_stream() -> None:
    script = [WORD, *byte_tokens(" ab"), EOS, EOS, WORD, *byte_tokens(" c")]
    network = ScriptedNetwork(script)
    session = scripted_session(network)
    session.feed(np.zeros(40 * TOKEN, np.float32))
    deltas = drain(session)
    assert not session.done
    assert "".join(deltas) == " ab c"
    assert network.fed[39 : 39 + len(script)] == script


@pytest.mark.parametrize("delay_ms", [80, 480, 2_400])
@pytest.mark.parametrize("early", [0, 1])
def test_end_of_sequence_ends_a_file_inside_the_right_padding_only(delay_ms: int, early: int) -> None:
    n_tokens = 40
    first_of_padding = n_tokens - delay_ms // 80  # sampled at position 32 + 40, where the padding begins
    script = [BLANK] * (first_of_padding - early) + [EOS, *byte_tokens("behind")]
    session = scripted_session(ScriptedNetwork(script), delay_ms=delay_ms)
    session.feed(np.zeros(n_tokens * TOKEN - 100, np.float32))
    session.close()
    deltas = drain(session)
    assert session.done
    assert not session.truncated
    assert "".join(deltas) == ("behind" if early else "")
    assert len(session.tokens) == (n_sampled(n_tokens * TOKEN, delay_ms) if early else first_of_padding + 1)


def test_an_early_end_of_sequence_cannot_cut_a_file() -> None:
    script = [EOS] * 20 + byte_tokens("all of it")
    session = scripted_session(ScriptedNetwork(script))
    session.feed(np.zeros(40 * TOKEN, np.float32))
    session.close()
    assert "".join(drain(session)) == "all of it"


def test_max_tokens_truncates_and_says_so() -> None:
    for cap, truncated in ((5, True), (49, True), (50, False), (51, False)):
        session = scripted_session(ScriptedNetwork(byte_tokens("a") * 50), max_tokens=cap)
        session.feed(np.zeros(48_777, np.float32))
        session.close()
        text = "".join(drain(session))
        assert session.done
        assert len(session.tokens) == len(text) == min(cap, 50)
        assert session.truncated is truncated, cap


def test_a_truncated_result_says_so(narrow: Transcriber) -> None:
    whole = narrow.generate(NOISE)
    cut = narrow.generate(NOISE, max_tokens=20)
    assert cut.truncated
    assert not whole.truncated
    assert cut.tokens == whole.tokens[:20]
    with pytest.raises(UsageError, match="max_tokens must be at least 1, not 0"):
        narrow.generate(NOISE, max_tokens=0)


def test_a_producer_does_not_wait_for_a_stream_that_was_truncated() -> None:
    source = StreamingAudioSource(max_buffer_s=0.5)
    session = scripted_session(ScriptedNetwork([]), max_tokens=3, source=source)

    def produce() -> None:
        for _ in range(20):
            source.append(np.zeros(16_000, np.float32))

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    while not session.done:
        session.step()
    producer.join(10)
    assert not producer.is_alive()
    assert session.truncated


def test_a_session_that_is_done_stays_so_and_holds_no_cache(narrow: Transcriber) -> None:
    session = narrow.create_streaming_session()
    session.feed(NOISE[:5_000])
    session.close()
    drain(session)
    assert session.done
    assert session.starved
    assert session.step() == []
    session.feed(NOISE)
    session.flush()
    session.close()
    assert session.step() == []
    held = sizes_held(session, without=[narrow.network, narrow.tokenizer])
    assert sum(held.values()) < 100_000


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    session = scripted_session(ScriptedNetwork(byte_tokens("ü".encode()[:1]) + [BLANK] * 100))
    session.feed(np.zeros(10 * TOKEN, np.float32))
    session.close()
    deltas = drain(session)
    assert deltas == ["�"]
    assert deltas[0].tokens == tuple(byte_tokens("ü".encode()[:1]))


def test_characters_spread_over_tokens_come_out_whole_with_all_their_tokens() -> None:
    text = " é 日本 👩‍🚀 हि"
    script: list[int] = []
    for token in byte_tokens(text):
        script += [token, BLANK, EOS, WORD][: 1 + len(script) % 3]  # control tokens in between change nothing
    session = scripted_session(ScriptedNetwork(script, margin=2.0))
    deltas: list[Delta] = []
    for part in chunks(np.zeros(120 * TOKEN, np.float32), TOKEN):
        session.feed(part)
        deltas += drain(session)
    assert "".join(deltas) == text
    assert all(len(delta) == 1 for delta in deltas)
    for delta in deltas:
        assert delta.tokens == tuple(byte_tokens(str(delta)))
        assert delta.logprob == pytest.approx(-len(delta.tokens) * np.log(1 + np.exp(-2.0)), rel=1e-4)


# --- the guard against ruts of blanks ------------------------------------------------------------------------------------


SOUND = random_audio(300 * TOKEN)


def sampled_over(audio: Floats, margin: float) -> tuple[list[int], int]:
    """Tokens and guarded tokens of a network that prefers the blank by `margin`."""
    session = scripted_session(ScriptedNetwork([], margin=margin))
    session.feed(audio)
    session.close()
    drain(session)
    return session.tokens, session.n_guarded


def test_the_guard_ends_a_rut_over_sound() -> None:
    """The penalty grows by 0.5 a token from the 201st blank on: a margin of 5 falls at the eleventh."""
    tokens, n_guarded = sampled_over(SOUND, margin=5.0)
    text = N_SPECIAL + ord("x")
    assert tokens[:212] == [BLANK] * 211 + [text]
    assert tokens[212:] == [BLANK] * (len(tokens) - 212)  # the count begins anew
    assert n_guarded == 11


def test_the_guard_leaves_silence_alone() -> None:
    hiss = (np.random.default_rng(0).standard_normal(300 * TOKEN) * 3e-4).astype(np.float32)  # -70 dBFS
    for audio in (np.zeros(300 * TOKEN, np.float32), hiss):
        tokens, n_guarded = sampled_over(audio, margin=0.1)
        assert set(tokens) == {BLANK}
        assert n_guarded == 0


def test_a_little_sound_in_200_tokens_is_not_enough() -> None:
    for n_sounding, acts in ((10, False), (40, True)):
        audio = np.zeros(260 * TOKEN, np.float32)
        audio[180 * TOKEN : (180 + n_sounding) * TOKEN] = 0.3 * np.sin(np.arange(n_sounding * TOKEN) / 3)
        tokens, n_guarded = sampled_over(audio, margin=0.1)
        assert (n_guarded > 0) is acts
        assert (set(tokens) == {BLANK}) is not acts


def test_the_guard_spares_pauses_and_a_blank_that_is_sure() -> None:
    tokens, n_guarded = sampled_over(SOUND[: 180 * TOKEN], margin=0.1)
    assert set(tokens) == {BLANK}
    assert n_guarded == 0
    tokens, n_guarded = sampled_over(SOUND, margin=8.5)
    assert set(tokens) == {BLANK}
    assert n_guarded == len(tokens) - 201


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [80, 480, 2_400])
@pytest.mark.parametrize("name", ["beach.wav", "future.flac"])
def test_words_are_right_and_on_time(tiny: Transcriber, name: str, delay_ms: int) -> None:
    result = tiny.generate(SPEECH / name, transcription_delay_ms=delay_ms)
    assert_on_time(words_of(result.deltas), WORDS[name])
    for before, after in itertools.pairwise(result.deltas):
        assert before.start <= after.start
        assert before.end <= after.end
    for delta in result.deltas:
        assert 0.0 <= delta.start < delta.end <= result.audio_s
        assert delta.logprob <= 0.0
        assert set(delta.tokens) <= set(result.tokens)
    tokens = [token for delta in result.deltas for token in delta.tokens]
    assert tiny.tokenizer.decode(tokens) == "".join(result.deltas)
    assert tiny.tokenizer.decode(result.tokens).strip() == result.text
    assert "".join(segment.text for segment in result.segments) == "".join(result.deltas)
    assert result.delay_ms == delay_ms
    assert result.wall_s > 0.0


def timed(script: list[int]) -> list[tuple[str, float, float]]:
    session = scripted_session(ScriptedNetwork(script))
    session.feed(np.zeros(100 * TOKEN, np.float32))
    words = words_of(drain(session))
    return [(word, round(start, 3), round(end, 3)) for word, start, end in words]


def test_a_marked_word_ends_in_the_slot_of_its_mark() -> None:
    script = [BLANK] * 20 + [WORD, *byte_tokens(" one"), BLANK, WORD, *byte_tokens(" two")]
    assert timed(script) == [("one", 1.04, 1.64), ("two", 1.64, 2.12)]  # slots 20 and 26; at most 0.6 s long


def test_a_word_that_had_to_wait_ends_soon_after_the_one_before() -> None:
    script = [BLANK] * 20 + [WORD, *byte_tokens(" slow"), *byte_tokens(" a")]
    # one piece of one letter (bytes are pieces here): 0.1 s, and 0.08 s for each letter of the first piece, the space
    assert timed(script) == [("slow", 1.04, 1.64), ("a", 1.64, 1.74)]


def test_silence_has_no_words(tiny: Transcriber) -> None:
    result = tiny.generate(np.zeros(10 * 16_000, np.float32))
    assert result.text == ""
    assert result.deltas == []
    assert result.segments == []
    assert len(result.tokens) == n_sampled(160_000, 480)
    assert result.audio_s == 10.0


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_flushes_feeds_and_words_for_long_leave_nothing_behind() -> None:
    network = ScriptedNetwork([*byte_tokens(" a"), WORD, BLANK] * 3_000)
    session = StreamingSession(scripted_runner(network), BYTES)
    held = []
    for n in range(90):
        for part in chunks(np.zeros(16_000 + n, np.float32), 999):
            session.feed(part)
            drain(session)
        if n % 7 == 0:
            session.flush()
            drain(session)
        held.append(sizes_held(session, without=[network]))
    assert session.n_tokens > 1_000
    assert session.tokens == []
    limits = {path: max(sizes.get(path, 0) for sizes in held[:30]) for path in held[0] | held[29]}
    for sizes in held[30:]:
        assert set(sizes) <= set(limits)
        assert all(size <= 1.2 * limits[path] + 8 for path, size in sizes.items()), sizes


# --- arguments ---------------------------------------------------------------------------------------------------------

ALLOWED = "choose one of 80, 160, 240, 320, 400, 480, 560, 640, 720, 800, 880, 960, 1040, 1120, 1200, 2400"


@pytest.mark.parametrize("delay_ms", [0, -80, 1, 79, 500, 1_280, 2_320, 2_480, True, "480", 480.5, float("nan")])
def test_an_impossible_delay_is_refused_and_the_possible_ones_are_listed(tiny: Transcriber, delay_ms: object) -> None:
    expected = f"a transcription delay of {delay_ms} ms is not possible; {ALLOWED}"
    for call in (
        lambda: tiny.create_streaming_session(transcription_delay_ms=delay_ms),  # type: ignore[arg-type]
        lambda: tiny.generate(BEACH, transcription_delay_ms=delay_ms),  # type: ignore[call-overload]
        lambda: tiny.generate(BEACH, transcription_delay_ms=delay_ms, stream=True),  # type: ignore[call-overload]
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == expected


def test_all_delays_of_the_model_card_are_possible_and_480_ms_is_the_default(tiny: Transcriber) -> None:
    assert [ms for ms in range(0, 2_500, 10) if ms in DELAYS_MS] == [*range(80, 1_201, 80), 2_400]
    for delay_ms in DELAYS_MS:
        assert tiny.create_streaming_session(transcription_delay_ms=delay_ms).delay_ms == delay_ms
    assert tiny.create_streaming_session().delay_ms == 480
    for same in (480.0, np.int64(480)):
        assert type(tiny.create_streaming_session(transcription_delay_ms=same).delay_ms) is int  # type: ignore[arg-type]


# --- alternatives -----------------------------------------------------------------------------------------------------


class Recording:
    """The network with the logits of every position kept."""

    def __init__(self, network: VoxtralRealtime) -> None:
        self._network = network
        self.logits: list[Floats] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def decode(self, *arguments: Any) -> mx.array:
        logits = self._network.decode(*arguments)
        self.logits.append(np.array(logits, np.float64))
        return logits


def test_alternatives_are_the_likeliest_other_texts_of_each_position(tiny: Transcriber) -> None:
    network = Recording(tiny.network)
    runner = Runner(network, speculate=False)  # type: ignore[arg-type]
    session = StreamingSession(runner, tiny.tokenizer, keep_tokens=True, n_alternatives=3)
    plain = StreamingSession(runner, tiny.tokenizer)
    for one in (session, plain):
        one.feed(BEACH)
        one.close()
    deltas = drain(session)
    rows = [row for call in network.logits for row in call][-len(session.tokens) :]
    texts = [(row, token) for row, token in zip(rows, session.tokens, strict=True) if token >= session.n_special]
    assert len(texts) == len(deltas) > 10
    for delta, (row, token) in zip(deltas, texts, strict=True):
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        likely = [i for i in np.argsort(-logprobs) if i >= session.n_special and i != token][:3]
        assert [text for text, _ in delta.alternatives] == [tiny.tokenizer.decode([int(i)]) for i in likely]
        assert [logprob for _, logprob in delta.alternatives] == pytest.approx(logprobs[likely].tolist(), abs=1e-3)
        assert delta.logprob > delta.alternatives[0][1]
    # they cost others nothing, and change nothing
    others = drain(plain)
    assert others == deltas
    assert all(delta.alternatives == () for delta in others)


def test_alternatives_of_a_stream_beside_others_and_of_guesses(tiny: Transcriber) -> None:
    runner = Runner(tiny.network)
    sessions = [StreamingSession(runner, tiny.tokenizer, n_alternatives=n) for n in (2, 0, 5)]
    for session in sessions:
        session.feed(BEACH)
        session.close()
    got: list[list[Delta]] = [[] for _ in sessions]
    while live := [session for session in sessions if not session.done]:
        runner.run([session for session in live if not session.starved])
        for session, deltas in zip(sessions, got, strict=True):
            session.finish_if_exhausted()
            deltas += session.take_deltas()
    assert got[0] == got[1] == got[2]
    for two, none, five in zip(*got, strict=True):
        assert (len(two.alternatives), none.alternatives, len(five.alternatives)) == (2, (), 5)
        assert [text for text, _ in two.alternatives] == [text for text, _ in five.alternatives[:2]]
