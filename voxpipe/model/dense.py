"""New positions of several streams laid out for a GPU: whole trays, in shapes that come again.

Every row of a tray gets as many places as the row that brings most, and those without a new position are computed like the
others, seen by nobody, and overwritten by the next chunk. A GPU reads its weights for 128 rows in the time it takes for
one; what limits it is the host that hands it one operation after another. So the layers are traced once for each shape
(`mx.compile`), and masks, slots and rings are arrays that go in and come out, in place.

Source: MLX's documentation of `compile`; measurements in bench/NOTES.md.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from voxpipe.config import AttentionConfig
from voxpipe.model.cache import Ring, Tray, visible
from voxpipe.model.kernels import GpuKernels, Kernels
from voxpipe.model.pack import Body, Pack, Positions, Projection
from voxpipe.model.rope import rotate, rotation

SIZES = (1, 2, 3, 4, 6, 8, 16, 32, 64)  # places of a row: others are rounded up, since every size is traced by itself
Plan = tuple[tuple[int, ...], int]  # the rows of each tray, and the places of every row
Rings = list[tuple[list[mx.array], list[mx.array]]]  # of each tray, the keys and values of its layers
Calls = dict[Plan, Callable[..., tuple[mx.array, Rings]]]


class TracedStep:
    """What the layers see while they are traced.

    Args:
        plan: the places of a tray stand behind each other in the matrix, row by row.
        arrays: rotation factors `own` and `other`, and of each tray `slots` and `lengths`.
        rings: are replaced by what they are afterwards.
    """

    def __init__(
        self, config: AttentionConfig, kernels: GpuKernels, plan: Plan, arrays: dict[str, Any], rings: Rings
    ) -> None:
        self.kernels: Kernels = kernels
        self.rings = [(list(keys), list(values)) for keys, values in rings]
        self._config = config
        self._plan = plan
        self._own, self._other = arrays["own"], arrays["other"]
        self._slots = arrays["slots"]
        self._masks = [
            kernels.mask(visible(mx, lengths, plan[1], keys[0].shape[2], config.sliding_window), config, keys[0].dtype)
            for lengths, (keys, _) in zip(arrays["lengths"], rings, strict=True)
        ]

    def attend(self, project: Projection, x: mx.array, layer: int) -> mx.array:
        """(N, dim) -> (N, n_heads head_dim); stores the new keys and values."""
        config = self._config
        n_rotated = config.n_heads + config.n_kv_heads
        qkv = project(x).reshape(len(x), -1, config.head_dim)
        rotated, v = rotate(qkv[:, :n_rotated], self._own, self._other), qkv[:, n_rotated:]
        queries = []
        first, n_new = 0, self._plan[1]
        for tray, slots, n_rows in zip(self.rings, self._slots, self._plan[0], strict=True):
            places = slice(first, first + n_rows * n_new)
            first = places.stop
            q_and_k, new_v = (x[places].reshape(n_rows, n_new, -1, config.head_dim) for x in (rotated, v))
            queries.append(q_and_k[:, :, : config.n_heads])
            new = (q_and_k[:, :, config.n_heads :].swapaxes(1, 2), new_v.swapaxes(1, 2))
            index = mx.broadcast_to(slots, new[0].shape)
            for rings, update in zip(tray, new, strict=True):
                rings[layer] = mx.put_along_axis(rings[layer], index, update, axis=2)
        seen = []
        for q, (keys, values), mask in zip(queries, self.rings, self._masks, strict=True):
            out = self.kernels.attend(q.swapaxes(1, 2), keys[layer], values[layer], mask)
            seen.append(out.swapaxes(1, 2).reshape(-1, config.n_heads * config.head_dim))
        return seen[0] if len(seen) == 1 else mx.concatenate(seen)


def plan_of(pieces: Sequence[tuple[Ring, int]]) -> tuple[list[Tray], Plan]:
    """The trays of a call, and what it computes for rings that bring so many positions."""
    trays = list({id(ring.tray): ring.tray for ring, _ in pieces}.values())
    longest = max(n for _, n in pieces)
    return trays, (
        tuple(tray.n_rows for tray in trays),
        min(next(size for size in SIZES if size >= longest), trays[0].max_chunk),
    )


class DensePack:
    """The new positions of one call; interchangeable with `Pack`.

    Args:
        pieces: each stream's ring and how many positions it brings; the rings are extended.
        calls: what has been traced for these layers so far, which is added to.
    """

    def __init__(
        self, config: AttentionConfig, kernels: GpuKernels, pieces: Sequence[tuple[Ring, int]], calls: Calls
    ) -> None:
        self._config = config
        self._kernels = kernels
        self._calls = calls
        self._trays, self._plan = plan_of(pieces)
        n_new = self._plan[1]
        self._n_places = n_new * sum(self._plan[0])
        begins = dict(zip(map(id, self._trays), np.cumsum([0, *self._plan[0]]), strict=False))  # first row of each tray
        self._places = np.concatenate(  # of each new position
            [n_new * (begins[id(ring.tray)] + ring.row) + np.arange(n) for ring, n in pieces]
        ).astype(np.int32)
        lengths = [tray.lengths.copy() for tray in self._trays]
        for ring, n in pieces:
            ring.extend(n)
        for tray, before in zip(self._trays, lengths, strict=True):
            tray.reserve(int(before.max()) + n_new)
            tray.grow()
        self._arrays = self._facts(lengths)

    def run(self, body: Body, x: mx.array, scales: mx.array | None = None) -> Iterator[mx.array]:
        """Send the (N, dim) new positions through the layers; yields the result alone.

        Args:
            scales: (n_layers, 1 or N, dim) factors for `body`.
        """
        is_full = np.array_equal(self._places, np.arange(self._n_places))
        if not is_full:
            index = np.zeros(self._n_places, np.int32)
            index[self._places] = np.arange(len(self._places))
            x = x[mx.array(index)]
            if scales is not None and scales.shape[1] > 1:
                scales = scales[:, mx.array(index)]
        rings: Rings = [(tray.keys, tray.values) for tray in self._trays]  # type: ignore[misc]  # `grow` has filled them
        out, rings = self._call(body)(x, scales, self._arrays, rings)
        for tray, (keys, values) in zip(self._trays, rings, strict=True):
            tray.keys, tray.values = list(keys), list(values)
        yield out if is_full else out[mx.array(self._places)]

    def _call(self, body: Body) -> Callable[..., tuple[mx.array, Rings]]:
        if self._plan not in self._calls:
            config, kernels, plan = self._config, self._kernels, self._plan

            def call(
                x: mx.array, scales: mx.array | None, arrays: dict[str, Any], rings: Rings
            ) -> tuple[mx.array, Rings]:
                step = TracedStep(config, kernels, plan, arrays, rings)
                *_, out = body(x, scales, step)
                return out, step.rings

            self._calls[plan] = mx.compile(call) if kernels.compiles else call
        return self._calls[self._plan]

    def _facts(self, lengths: list[np.ndarray[Any, np.dtype[np.int64]]]) -> dict[str, Any]:
        """What changes from call to call, as arrays."""
        positions, slots, after = [], [], []
        n_new = self._plan[1]
        for tray, before in zip(self._trays, lengths, strict=True):
            new = before[:, None] + np.arange(n_new)
            positions.append((tray.first_positions[:, None] + new).reshape(-1))
            slots.append(mx.array((new % tray.capacity).astype(np.int32)).reshape(tray.n_rows, 1, n_new, 1))
            after.append(mx.array((before + n_new).astype(np.int32)))
        own, other = rotation(np.concatenate(positions), head_dim=self._config.head_dim, theta=self._config.rope_theta)
        return {"own": own, "other": other, "slots": slots, "lengths": after}


def n_computed(kernels: Kernels, pieces: Sequence[tuple[Ring, int]]) -> int:
    """Positions that a call computes in the layout that suits the kernels, those that fill up rows included."""
    if isinstance(kernels, GpuKernels):
        n_rows, n_new = plan_of(pieces)[1]
        return sum(n_rows) * n_new
    return sum(n for _, n in pieces)


def positions(config: AttentionConfig, kernels: Kernels, pieces: Sequence[tuple[Ring, int]], calls: Calls) -> Positions:
    """The new positions of a call in the layout that suits the kernels."""
    if isinstance(kernels, GpuKernels):
        return DensePack(config, kernels, pieces, calls)
    return Pack(config, kernels, pieces)
