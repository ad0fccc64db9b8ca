"""Rotary position embedding, exact at any position.

The angles are computed in float64 on the host, for the few positions of a step, so that a stream of days rotates as
exactly as its first second (float32 angles are off by 0.3 at position 10 million, which encoders reach in 55 hours).

Mistral's weights pair neighbouring channels, (x[2j], x[2j+1]). Here a pair is (x[j], x[j + head_dim / 2]), which turns
by two multiplications and an addition of whole rows; `halves_first` says how the weights are put in that order.
"""

from functools import cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


@cache
def _frequencies(head_dim: int, theta: float) -> NDArray[np.float64]:
    frequencies: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies


def halves_first(n_heads: int, head_dim: int) -> NDArray[np.int64]:
    """Order of a projection's outputs that brings every head's even channels before its odd ones."""
    return np.arange(n_heads * head_dim).reshape(n_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def rotation(positions: NDArray[np.int64], *, head_dim: int, theta: float) -> tuple[mx.array, mx.array]:
    """Factors of `rotate` for (N,) absolute positions: each (N, 1, 2, head_dim / 2) float32."""
    angles = positions[:, None].astype(np.float64) * _frequencies(head_dim, theta)
    cos, sin = np.cos(angles), np.sin(angles)
    own, other = (np.stack(halves, axis=1).astype(np.float32) for halves in ((cos, cos), (-sin, sin)))
    return mx.array(own[:, None]), mx.array(other[:, None])


def rotate(x: mx.array, own: mx.array, other: mx.array) -> mx.array:
    """Turn the pairs of x, (N, H, head_dim) or (H, N, head_dim); computed in float32, returned in x's type.

    Args:
        own, other: (N, 1 or H, 2, head_dim / 2) factors of each channel and of its partner, or with heads first as x.
    """
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * own + halves[..., ::-1, :] * other).astype(x.dtype).reshape(x.shape)
