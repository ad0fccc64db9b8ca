"""Ring caches: the keys and values that a stream's sliding window can still see.

A ring has room for the window and one chunk, so that a chunk is written before it is attended and the oldest key its
first query needs is still there. Which slot a query may see follows from the slot's age alone. Memory grows in blocks
until the ring is full and never again; nothing is moved after that, nor when a stream joins or leaves.

For the same reason a chunk can be taken back: `rollback` only lowers the length. What was written beyond it lies in slots
that no window reaches before they are written again.

A tray holds the rings of a few streams side by side, so that they can be attended in one operation.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig

GROWTH = 256  # positions added at a time: short streams stay small, long ones copy their cache seldom


def visible(xp: Any, lengths: Any, n_new: int, capacity: int, window: int) -> Any:
    """(R, n_new, capacity): which slots are seen by the newest positions of rings of (R,) `lengths`.

    Args:
        xp: numpy or mlx.core, whichever's array `lengths` is.
    """
    newest = lengths[:, None] - 1
    age = (newest - xp.arange(capacity)) % capacity  # 0 is the newest key
    back = age[:, None] - xp.arange(n_new - 1, -1, -1)[:, None]  # counted from each query
    return (back >= 0) & (back < window) & (age < lengths[:, None])[:, None]


class Tray:
    """Keys and values of `n_rows` streams in every layer of one transformer.

    Args:
        config: sizes and window of the transformer.
        max_chunk: most positions that one `extend` will add.
        dtype: of keys and values.
        transposed_keys: keep keys as (rows, H, head_dim, capacity).
        doubles: grow to twice the size at least, where every new size costs more than its memory.
        lane: which of the network's lanes works on it; two at once would copy it.

    Attributes:
        lengths: positions each row holds to be written, without those taken back.
        first_positions: rotary position at which each row began.
        keys, values: of each layer, where there are any, (rows, H, capacity, head_dim) or transposed.
    """

    def __init__(
        self,
        config: AttentionConfig,
        *,
        n_rows: int = 1,
        max_chunk: int,
        dtype: mx.Dtype,
        transposed_keys: bool = False,
        doubles: bool = False,
        lane: int = 0,
    ) -> None:
        self.config = config
        self.n_rows = n_rows
        self.max_chunk = max_chunk
        self.lane = lane
        self.capacity = 0
        self.lengths = np.zeros(n_rows, np.int64)
        self.first_positions = np.zeros(n_rows, np.int64)
        self.free_rows = list(range(n_rows))
        self._limit = config.sliding_window + max_chunk - 1
        self.dtype = dtype
        self._doubles = doubles
        self._key_axis = 3 if transposed_keys else 2
        self.keys: list[mx.array | None] = [None] * config.n_layers
        self.values: list[mx.array | None] = [None] * config.n_layers

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(array.nbytes for array in (*self.keys, *self.values) if array is not None)

    @property
    def full_row_bytes(self) -> int:
        """Bytes of keys and values of a row that has grown as far as it may."""
        config = self.config
        return 2 * config.n_layers * config.n_kv_heads * config.head_dim * self._limit * self.dtype.size

    def take_row(self, first_position: int = 0) -> "Ring":
        """An empty ring in a free row; the row is free again when the ring is forgotten.

        Args:
            first_position: rotary position at which the stream begins (attention depends on differences only).
        """
        row = self.free_rows.pop(0)
        self.lengths[row] = 0
        self.first_positions[row] = first_position
        return Ring(self, row)

    def free_row(self, row: int) -> None:
        """Take a row back; an empty tray keeps no memory."""
        self.free_rows.append(row)
        self.lengths[row] = 0
        if len(self.free_rows) == self.n_rows:
            self.capacity = 0
            self.keys = [None] * self.config.n_layers
            self.values = [None] * self.config.n_layers

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in every row."""
        needed = min(length, self._limit)
        if needed > self.capacity:
            least = max(needed, 2 * self.capacity) if self._doubles else needed
            self.capacity = min(self._limit, -(-least // GROWTH) * GROWTH)

    def grow(self) -> None:
        """Have every layer's rings in the size that was reserved."""
        held = self.keys[0]
        if held is not None and held.shape[self._key_axis] == self.capacity:
            return
        self.keys = [self._grown(stored, self._key_axis) for stored in self.keys]
        self.values = [self._grown(stored, 2) for stored in self.values]

    def visible(self, lengths: NDArray[np.int64], n_new: int) -> NDArray[np.bool_]:
        """(R, n_new, capacity): which slots are seen by the newest positions of rings of (R,) `lengths`."""
        seen: NDArray[np.bool_] = visible(np, lengths, n_new, self.capacity, self.config.sliding_window)
        return seen

    def slots(self, starts: NDArray[np.int64], n_new: int) -> int | mx.array:
        """Where rings whose next keys have the (R,) positions `starts` put `n_new`: the first slot where all stand alike,
        else (R, n_new)."""
        firsts = starts % self.capacity
        if (firsts == firsts[0]).all():
            return int(firsts[0])
        return mx.array(((firsts[:, None] + np.arange(n_new)) % self.capacity).astype(np.int32))

    def put(self, layer: int, rows: slice, slots: int | mx.array, keys: mx.array, values: mx.array) -> None:
        """Store one layer's new keys and values.

        All rows are put before any is looked at: a ring that somebody still looks at would be copied to be changed.

        Args:
            rows: one row, or all of them.
            slots: from `slots`.
            keys, values: (R, H, n_new, head_dim).
        """
        if self._key_axis == 3:
            keys = keys.swapaxes(2, 3)
        self.keys[layer] = self._write(self.keys[layer], rows, slots, keys, self._key_axis)
        self.values[layer] = self._write(self.values[layer], rows, slots, values, 2)

    def rings(self, layer: int, rows: slice) -> tuple[mx.array, mx.array]:
        """One layer's keys, (R, H, capacity, head_dim) or transposed, and values, (R, H, capacity, head_dim)."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        return (keys, values) if self.n_rows == 1 else (keys[rows], values[rows])

    def copy_row(self, row: int, other: "Tray", other_row: int) -> None:
        """Put the contents of a row of another tray into a row of this one."""
        self.lengths[row] = other.lengths[other_row]
        self.reserve(int(self.lengths[row]))
        for mine, theirs, axis in ((self.keys, other.keys, self._key_axis), (self.values, other.values, 2)):
            for layer, stored in enumerate(theirs):
                if stored is not None:
                    held = (slice(None),) * (axis - 1) + (slice(min(stored.shape[axis], self.capacity)),)
                    ring = self._grown(mine[layer], axis)
                    ring[(row, *held)] = stored[other_row][held]
                    mine[layer] = ring

    def arrays(self) -> list[mx.array]:
        """All stored arrays, to evaluate them together."""
        return [array for array in (*self.keys, *self.values) if array is not None]

    def _write(self, stored: mx.array | None, rows: slice, slots: int | mx.array, new: mx.array, axis: int) -> mx.array:
        ring = self._grown(stored, axis)
        n_new = new.shape[axis]
        if isinstance(slots, int):  # a slice, or two where the ring begins anew
            before = (slice(None),) * (axis - 1)
            n_over = max(0, slots + n_new - self.capacity)
            if n_over:
                ring[(rows, *before, slice(n_over))] = new[(slice(None), *before, slice(n_new - n_over, None))]
                new = new[(slice(None), *before, slice(n_new - n_over))]
            ring[(rows, *before, slice(slots, slots + n_new - n_over))] = new
            return ring
        shape = [len(slots), 1, 1, 1]
        shape[axis] = n_new
        return mx.put_along_axis(ring, mx.broadcast_to(slots.reshape(shape), new.shape), new, axis=axis)

    def _grown(self, stored: mx.array | None, axis: int) -> mx.array:
        held = 0 if stored is None else stored.shape[axis]
        if stored is not None and held == self.capacity:
            return stored
        shape = [self.n_rows, self.config.n_kv_heads, self.config.head_dim]
        shape.insert(axis, self.capacity - held)
        room = mx.zeros(shape, self.dtype)
        return room if stored is None else mx.concatenate([stored, room], axis=axis)


class Ring:
    """One stream's row of a tray."""

    def __init__(self, tray: Tray, row: int) -> None:
        self.tray = tray
        self.row = row

    def __del__(self) -> None:
        self.tray.free_row(self.row)

    @property
    def length(self) -> int:
        """Positions held to be written, without those taken back."""
        return int(self.tray.lengths[self.row])

    @property
    def position(self) -> int:
        """Rotary position of the next key."""
        return int(self.tray.first_positions[self.row]) + self.length

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held for this stream."""
        return self.tray.nbytes // self.tray.n_rows

    def reserve(self, n_new: int) -> None:
        """Have the tray make room for `n_new` positions that will be put."""
        self.tray.reserve(self.length + n_new)

    def extend(self, n_new: int) -> None:
        """Go on by `n_new` positions, to be put in every layer."""
        if not 1 <= n_new <= self.tray.max_chunk:
            raise ValueError(f"a chunk has 1 to {self.tray.max_chunk} positions, not {n_new}")
        self.reserve(n_new)
        self.tray.lengths[self.row] += n_new

    def rollback(self, n: int) -> None:
        """Take the last `n` positions back; they must be of the last chunk."""
        self.tray.lengths[self.row] -= n

    def fork(self, tray: Tray) -> "Ring":
        """A ring in a free row of `tray` that goes on from here by itself."""
        other = tray.take_row(int(self.tray.first_positions[self.row]))
        tray.copy_row(other.row, self.tray, self.row)
        return other
