"""Ring caches: the keys and values that a sliding window can still see, for B streams at their own positions.

A ring has room for the window and one chunk, so that a chunk is written before it is attended and the oldest key its
first query needs is still there. Which slot a query may see follows from the slot's age alone. Memory grows in blocks
until the ring is full and never again; nothing is moved after that.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig
from voxpipe.model.rope import rotation

GROWTH = 256  # positions added at a time: short streams stay small, long ones copy their cache seldom


@dataclass(frozen=True)
class Chunk:
    """What all layers share while they process the same L new positions."""

    turn: mx.array  # (B, L, 1, head_dim / 2) rotary factors
    mask: mx.array  # (B, 1, L, capacity) bool, true where a query sees a slot
    slots: NDArray[np.int64]  # (B, L) where the new keys go
    capacity: int


class RingCache:
    """Keys and values of every layer of one transformer.

    Args:
        config: sizes, window and rotary base of the transformer.
        batch: number of streams B.
        max_chunk: most positions that one `extend` will add.
        dtype: of keys and values.
        first_position: rotary position at which the streams begin (attention depends on differences only).
    """

    def __init__(
        self, config: AttentionConfig, *, batch: int, max_chunk: int, dtype: mx.Dtype, first_position: int = 0
    ) -> None:
        self._config = config
        self._batch = batch
        self._max_chunk = max_chunk
        self._limit = config.sliding_window + max_chunk - 1
        self._dtype = dtype
        self._first_position = first_position
        self._capacity = 0
        self.lengths = np.zeros(batch, np.int64)  # positions written so far, per stream
        self._keys: list[mx.array | None] = [None] * config.n_layers
        self._values: list[mx.array | None] = [None] * config.n_layers

    @property
    def positions(self) -> NDArray[np.int64]:
        """(B,) rotary position of each stream's next key."""
        return self._first_position + self.lengths

    def extend(self, n_new: int) -> Chunk:
        """Make room for `n_new` positions in every stream and say how they are rotated, stored and seen."""
        if not 1 <= n_new <= self._max_chunk:
            raise ValueError(f"a chunk has 1 to {self._max_chunk} positions, not {n_new}")
        index = self.lengths[:, None] + np.arange(n_new)  # (B, L)
        self.lengths = self.lengths + n_new
        needed = min(int(self.lengths.max()), self._limit)
        if needed > self._capacity:
            self._capacity = min(self._limit, -(-needed // GROWTH) * GROWTH)
        slots = index % self._capacity
        # age 0 is the newest key; query i of the chunk has age L - 1 - i and sees `window` keys from itself back
        age = (slots[:, -1:] - np.arange(self._capacity)) % self._capacity  # (B, capacity)
        seen_from_query = age[:, None] - (n_new - 1 - np.arange(n_new))[:, None]  # (B, L, capacity)
        mask = (seen_from_query >= 0) & (seen_from_query < self._config.sliding_window)
        mask &= (age < self.lengths[:, None])[:, None]
        turn = rotation(self._first_position + index, head_dim=self._config.head_dim, theta=self._config.rope_theta)
        return Chunk(turn=turn, mask=mx.array(mask[:, None]), slots=slots, capacity=self._capacity)

    def update(self, layer: int, keys: mx.array, values: mx.array, chunk: Chunk) -> tuple[mx.array, mx.array]:
        """Store one layer's new (B, H, L, head_dim) and return its whole (B, H, capacity, head_dim) rings."""
        stored_keys = _write(self._grown(self._keys[layer]), keys, chunk.slots)
        stored_values = _write(self._grown(self._values[layer]), values, chunk.slots)
        self._keys[layer], self._values[layer] = stored_keys, stored_values
        return stored_keys, stored_values

    def arrays(self) -> list[mx.array]:
        """All stored arrays, to evaluate them together."""
        return [array for array in (*self._keys, *self._values) if array is not None]

    def _grown(self, stored: mx.array | None) -> mx.array:
        held = 0 if stored is None else stored.shape[2]
        if stored is not None and held == self._capacity:
            return stored
        shape = (self._batch, self._config.n_kv_heads, self._capacity - held, self._config.head_dim)
        room = mx.zeros(shape, self._dtype)
        return room if stored is None else mx.concatenate([stored, room], axis=2)


def _write(ring: mx.array, new: mx.array, slots: NDArray[np.int64]) -> mx.array:
    """Put (B, H, L, D) into (B, H, capacity, D) at slots (B, L); a plain slice where the streams stand alike."""
    n_new = slots.shape[1]
    first, last = int(slots[0, 0]), int(slots[0, -1])
    if (slots == slots[:1]).all() and last - first == n_new - 1:
        ring[:, :, first : last + 1] = new
        return ring
    index = mx.array(slots.astype(np.int32))[:, None, :, None]
    return mx.put_along_axis(ring, mx.broadcast_to(index, new.shape), new, axis=2)
