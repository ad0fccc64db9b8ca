"""New positions of several streams on their way through a transformer, one behind another in one matrix.

All that works position by position (norms, projections, feed-forward) sees only the (N, dim) matrix; attention is where
the streams part. So a batch needs no padding, whatever each stream brings: one position, a piece of a file, or guesses to
be verified. What a stream gets does not depend on who shares the matrix.

Streams of one tray are attended together if most of its rows have something new; rows that bring less than others are
filled up with positions that nobody sees and that the next chunk overwrites.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.kernels import Kernels
from voxpipe.model.rope import rotate, rotation

Indices = NDArray[np.int64]


class Step(Protocol):
    """What a layer needs of the call that it takes part in."""

    kernels: Kernels

    def attend(self, qkv: mx.array, layer: int) -> mx.array:
        """(N, (n_heads + 2 n_kv_heads) head_dim) -> (N, n_heads head_dim); stores the new keys and values."""


class Body(Protocol):
    """The layers of a transformer: (N, dim) -> (N, dim).

    Args:
        scales: (n_layers, 1 or N, dim) factors, if the layers take any.
    """

    def __call__(self, x: mx.array, scales: mx.array | None, step: Step) -> mx.array: ...


class Positions(Protocol):
    """The new positions of one call, in whatever layout."""

    def run(self, body: Body, x: mx.array, scales: mx.array | None = None) -> mx.array:
        """Send the (N, dim) new positions through the layers, in the order of their pieces."""


@dataclass(frozen=True)
class Group:
    """Rows of one tray that are attended together."""

    tray: Tray
    rows: slice
    starts: Indices  # (R,) position of each row's first new key
    index: Indices  # (R, L) row of the matrix that stands there
    valid: NDArray[np.bool_]  # (R, L) whether it is new, and not there to fill up
    mask: mx.array


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
        heads = [(len(positions), n, config.head_dim) for n in (config.n_heads, config.n_kv_heads)]
        self._own, self._other = (
            mx.concatenate([mx.broadcast_to(x * query_scale, heads[0]), mx.broadcast_to(x, heads[1])], axis=1)
            for x in (own, other)
        )

    def run(self, body: Body, x: mx.array, scales: mx.array | None = None) -> mx.array:
        """Send the (N, dim) new positions through the layers.

        Args:
            scales: (n_layers, 1 or N, dim) factors for `body`.
        """
        return body(x, scales, self)

    def attend(self, qkv: mx.array, layer: int) -> mx.array:
        """(N, (n_heads + 2 n_kv_heads) head_dim) -> (N, n_heads head_dim); stores the new keys and values."""
        config = self._config
        n_rotated = config.n_heads + config.n_kv_heads
        qkv = qkv.reshape(qkv.shape[0], -1, config.head_dim)
        rotated, v = rotate(qkv[:, :n_rotated], self._own, self._other), qkv[:, n_rotated:]
        queries = []
        for group in self._groups:
            q_and_k = _rows(rotated, group.index)
            queries.append(q_and_k[:, :, : config.n_heads])
            keys, values = q_and_k[:, :, config.n_heads :].swapaxes(1, 2), _rows(v, group.index).swapaxes(1, 2)
            group.tray.put(layer, group.rows, group.starts, keys, values)
        seen = []
        for group, q in zip(self._groups, queries, strict=True):
            out = self.kernels.attend(q, *group.tray.rings(layer, group.rows), group.mask)
            seen.append(out.reshape(-1, out.shape[-1]))
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
    return Group(tray, rows, starts, index, valid, kernels.mask(tray.visible(lengths, longest), config, tray.dtype))


def _rows(x: mx.array, index: Indices) -> mx.array:
    """(N, H, D) -> (R, L, H, D): a view where the rows lie together already."""
    first, n = int(index[0, 0]), index.size
    if (index.reshape(-1) == first + np.arange(n)).all():
        return x[first : first + n].reshape(*index.shape, *x.shape[1:])
    return x[mx.array(index)]
