"""New positions of several streams on their way through a transformer, one behind another in one matrix.

All that works position by position (norms, projections, feed-forward) sees only the (N, dim) matrix; attention is where
the streams part. So a batch needs no padding, whatever each stream brings: one position, a piece of a file, or guesses to
be verified. What a stream gets does not depend on who shares the matrix.

Streams of one tray are attended together if most of its rows have something new; rows that bring less than others are
filled up with positions that nobody sees and that the next chunk overwrites.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.kernels import Kernels
from voxpipe.model.linear import by_heads
from voxpipe.model.rope import rotate, rotation

Indices = NDArray[np.int64]
Projection = Callable[[mx.array], mx.array]


class Step(Protocol):
    """What a layer needs of the call that it takes part in."""

    kernels: Kernels

    def attend(self, project: Projection, x: mx.array, layer: int) -> mx.array:
        """(N, dim) -> (N, n_heads head_dim); stores the new keys and values.

        Args:
            project: (N, dim) -> (N, (n_heads + 2 n_kv_heads) head_dim) queries, keys and values.
        """


class Body(Protocol):
    """The layers of a transformer on (N, dim), one by one: yields what each makes of it, the result last.

    Args:
        scales: (n_layers, 1 or N, dim) factors, if the layers take any.
    """

    def __call__(self, x: mx.array, scales: mx.array | None, step: Step) -> Iterator[mx.array]: ...


class Positions(Protocol):
    """The new positions of one call, in whatever layout."""

    def run(self, body: Body, x: mx.array, scales: mx.array | None = None) -> Iterator[mx.array]:
        """Send the (N, dim) new positions through the layers, in the order of their pieces; yields the result last."""


@dataclass(frozen=True)
class Group:
    """Rows of one tray that are attended together.

    Attributes:
        slots: where each row's new keys are put.
        index: (R, L) row of the matrix that stands there.
        valid: (R, L) whether it is new, and not there to fill up.
        places: `index` as what an array is indexed with.
    """

    tray: Tray
    rows: slice
    slots: int | mx.array
    index: Indices
    valid: NDArray[np.bool_]
    places: slice | mx.array
    mask: mx.array

    def of(self, x: mx.array) -> mx.array:
        """(H, N, head_dim) -> (R, H, L, head_dim)."""
        taken = x[:, self.places]
        if len(self.index) == 1:
            return taken.reshape(1, len(x), -1, x.shape[-1])
        return taken.reshape(len(x), *self.index.shape, -1).swapaxes(0, 1)


class Pack:
    """What all layers share while they process the same new positions.

    Args:
        pieces: each stream's ring and how many positions it brings; the rings are extended.
    """

    def __init__(self, config: AttentionConfig, kernels: Kernels, pieces: Sequence[tuple[Ring, int]]) -> None:
        self.kernels = kernels
        self._config = config
        positions = np.concatenate([ring.position + np.arange(n_new) for ring, n_new in pieces])
        self._groups = list(_groups(config, kernels, pieces))
        places = np.concatenate([np.where(group.valid, group.index, -1).reshape(-1) for group in self._groups])
        in_order = len(places) == len(positions) and bool((places == np.arange(len(places))).all())
        self._order = None if in_order else mx.array(np.argsort(places)[len(places) - len(positions) :])
        own, other = rotation(positions, head_dim=config.head_dim, theta=config.rope_theta)
        query_scale = kernels.query_scale(config)
        self._own, self._other = (
            mx.concatenate(
                [mx.repeat(x * query_scale, config.n_heads, axis=0), mx.repeat(x, config.n_kv_heads, axis=0)]
            )
            for x in (own.swapaxes(0, 1), other.swapaxes(0, 1))
        )

    def run(self, body: Body, x: mx.array, scales: mx.array | None = None) -> Iterator[mx.array]:
        """Send the (N, dim) new positions through the layers; yields what each makes of them.

        Args:
            scales: (n_layers, 1 or N, dim) factors for `body`.
        """
        return body(x, scales, self)

    def attend(self, project: Projection, x: mx.array, layer: int) -> mx.array:
        """(N, dim) -> (N, n_heads head_dim); stores the new keys and values."""
        config = self._config
        n_rotated = config.n_heads + config.n_kv_heads
        qkv = by_heads(project, x, config.head_dim)
        rotated = rotate(qkv[:n_rotated], self._own, self._other)
        q, k, v = rotated[: config.n_heads], rotated[config.n_heads :], qkv[n_rotated:]
        for group in self._groups:
            group.tray.put(layer, group.rows, group.slots, group.of(k), group.of(v))
        seen = [
            self.kernels.attend(group.of(q), *group.tray.rings(layer, group.rows), group.mask)
            .swapaxes(1, 2)
            .reshape(group.index.size, -1)
            for group in self._groups
        ]
        together = seen[0] if len(seen) == 1 else mx.concatenate(seen)
        return together if self._order is None else together[self._order]


def _groups(config: AttentionConfig, kernels: Kernels, pieces: Sequence[tuple[Ring, int]]) -> Iterator[Group]:
    """Extend the rings and divide the pieces into groups."""
    by_tray: dict[int, list[tuple[Ring, int, int]]] = {}
    first = 0
    for ring, n_new in pieces:
        by_tray.setdefault(id(ring.tray), []).append((ring, n_new, first))
        first += n_new
    for members in by_tray.values():
        tray = members[0][0].tray
        longest = max(n_new for _, n_new, _ in members)
        # before any mask, since all are as wide as the tray
        tray.reserve(max(ring.length + n_new for ring, n_new, _ in members))
        if 2 * sum(n_new for _, n_new, _ in members) > tray.n_rows * longest:
            yield _group(config, kernels, tray, slice(0, tray.n_rows), members, longest)
        else:
            for ring, n_new, begin in members:
                rows = slice(ring.row, ring.row + 1)
                yield _group(config, kernels, tray, rows, [(ring, n_new, begin)], n_new)


def _group(
    config: AttentionConfig,
    kernels: Kernels,
    tray: Tray,
    rows: slice,
    members: Sequence[tuple[Ring, int, int]],
    longest: int,
) -> Group:
    starts = tray.lengths[rows].copy()
    index = np.zeros((len(starts), longest), np.int64)
    valid = np.zeros(index.shape, bool)
    for ring, n_new, begin in members:
        row = ring.row - rows.start
        index[row, :n_new] = begin + np.arange(n_new)
        valid[row, :n_new] = True
        ring.extend(n_new)
    lengths = starts + longest
    tray.reserve(int(lengths.max()))
    flat = index.reshape(-1)
    together = slice(int(flat[0]), int(flat[0]) + len(flat))
    places = together if (flat == np.arange(together.start, together.stop)).all() else mx.array(flat)
    mask = kernels.mask(tray.visible(lengths, longest), config, tray.dtype)
    return Group(tray, rows, tray.slots(starts, longest), index, valid, places, mask)
