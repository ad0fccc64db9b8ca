"""Trays of rings against attention over everything with a window, whatever the chunks, the rows and what is taken back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model.reference import rotate as rotate64
from tests.model.reference import windowed_attention
from tests.random_checkpoints import Floats, Uniform
from voxpipe.config import AttentionConfig
from voxpipe.model import cache as cache_module
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.dense import positions
from voxpipe.model.kernels import BaseTwoKernels, GpuKernels, Kernels
from voxpipe.model.pack import Step
from voxpipe.model.rope import halves_first

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
TOLERANCE = 2e-6  # float32 softmax and sums over a window of values near 1
KERNELS = {
    "own": Kernels(),
    "base two": BaseTwoKernels(),
    "metal": GpuKernels(folded=False, compiles=False),
    "cuda": GpuKernels(folded=True, compiles=False),
}
all_kernels = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)


def config(window: int, n_layers: int = 1, dim: int = 1) -> AttentionConfig:
    return AttentionConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        hidden_dim=1,
        norm_eps=1e-5,
        rope_theta=1e6,
        sliding_window=window,
    )


def make_tray(
    window: int,
    kernels: Kernels = KERNELS["own"],
    *,
    n_rows: int = 1,
    max_chunk: int = 7,
    n_layers: int = 1,
    dtype: mx.Dtype = mx.float32,
) -> Tray:
    return Tray(
        config(window, n_layers),
        n_rows=n_rows,
        max_chunk=max_chunk,
        dtype=dtype,
        transposed_keys=kernels.transposed_keys,
    )


@contextmanager
def growth(n: int) -> Iterator[None]:
    before, cache_module.GROWTH = cache_module.GROWTH, n
    try:
        yield
    finally:
        cache_module.GROWTH = before


def random_qkv(uniform: Uniform, length: int, *, loudness: float = 1.0) -> Floats:
    """(L, width) queries, keys and values with neighbouring channels paired."""
    q, k, v = (uniform(length, n * HEAD_DIM, std=std) for n, std in ((HEADS, 1.5), (KV_HEADS, 1.5), (KV_HEADS, 1.0)))
    return np.concatenate([q, k, v * np.float32(loudness)], axis=1)


def attention_over_all(qkv: Floats, window: int) -> NDArray[np.float64]:
    """(L, width) -> (L, HEADS * HEAD_DIM)."""
    heads = qkv.astype(np.float64).reshape(len(qkv), -1, HEAD_DIM)
    q, k, v = np.split(heads, [HEADS, HEADS + KV_HEADS], axis=1)
    q, k = (rotate64(x, np.arange(len(qkv)), 1e6) for x in (q, k))
    return windowed_attention(q, k, v, window).reshape(len(qkv), -1)


class Stream:
    """Random queries, keys and values of one stream, and what attention over all of them gives."""

    def __init__(self, length: int, window: int, seed: int) -> None:
        self.qkv = random_qkv(Uniform(seed), length)
        self.expected = attention_over_all(self.qkv, window)


def attend(kernels: Kernels, pieces: Sequence[tuple[Ring, Floats]], *, layers: Sequence[int] = (0,)) -> list[Floats]:
    """The outputs of each piece's new positions, (L, HEADS * HEAD_DIM), of the last of the layers."""
    order = np.concatenate([halves_first(HEADS + KV_HEADS, HEAD_DIM), np.arange((HEADS + KV_HEADS) * HEAD_DIM, WIDTH)])
    together = mx.array(np.concatenate([qkv for _, qkv in pieces])[:, order])

    def body(x: mx.array, scales: mx.array | None, step: Step) -> Iterator[mx.array]:
        for layer in layers:
            yield step.attend(lambda qkv: qkv, x, layer)

    rings = [(ring, len(qkv)) for ring, qkv in pieces]
    *_, out = positions(pieces[0][0].tray.config, kernels, rings, {}).run(body, together)
    return np.split(np.array(out), np.cumsum([len(qkv) for _, qkv in pieces])[:-1])


def run(stream: Stream, ring: Ring, sizes: Sequence[int], kernels: Kernels) -> Floats:
    parts = [np.zeros((0, HEADS * HEAD_DIM), np.float32)]
    for n, end in zip(sizes, np.cumsum(sizes), strict=True):
        parts += attend(kernels, [(ring, stream.qkv[end - n : end])])
    return np.concatenate(parts)


# --- one ring ----------------------------------------------------------------------------------------------------------


@all_kernels
@pytest.mark.parametrize("window", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_any_chunk_size(window: int, size: int, kernels: Kernels) -> None:
    length = 70 // size * size
    stream = Stream(length, window, seed=window)
    ring = make_tray(window, kernels).take_row()
    got = run(stream, ring, [size] * (length // size), kernels)
    np.testing.assert_allclose(got, stream.expected, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 20),
    n_growth=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=15),
    name=st.sampled_from(sorted(KERNELS)),
)
def test_any_chunking_growth_and_wraparound(window: int, n_growth: int, sizes: list[int], name: str) -> None:
    kernels = KERNELS[name]
    with growth(n_growth):
        stream = Stream(sum(sizes), window, seed=sum(sizes))
        ring = make_tray(window, kernels, max_chunk=9).take_row()
        np.testing.assert_allclose(run(stream, ring, sizes, kernels), stream.expected, atol=TOLERANCE)


@pytest.mark.parametrize("first_position", [10_000_000, 10**9])
def test_first_position_changes_nothing(first_position: int) -> None:
    window, length = 12, 60
    stream = Stream(length, window, seed=5)
    ring = make_tray(window).take_row(first_position)
    assert ring.position == first_position
    got = run(stream, ring, [4] * (length // 4), KERNELS["own"])
    assert (ring.position, ring.length) == (first_position + length, length)
    np.testing.assert_allclose(got, stream.expected, atol=1e-5)  # two rotations rounded to float32


def test_first_position_is_obeyed() -> None:
    """Though no result shows it: the keys are stored as they are turned there."""
    stream = Stream(4, 12, seed=5)
    stored = []
    for first_position in (0, 1_000):
        tray = make_tray(12)
        ring = tray.take_row(first_position)
        attend(KERNELS["own"], [(ring, stream.qkv)])
        stored.append(np.array(tray.arrays()[0])[0, :, :4].swapaxes(0, 1))
    order = halves_first(1, HEAD_DIM)
    k = stream.qkv[:, HEADS * HEAD_DIM : (HEADS + KV_HEADS) * HEAD_DIM].reshape(4, KV_HEADS, HEAD_DIM)
    for keys, first_position in zip(stored, (0, 1_000), strict=True):
        expected = rotate64(k.astype(np.float64), first_position + np.arange(4), 1e6)[..., order]
        np.testing.assert_allclose(keys, expected, atol=1e-6)


def each_layer_its_part(x: mx.array, scales: mx.array | None, step: Step) -> Iterator[mx.array]:
    """Two layers side by side: (N, 2 width) -> (N, 2 HEADS * HEAD_DIM)."""
    parts = mx.split(x, 2, axis=1)
    yield mx.concatenate([step.attend(lambda qkv: qkv, part, layer) for layer, part in enumerate(parts)], axis=1)


@all_kernels
def test_layers_are_kept_apart(kernels: Kernels) -> None:
    window = 6
    streams = [Stream(20, window, seed) for seed in (1, 2)]
    ring = make_tray(window, kernels, n_layers=2).take_row()
    order = np.concatenate([halves_first(HEADS + KV_HEADS, HEAD_DIM), np.arange((HEADS + KV_HEADS) * HEAD_DIM, WIDTH)])
    for start in range(0, 20, 5):
        both = mx.array(np.concatenate([stream.qkv[start : start + 5, order] for stream in streams], axis=1))
        (got,) = positions(config(window, 2), kernels, [(ring, 5)], {}).run(each_layer_its_part, both)
        expected = np.concatenate([stream.expected[start : start + 5] for stream in streams], axis=1)
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@all_kernels
def test_memory_stops_growing_at_window_and_chunk(kernels: Kernels) -> None:
    tray = make_tray(300, kernels, n_rows=2, max_chunk=16, dtype=mx.float16)
    rings = [tray.take_row(), tray.take_row()]
    qkv = Stream(16, 300, seed=1).qkv
    axes = (3, 2) if kernels.transposed_keys else (2, 2)
    capacities = []
    for _ in range(60):
        attend(kernels, [(ring, qkv) for ring in rings])
        capacities.append({array.shape[axis] for array, axis in zip(tray.arrays(), axes, strict=True)})
    assert capacities[0] == {256}
    assert capacities[-1] == {300 + 15}
    assert capacities[20:] == [{315}] * 40
    assert all(array.dtype == mx.float16 for array in tray.arrays())
    n_bytes = 2 * 2 * 315 * KV_HEADS * HEAD_DIM * 2
    assert tray.nbytes == n_bytes == 2 * tray.full_row_bytes
    assert [ring.nbytes for ring in rings] == [n_bytes // 2] * 2


def test_a_tray_may_grow_in_few_steps() -> None:
    sizes = {}
    for doubles in (False, True):
        tray = Tray(config(3_000), max_chunk=8, dtype=mx.float32, doubles=doubles)
        sizes[doubles] = []
        for length in range(8, 5_000, 8):
            tray.reserve(length)
            if tray.capacity not in sizes[doubles]:
                sizes[doubles].append(tray.capacity)
    assert sizes[True] == [256, 512, 1_024, 2_048, 3_007]
    assert sizes[False] == [*range(256, 3_000, 256), 3_007]


@pytest.mark.parametrize("n_new", [0, 5])
def test_chunk_of_wrong_size_is_a_broken_promise(n_new: int) -> None:
    ring = make_tray(8, max_chunk=4).take_row()
    with pytest.raises(ValueError, match="a chunk has 1 to 4 positions"):
        ring.extend(n_new)


# --- rows side by side -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 16),
    n_growth=st.sampled_from([1, 4, 256]),
    starts=st.lists(st.integers(0, 40), min_size=2, max_size=4),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    name=st.sampled_from(sorted(KERNELS)),
)
def test_rows_of_unequal_length_equal_each_alone(
    window: int, n_growth: int, starts: list[int], sizes: list[int], name: str
) -> None:
    """Streams that began at different times share a tray."""
    kernels = KERNELS[name]
    with growth(n_growth):
        streams = [Stream(start + sum(sizes), window, seed=10 + i) for i, start in enumerate(starts)]
        tray = make_tray(window, kernels, n_rows=len(streams))
        rings = [tray.take_row() for _ in streams]
        for now in range(max(starts)):
            begun = [i for i, start in enumerate(starts) if now >= max(starts) - start]
            at = [now - (max(starts) - starts[i]) for i in begun]
            attend(kernels, [(rings[i], streams[i].qkv[t : t + 1]) for i, t in zip(begun, at, strict=True)])
        assert [ring.length for ring in rings] == starts
        done = 0
        for size in sizes:
            spans = [slice(start + done, start + done + size) for start in starts]
            got = attend(
                kernels,
                [(ring, stream.qkv[span]) for ring, stream, span in zip(rings, streams, spans, strict=True)],
            )
            for out, stream, span in zip(got, streams, spans, strict=True):
                np.testing.assert_allclose(out, stream.expected[span], atol=TOLERANCE)
            done += size


MAX_CHUNK = 6


@settings(max_examples=100, deadline=None)
@given(
    window=st.integers(1, 14),
    n_growth=st.sampled_from([1, 3, 256]),
    n_rows=st.integers(1, 4),
    calls=st.lists(st.lists(st.tuples(st.integers(0, MAX_CHUNK), st.integers(0, MAX_CHUNK)), min_size=4, max_size=4)),
    name=st.sampled_from(sorted(KERNELS)),
)
def test_whatever_rows_bring_and_take_back_is_as_if_the_rest_were_all(
    window: int, n_growth: int, n_rows: int, calls: list[list[tuple[int, int]]], name: str
) -> None:
    """Each call, each row brings none to six positions and takes back some of them; what it took back is loud."""
    kernels, uniform = KERNELS[name], Uniform(len(calls))
    with growth(n_growth):
        tray = make_tray(window, kernels, n_rows=n_rows, max_chunk=MAX_CHUNK)
        rings = [tray.take_row() for _ in range(n_rows)]
        kept = [np.zeros((0, WIDTH), np.float32) for _ in rings]
        for plan in calls:
            rows = [row for row in range(n_rows) if plan[row][0]]
            if not rows:
                continue
            chunks = {}
            for row in rows:
                n_new, n_back = plan[row][0], min(plan[row])
                chunks[row] = np.concatenate(
                    [random_qkv(uniform, n_new - n_back), random_qkv(uniform, n_back, loudness=1e3)]
                )
            got = attend(kernels, [(rings[row], chunks[row]) for row in rows])
            for row, out in zip(rows, got, strict=True):
                n_back = min(plan[row])
                whole = np.concatenate([kept[row], chunks[row]])
                expected = attention_over_all(whole, window)[len(kept[row]) :]
                n_quiet = len(out) - n_back
                np.testing.assert_allclose(out[:n_quiet], expected[:n_quiet], atol=TOLERANCE)
                np.testing.assert_allclose(out[n_quiet:], expected[n_quiet:], atol=1e3 * TOLERANCE)
                rings[row].rollback(n_back)
                kept[row] = whole[: len(whole) - n_back]
            assert [ring.length for ring in rings] == [len(history) for history in kept]


@all_kernels
def test_idle_rows_stay_as_they_are_while_others_go_around(kernels: Kernels) -> None:
    """Three of four rows bring a full chunk, again and again, past window and wraparound; then the fourth goes on."""
    window, busy = 9, 3
    streams = [Stream(120, window, seed) for seed in range(4)]
    tray = make_tray(window, kernels, n_rows=4)
    rings = [tray.take_row() for _ in streams]
    for first in (0, 7, 14):
        attend(kernels, [(rings[busy], streams[busy].qkv[first : first + 7])])
    for first in range(0, 70, 7):
        span = slice(first, first + 7)
        got = attend(kernels, [(ring, stream.qkv[span]) for ring, stream in zip(rings[:3], streams[:3], strict=True)])
        for out, stream in zip(got, streams[:3], strict=True):
            np.testing.assert_allclose(out, stream.expected[span], atol=TOLERANCE)
    assert rings[busy].length == 21
    for first in range(21, 49, 7):
        span = slice(first, first + 7)
        (out,) = attend(kernels, [(rings[busy], streams[busy].qkv[span])])
        np.testing.assert_allclose(out, streams[busy].expected[span], atol=TOLERANCE)


@all_kernels
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 7, 2, 5), (7, 1, 1, 1)])
def test_a_tray_of_four_equals_four_trays_together_and_one_by_one(sizes: tuple[int, ...], kernels: Kernels) -> None:
    window, n_calls = 11, 8
    streams = [Stream(n * n_calls, window, seed) for seed, n in enumerate(sizes)]
    shared, single = (make_tray(window, kernels, n_rows=4) for _ in range(2))
    together = [shared.take_row() for _ in streams]
    one_by_one = [single.take_row() for _ in streams]
    alone = [make_tray(window, kernels).take_row() for _ in streams]
    for index in range(n_calls):
        parts = [stream.qkv[n * index : n * (index + 1)] for stream, n in zip(streams, sizes, strict=True)]
        results = [
            attend(kernels, list(zip(together, parts, strict=True))),
            [attend(kernels, [piece])[0] for piece in zip(one_by_one, parts, strict=True)],
            attend(kernels, list(zip(alone, parts, strict=True))),
        ]
        for got in results:
            for out, stream, n in zip(got, streams, sizes, strict=True):
                np.testing.assert_allclose(out, stream.expected[n * index : n * (index + 1)], atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    name=st.sampled_from(sorted(KERNELS)),
)
def test_outputs_come_in_the_order_of_the_pieces_whatever_rows_and_trays_they_are_of(
    sizes: list[int], order: list[int], name: str
) -> None:
    kernels, window = KERNELS[name], 8
    streams = [Stream(3 * n, window, seed) for seed, n in enumerate(sizes)]
    trays = [make_tray(window, kernels, n_rows=n_rows) for n_rows in (1, 3, 2)]
    rings = [tray.take_row() for tray in trays for _ in range(tray.n_rows)]
    for index in range(3):
        spans = [slice(sizes[i] * index, sizes[i] * (index + 1)) for i in order]
        got = attend(kernels, [(rings[i], streams[i].qkv[span]) for i, span in zip(order, spans, strict=True)])
        for out, i, span in zip(got, order, spans, strict=True):
            np.testing.assert_allclose(out, streams[i].expected[span], atol=TOLERANCE)


@all_kernels
def test_rows_attended_one_by_one_may_outgrow_the_tray_in_one_call(kernels: Kernels) -> None:
    """Two of five rows bring one position each; the second one's does not fit into what the tray held."""
    with growth(4):
        streams = [Stream(30, 20, seed) for seed in range(2)]
        tray = make_tray(20, kernels, n_rows=5)
        rings = [tray.take_row() for _ in streams]
        run(streams[1], rings[1], [4], kernels)
        for i in range(20):
            got = attend(kernels, [(rings[0], streams[0].qkv[i : i + 1]), (rings[1], streams[1].qkv[i + 4 : i + 5])])
            np.testing.assert_allclose(got[0], streams[0].expected[i : i + 1], atol=TOLERANCE)
            np.testing.assert_allclose(got[1], streams[1].expected[i + 4 : i + 5], atol=TOLERANCE)


# --- taking back, forking, starting over -------------------------------------------------------------------------------


@all_kernels
@pytest.mark.parametrize("length", [0, 3, 13, 14, 15, 20, 28, 40])
@pytest.mark.parametrize("n_back", range(1, 8))
def test_what_was_taken_back_was_never_written(length: int, n_back: int, kernels: Kernels) -> None:
    """The capacity is 14: before, at and behind the wraparound; then the ring goes on one by one."""
    window = 8
    stream, junk = Stream(length + 30, window, seed=1), random_qkv(Uniform(2), 7, loudness=1e3)
    ring = make_tray(window, kernels).take_row()
    run(stream, ring, [1] * length, kernels)
    attend(kernels, [(ring, np.concatenate([stream.qkv[length : length + 7 - n_back], junk[:n_back]]))])
    ring.rollback(n_back)
    for position in range(length + 7 - n_back, length + 30):
        (out,) = attend(kernels, [(ring, stream.qkv[position : position + 1])])
        np.testing.assert_allclose(out, stream.expected[position : position + 1], atol=TOLERANCE)


@all_kernels
@pytest.mark.parametrize("length", [1, 5, 14, 33])
@pytest.mark.parametrize(("n_rows", "n_ahead"), [(1, 0), (3, 0), (3, 2), (3, 25)])
def test_a_fork_goes_on_by_itself(length: int, n_rows: int, n_ahead: int, kernels: Kernels) -> None:
    """Into a tray of its own or beside a neighbour; afterwards neither sees what the other writes."""
    window, length_after = 8, 21
    with growth(4):
        streams = [Stream(length + length_after, window, seed) for seed in (1, 2, 3)]
        for other in streams[1:]:
            other.qkv[:length] = streams[0].qkv[:length]
            other.expected = attention_over_all(other.qkv, window)
        template = make_tray(window, kernels).take_row(first_position=100)
        run(streams[0], template, [1] * length, kernels)
        tray = make_tray(window, kernels, n_rows=n_rows)
        neighbour = Stream(n_ahead + 1, window, seed=9)
        if n_ahead:
            first = tray.take_row()
            run(neighbour, first, [1] * n_ahead, kernels)
        forks = [template.fork(tray) for _ in range(2 if n_rows > 1 else 1)]
        rings = [template, *forks]
        assert [(ring.length, ring.position) for ring in rings] == [(length, 100 + length)] * len(rings)
        for start in range(length, length + length_after, 3):
            pieces = [(ring, s.qkv[start : start + 3]) for ring, s in zip(rings, streams, strict=False)]
            for (out,), stream in zip([attend(kernels, [piece]) for piece in pieces], streams, strict=False):
                np.testing.assert_allclose(out, stream.expected[start : start + 3], atol=1e-5)
        if n_ahead:
            (out,) = attend(kernels, [(first, neighbour.qkv[n_ahead:])])
            np.testing.assert_allclose(out, neighbour.expected[n_ahead:], atol=TOLERANCE)


@all_kernels
@pytest.mark.parametrize("n_before", [1, 10, 40])
def test_a_freed_row_is_taken_again_and_remembers_nothing(n_before: int, kernels: Kernels) -> None:
    window = 10
    neighbour, late = (Stream(60, window, seed) for seed in (1, 2))
    tray = make_tray(window, kernels, n_rows=2, max_chunk=4)
    beside, ring = tray.take_row(), tray.take_row()
    assert tray.free_rows == []
    loud = random_qkv(Uniform(3), n_before, loudness=1e3)
    for i in range(n_before):
        attend(kernels, [(beside, neighbour.qkv[i : i + 1]), (ring, loud[i : i + 1])])
    row = ring.row
    del ring
    assert tray.free_rows == [row]
    (out,) = attend(kernels, [(beside, neighbour.qkv[n_before : n_before + 1])])
    np.testing.assert_allclose(out, neighbour.expected[n_before : n_before + 1], atol=TOLERANCE)
    again = tray.take_row()
    assert (again.row, again.length, tray.free_rows) == (row, 0, [])
    for start in range(0, 16, 4):
        span = slice(n_before + 1 + start, n_before + 5 + start)
        got = attend(kernels, [(again, late.qkv[start : start + 4]), (beside, neighbour.qkv[span])])
        np.testing.assert_allclose(got[0], late.expected[start : start + 4], atol=TOLERANCE)
        np.testing.assert_allclose(got[1], neighbour.expected[span], atol=TOLERANCE)


@all_kernels
def test_an_empty_tray_keeps_no_memory_and_serves_again(kernels: Kernels) -> None:
    streams = [Stream(40, 10, seed) for seed in (1, 2)]
    tray = make_tray(10, kernels, n_rows=2)
    for _ in range(3):
        rings = [tray.take_row(), tray.take_row()]
        for start in range(0, 40, 5):
            span = slice(start, start + 5)
            got = attend(kernels, [(ring, s.qkv[span]) for ring, s in zip(rings, streams, strict=True)])
            for out, stream in zip(got, streams, strict=True):
                np.testing.assert_allclose(out, stream.expected[span], atol=TOLERANCE)
        assert tray.nbytes > 0
        del rings[0]
        assert tray.nbytes > 0
        rings.clear()
        assert (tray.nbytes, sorted(tray.free_rows)) == (0, [0, 1])
