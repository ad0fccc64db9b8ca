"""The ring against attention over everything with a window, whatever the chunks and however the rows stand."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model.reference import rotate as rotate64
from tests.model.reference import windowed_attention
from tests.random_checkpoints import Uniform
from voxpipe.config import AttentionConfig
from voxpipe.model import cache as cache_module
from voxpipe.model.cache import RingCache
from voxpipe.model.rope import rotate, rotation

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
TOLERANCE = 2e-6  # float32 softmax and sums over a window of values near 1


def config(window: int, n_layers: int = 1) -> AttentionConfig:
    return AttentionConfig(
        dim=1,
        n_layers=n_layers,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        hidden_dim=1,
        norm_eps=1e-5,
        rope_theta=1e6,
        sliding_window=window,
    )


class Stream:
    """Random queries, keys and values of one stream, and what attention over all of them gives."""

    def __init__(self, length: int, window: int, seed: int) -> None:
        uniform = Uniform(seed)
        self.q = uniform(length, HEADS, HEAD_DIM, std=1.5)
        self.k = uniform(length, KV_HEADS, HEAD_DIM, std=1.5)
        self.v = uniform(length, KV_HEADS, HEAD_DIM)
        positions = np.arange(length)
        q, k = (rotate64(x.astype(np.float64), positions, 1e6) for x in (self.q, self.k))
        self.expected = windowed_attention(q, k, self.v.astype(np.float64), window)


def attend(
    ring: RingCache, streams: list[Stream], starts: list[int], n_new: int, layer: int = 0
) -> NDArray[np.float32]:
    """(B, L, H, D): the next `n_new` positions of every stream, through the ring."""
    chunk = ring.extend(n_new)
    return attend_in(ring, chunk, streams, starts, n_new, layer)


def attend_in(
    ring: RingCache,
    chunk: cache_module.Chunk,
    streams: list[Stream],
    starts: list[int],
    n_new: int,
    layer: int = 0,
) -> NDArray[np.float32]:
    def part(name: str) -> mx.array:
        rows = [getattr(stream, name)[start : start + n_new] for stream, start in zip(streams, starts, strict=True)]
        return mx.array(np.stack(rows))

    q, k = rotate(part("q"), chunk.turn), rotate(part("k"), chunk.turn)
    keys, values = ring.update(layer, k.transpose(0, 2, 1, 3), part("v").transpose(0, 2, 1, 3), chunk)
    out = mx.fast.scaled_dot_product_attention(
        q.transpose(0, 2, 1, 3), keys, values, scale=HEAD_DIM**-0.5, mask=chunk.mask
    )
    return np.array(out.transpose(0, 2, 1, 3))


def run(stream: Stream, ring: RingCache, sizes: list[int]) -> NDArray[np.float32]:
    parts, start = [], 0
    for size in sizes:
        parts.append(attend(ring, [stream], [start], size)[0])
        start += size
    return np.concatenate(parts)


@pytest.mark.parametrize("window", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_any_chunk_size(window: int, size: int) -> None:
    length = 70 // size * size
    stream = Stream(length, window, seed=window)
    ring = RingCache(config(window), batch=1, max_chunk=7, dtype=mx.float32)
    got = run(stream, ring, [size] * (length // size))
    np.testing.assert_allclose(got, stream.expected, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(window=st.integers(1, 20), growth=st.integers(1, 9), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=15))
def test_any_chunking_growth_and_wraparound(window: int, growth: int, sizes: list[int]) -> None:
    before, cache_module.GROWTH = cache_module.GROWTH, growth
    try:
        stream = Stream(sum(sizes), window, seed=sum(sizes))
        ring = RingCache(config(window), batch=1, max_chunk=9, dtype=mx.float32)
        np.testing.assert_allclose(run(stream, ring, sizes), stream.expected, atol=TOLERANCE)
    finally:
        cache_module.GROWTH = before


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 16),
    growth=st.sampled_from([1, 4, 256]),
    starts=st.lists(st.integers(0, 40), min_size=2, max_size=4),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
)
def test_rows_of_unequal_length_equal_each_alone(window: int, growth: int, starts: list[int], sizes: list[int]) -> None:
    """Streams that began at different times are batched: their rings are put side by side, their lengths kept."""
    before, cache_module.GROWTH = cache_module.GROWTH, growth
    try:
        streams = [Stream(start + sum(sizes), window, seed=10 + i) for i, start in enumerate(starts)]
        batch = RingCache(config(window), batch=len(streams), max_chunk=6, dtype=mx.float32)
        _feed_history(batch, streams, starts)
        np.testing.assert_array_equal(batch.lengths, starts)
        done = 0
        for size in sizes:
            got = attend(batch, streams, [start + done for start in starts], size)
            for row, (stream, start) in enumerate(zip(streams, starts, strict=True)):
                expected = stream.expected[start + done : start + done + size]
                np.testing.assert_allclose(got[row], expected, atol=TOLERANCE)
            done += size
    finally:
        cache_module.GROWTH = before


def _feed_history(batch: RingCache, streams: list[Stream], starts: list[int]) -> None:
    """Bring row i to length starts[i], the longest history first: a row that waits is put back to length zero."""
    longest = max(starts)
    lead = [longest - start for start in starts]  # steps a row waits
    for step in range(longest):
        waits = np.array([step < steps for steps in lead])
        batch.lengths = np.where(waits, 0, batch.lengths)
        at = [max(0, step - steps) for steps in lead]
        attend(batch, streams, at, 1)
        batch.lengths = np.where(waits, 0, batch.lengths)


def test_row_started_over_forgets() -> None:
    """A slot of the batch is given to a new stream by setting its length to zero."""
    window = 10
    old, new, neighbour = (Stream(40, window, seed) for seed in (1, 2, 3))
    batch = RingCache(config(window), batch=2, max_chunk=4, dtype=mx.float32)
    for start in range(0, 24, 4):
        attend(batch, [old, neighbour], [start, start], 4)
    batch.lengths[0] = 0
    for start in range(0, 16, 4):
        got = attend(batch, [new, neighbour], [start, 24 + start], 4)
        np.testing.assert_allclose(got[0], new.expected[start : start + 4], atol=TOLERANCE)
        np.testing.assert_allclose(got[1], neighbour.expected[24 + start : 28 + start], atol=TOLERANCE)


@pytest.mark.parametrize("first_position", [10_000_000, 10**9])
def test_first_position_changes_nothing(first_position: int) -> None:
    window, length = 12, 60
    stream = Stream(length, window, seed=5)
    ring = RingCache(config(window), batch=1, max_chunk=4, dtype=mx.float32, first_position=first_position)
    np.testing.assert_array_equal(ring.positions, [first_position])
    far = RingCache(config(window), batch=1, max_chunk=4, dtype=mx.float32, first_position=first_position)
    expected_turn = rotation(first_position + np.arange(4)[None], head_dim=HEAD_DIM, theta=1e6)
    assert mx.array_equal(far.extend(4).turn, expected_turn)  # it is obeyed, though the result does not show it
    got = run(stream, ring, [4] * (length // 4))
    np.testing.assert_array_equal(ring.positions, [first_position + length])
    np.testing.assert_allclose(got, stream.expected, atol=1e-5)  # two rotations rounded to float32


def test_layers_are_kept_apart() -> None:
    window = 6
    streams = [Stream(20, window, seed) for seed in (1, 2)]
    ring = RingCache(config(window, n_layers=2), batch=1, max_chunk=5, dtype=mx.float32)
    for start in range(0, 20, 5):
        chunk = ring.extend(5)
        for layer, stream in enumerate(streams):
            got = attend_in(ring, chunk, [stream], [start], 5, layer)[0]
            np.testing.assert_allclose(got, stream.expected[start : start + 5], atol=TOLERANCE)


def test_memory_stops_growing_at_window_and_chunk() -> None:
    ring = RingCache(config(300), batch=1, max_chunk=16, dtype=mx.float16)
    stream = Stream(16, 300, seed=1)
    capacities = []
    for _ in range(60):
        attend_in(ring, ring.extend(16), [stream], [0], 16)
        capacities.append({array.shape[2] for array in ring.arrays()})
        mx.eval(ring.arrays())
    assert capacities[0] == {256}
    assert capacities[-1] == {300 + 15}
    assert capacities[20:] == [{315}] * 40
    assert all(array.dtype == mx.float16 for array in ring.arrays())


@pytest.mark.parametrize("n_new", [0, 5])
def test_chunk_of_wrong_size_is_a_broken_promise(n_new: int) -> None:
    ring = RingCache(config(8), batch=1, max_chunk=4, dtype=mx.float32)
    with pytest.raises(ValueError, match="a chunk has 1 to 4 positions"):
        ring.extend(n_new)
