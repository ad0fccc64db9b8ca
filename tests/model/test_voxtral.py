"""The network with several streams: beginnings, lanes and trays change nothing for any of them."""

import gc
import itertools
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.offline import audio_embeds, load_network, logits, padded_mel
from tests.random_checkpoints import AWKWARD, Floats, Tensors, Uniform, random_audio, write_checkpoint
from voxpipe.model import voxtral
from voxpipe.model.kernels import BaseTwoKernels, GpuKernels, Kernels
from voxpipe.model.mel import silent_frames
from voxpipe.model.voxtral import StreamState, VoxtralRealtime, _halves

EMBEDS_TOLERANCE = 5e-5  # as in test_encoder
LOGITS_TOLERANCE = 2e-4  # as in test_decoder
N_CONSTANT = 31
BOS, BLANK = 1, 32


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"{n} lanes")
def lanes(request: pytest.FixtureRequest) -> list[mx.Stream]:
    if mx.default_device() != mx.cpu and request.param > 1:
        pytest.skip("a GPU is one lane")
    default = mx.default_stream(mx.default_device())
    return [default] + [mx.new_stream(mx.cpu) for _ in range(request.param - 1)]


@pytest.fixture(params=[Kernels, BaseTwoKernels])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    made: Kernels = request.param()
    return made


@pytest.fixture
def crew(network: VoxtralRealtime, lanes: list[mx.Stream], kernels: Kernels) -> Iterator[VoxtralRealtime]:
    """The network with so many lanes and such kernels."""
    before = network.lanes
    network._lanes = lanes
    network.use_kernels(kernels)
    yield network
    network._lanes = before
    network.use_kernels(Kernels())
    network.expect_streams(1)


def n_used(network: VoxtralRealtime) -> int:
    return sum(trays.n_used for trays in network._trays)


def text(seed: int, length: int) -> list[int]:
    return [int(token) for token in (np.abs(Uniform(seed)(length)) * 1e6).astype(np.int64) % AWKWARD.vocab_size]


class Stream:
    """Random audio embeddings and tokens of one stream behind the left padding, and the logits of it alone."""

    def __init__(self, network: VoxtralRealtime, n_delay_tokens: int, seed: int, length: int = 24) -> None:
        self.n_delay_tokens = n_delay_tokens
        self.embeds = mx.array(Uniform(seed)(length, AWKWARD.decoder_dim, std=1.5))
        self.tokens = text(seed, length)
        silence = audio_embeds(network, silent_frames(8 * N_CONSTANT))
        given = np.array([BOS] + [BLANK] * (N_CONSTANT - 1) + self.tokens)
        self.expected = logits(network, mx.concatenate([silence, self.embeds]), given, n_delay_tokens)[N_CONSTANT:]


# --- beginnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_delay_tokens", [1, 6, 15, 30])
@pytest.mark.parametrize("first_token", [0, 10_000])
def test_a_stream_begins_behind_31_tokens_of_digital_silence(
    crew: VoxtralRealtime, n_delay_tokens: int, first_token: int
) -> None:
    mel = padded_mel(random_audio(12_000), n_delay_tokens)
    whole = audio_embeds(crew, mel)
    tokens = np.array([BOS] + [BLANK] * (N_CONSTANT - 1) + text(1, len(whole) - N_CONSTANT))
    expected = logits(crew, whole, tokens, n_delay_tokens)
    state = crew.begin(n_delay_tokens, first_token=first_token)
    assert (state.decoder.length, state.encoder.ring.length) == (N_CONSTANT, 4 * N_CONSTANT)
    assert (state.decoder.position, state.encoder.ring.position) == (
        first_token + N_CONSTANT,
        4 * (first_token + N_CONSTANT),
    )
    for first in range(N_CONSTANT, len(whole), 5):
        (embeds,) = crew.encode([(state, mel[8 * first : 8 * (first + 5)])])
        np.testing.assert_allclose(np.array(embeds), np.array(whole[first : first + 5]), atol=EMBEDS_TOLERANCE)
        got = crew.decode([embeds], [tokens[first : first + 5].tolist()], [state])
        np.testing.assert_allclose(np.array(got), expected[first : first + 5], atol=LOGITS_TOLERANCE)


def test_streams_that_begin_at_the_same_place_go_apart(crew: VoxtralRealtime) -> None:
    """And a later one still begins at the place as it was."""
    crew.expect_streams(3)
    streams = [Stream(crew, 6, seed) for seed in range(3)]
    states = [crew.begin(6), crew.begin(6)]
    for i in range(12):
        for state, stream in zip(states, streams, strict=False):
            got = crew.decode([stream.embeds[i : i + 1]], [stream.tokens[i : i + 1]], [state])
            np.testing.assert_allclose(np.array(got), stream.expected[i : i + 1], atol=LOGITS_TOLERANCE)
    late = crew.begin(6)
    got = crew.decode([streams[2].embeds], [streams[2].tokens], [late])
    np.testing.assert_allclose(np.array(got), streams[2].expected, atol=LOGITS_TOLERANCE)


def test_other_kernels_begin_anew(network: VoxtralRealtime) -> None:
    """Keys that lie in another order would be read wrongly."""
    stream = Stream(network, 6, seed=1)
    for kernels in (BaseTwoKernels(), Kernels(), BaseTwoKernels()):
        network.use_kernels(kernels)
        got = network.decode([stream.embeds], [stream.tokens], [network.begin(6)])
        np.testing.assert_allclose(np.array(got), stream.expected, atol=LOGITS_TOLERANCE)
    network.use_kernels(Kernels())


# --- lanes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", range(1, 17))
def test_one_stream_is_encoded_by_all_lanes_as_by_one(crew: VoxtralRealtime, n_tokens: int) -> None:
    mel = padded_mel(random_audio(3 * 1_280 * 16), 1)
    expected = np.array(audio_embeds(crew, mel, group=1))
    got = np.array(audio_embeds(crew, mel, group=n_tokens))
    np.testing.assert_allclose(got, expected, atol=EMBEDS_TOLERANCE)


@pytest.mark.parametrize("n_shares", [1, 2, 3, 4])
def test_shares_of_one_piece_follow_each_other_and_none_is_empty(n_shares: int) -> None:
    for n_tokens in range(1, 17):
        shares = _halves(n_tokens, n_shares)
        assert len(shares) <= n_shares
        assert [len(share) for share in shares] == [1] * len(shares)
        spans = [(first, stop) for ((piece, first, stop),) in shares if piece == 0]
        assert all(first < stop for first, stop in spans)
        assert [first for first, _ in spans] + [n_tokens] == [0] + [stop for _, stop in spans]
        assert max(stop - first for first, stop in spans) - min(stop - first for first, stop in spans) <= 1


@pytest.mark.parametrize("rows_expected", [1, 4])
def test_streams_encoded_in_any_order_get_what_each_gets_alone(crew: VoxtralRealtime, rows_expected: int) -> None:
    crew.expect_streams(rows_expected)
    mels = [padded_mel(random_audio(9_000, seed=seed), 1)[8 * N_CONSTANT :] for seed in range(4)]
    silence = silent_frames(8 * N_CONSTANT)
    alone = [np.array(audio_embeds(crew, np.concatenate([silence, mel])))[N_CONSTANT:] for mel in mels]
    states = [crew.begin(6) for _ in mels]
    at = [0] * 4
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        sizes = [1 + (i + order[0]) % 3 for i in order]
        pieces = [(states[i], mels[i][8 * at[i] : 8 * (at[i] + n)]) for i, n in zip(order, sizes, strict=True)]
        for i, n, got in zip(order, sizes, crew.encode(pieces), strict=True):
            np.testing.assert_allclose(np.array(got), alone[i][at[i] : at[i] + n], atol=EMBEDS_TOLERANCE)
            at[i] += n


def decode_in_order(
    network: VoxtralRealtime, streams: list[Stream], states: list[StreamState], order: list[int], spans: list[slice]
) -> None:
    got = network.decode(
        [streams[i].embeds[spans[i]] for i in order],
        [streams[i].tokens[spans[i]] for i in order],
        [states[i] for i in order],
    )
    expected = np.concatenate([streams[i].expected[spans[i]] for i in order])
    np.testing.assert_allclose(np.array(got), expected, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("rows_expected", [1, 2, 5])
@pytest.mark.parametrize("delays", [(6, 6, 6, 6), (1, 6, 30, 6)])
def test_streams_decoded_in_any_order_and_of_any_delay_get_what_each_gets_alone(
    crew: VoxtralRealtime, rows_expected: int, delays: tuple[int, ...]
) -> None:
    crew.expect_streams(rows_expected)
    streams = [Stream(crew, delay, seed) for seed, delay in enumerate(delays)]
    states = [crew.begin(delay) for delay in delays]
    at = [0] * 4
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 4):
        sizes = [1 + (i * order[0]) % 4 for i in range(4)]
        decode_in_order(crew, streams, states, list(order), [slice(a, a + n) for a, n in zip(at, sizes, strict=True)])
        at = [a + n for a, n in zip(at, sizes, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.permutations(range(4)), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=4, max_size=4)),
        max_size=5,
    ),
    rows_expected=st.integers(1, 5),
    n_back=st.integers(0, 4),
)
def test_any_streams_in_any_call_with_guesses_taken_back(
    network: VoxtralRealtime,
    calls: list[tuple[list[int], int, list[int]]],
    rows_expected: int,
    n_back: int,
) -> None:
    network.expect_streams(rows_expected)
    streams = [Stream(network, delay, seed) for seed, delay in enumerate((1, 6, 30, 6))]
    states = [network.begin(stream.n_delay_tokens) for stream in streams]
    at = [0] * 4
    for order, n_streams, sizes in calls:
        spans = [slice(a, a + n) for a, n in zip(at, sizes, strict=True)]
        decode_in_order(network, streams, states, order[:n_streams], spans)
        for i in order[:n_streams]:
            taken_back = min(n_back, sizes[i])
            states[i].decoder.rollback(taken_back)
            at[i] += sizes[i] - taken_back
            assert states[i].decoder.length == N_CONSTANT + at[i]
    network.expect_streams(1)


# --- trays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_expected", [1, 2, 5, 9, 64, 1_000])
def test_streams_that_are_expected_are_spread_over_the_lanes_and_share_trays(
    crew: VoxtralRealtime, n_expected: int
) -> None:
    n_lanes = len(crew.lanes)
    crew.expect_streams(n_expected)
    states = [crew.begin(6) for _ in range(min(n_expected, 12))]
    per_lane = [sum(state.decoder.tray.lane == lane for state in states) for lane in range(n_lanes)]
    assert max(per_lane) - min(per_lane) <= 1
    assert all(state.decoder.tray.lane == state.encoder.ring.tray.lane for state in states)
    places = [(id(state.decoder.tray), state.decoder.row) for state in states]
    assert len(set(places)) == len(states)
    rows = max(1, min(crew.max_rows // n_lanes, -(-n_expected // n_lanes)))
    assert {state.decoder.tray.n_rows for state in states} == {rows}
    assert len({tray for tray, _ in places}) == sum(-(-n // rows) for n in per_lane)


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU's trays are larger than is quickly filled")
def test_unexpected_streams_on_a_gpu_get_trays_as_large_as_all_before_them(network: VoxtralRealtime) -> None:
    kernels, n_lanes = network.kernels, len(network.lanes)
    network.use_kernels(GpuKernels(folded=True, compiles=False))
    try:
        network.expect_streams(1)
        states = [network.begin(6) for _ in range(voxtral.MAX_ROWS_CPU)]
        trays = {id(state.decoder.tray): state.decoder.tray for state in states}.values()
    finally:
        network.use_kernels(kernels)
    rows, most = [tray.n_rows for tray in trays], voxtral.MAX_ROWS_CPU // n_lanes
    assert rows == [max(1, min(most, sum(rows[:i]))) for i in range(len(rows))]
    assert max(rows) == most


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="begins with the CPU's layout")
def test_a_gpu_computes_whole_trays(network: VoxtralRealtime) -> None:
    kernels = network.kernels
    sizes = [1, 5, 2]
    assert network.n_computed(sizes, [network.begin(6) for _ in sizes]) == sum(sizes)
    network.use_kernels(GpuKernels(folded=True, compiles=False))
    try:
        network.expect_streams(4 * len(network.lanes))
        states = [network.begin(6) for _ in range(4 * len(network.lanes))]
        first = [state for state in states if state.decoder.tray is states[0].decoder.tray][:3]
        assert network.n_computed(sizes, first) == 4 * 6  # five are rounded up, and one row brings nothing
    finally:
        network.use_kernels(kernels)


def test_rows_of_streams_that_have_ended_are_taken_again(crew: VoxtralRealtime) -> None:
    crew.expect_streams(4)
    before = n_used(crew)
    states = [crew.begin(6) for _ in range(4)]
    trays = {id(state.decoder.tray) for state in states}
    for _ in range(10):
        del states[1], states[0]
        gc.collect()
        assert n_used(crew) == before + 2
        states += [crew.begin(6), crew.begin(6)]
        assert {id(state.decoder.tray) for state in states} <= trays
    assert n_used(crew) == before + 4


def test_a_stream_in_a_row_of_another_gets_what_it_gets_alone(crew: VoxtralRealtime) -> None:
    crew.expect_streams(3 * len(crew.lanes))
    streams = [Stream(crew, 6, seed) for seed in range(5)]
    states = [crew.begin(6) for _ in range(3)]
    decode_in_order(crew, streams, states, [0, 1, 2], [slice(0, 20)] * 3)
    del states[1]
    gc.collect()
    states.insert(1, crew.begin(6))
    streams[1] = streams[3]
    decode_in_order(crew, streams, states, [2, 1, 0], [slice(20, 24), slice(0, 4), slice(20, 24)])
    decode_in_order(crew, streams, states, [1], [slice(0, 0), slice(4, 24)])


def test_states_of_many_streams_hold_what_one_holds_many_times(network: VoxtralRealtime) -> None:
    alone = network.begin(6).nbytes
    network.expect_streams(6 * len(network.lanes))
    states = [network.begin(6) for _ in range(6 * len(network.lanes))]
    assert {state.nbytes for state in states} == {alone}
    network.expect_streams(1)


# --- what is not whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_streams", [1, 2])
def test_part_of_a_token_is_a_broken_promise(network: VoxtralRealtime, n_streams: int) -> None:
    mel: Floats = np.zeros((12, 128), np.float32)
    with pytest.raises(ValueError, match="12 mel frames are not whole tokens of 8"):
        network.encode([(network.make_state(6), mel) for _ in range(n_streams)])


def test_one_network_in_both_kernels_says_the_same(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = write_checkpoint(tmp_path_factory.mktemp("model") / "two", "mistral", tensors=tensors)
    own, base_two = load_network(directory), load_network(directory)
    base_two.use_kernels(BaseTwoKernels())
    mel = padded_mel(random_audio(30_000, seed=4), 6)
    embeds = audio_embeds(own, mel)
    np.testing.assert_allclose(np.array(audio_embeds(base_two, mel)), np.array(embeds), atol=EMBEDS_TOLERANCE)
    tokens = np.array(text(3, len(embeds)))
    np.testing.assert_allclose(
        logits(base_two, embeds, tokens, 6), logits(own, embeds, tokens, 6), atol=LOGITS_TOLERANCE
    )
