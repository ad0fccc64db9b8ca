"""Rotary position embedding, exact at any position.

The angles are computed in float64 on the host, for the few positions of a step, so that a stream of days rotates as
exactly as its first second (float32 angles are off by 0.3 at position 10 million, which encoders reach in 55 hours).
Pairs are interleaved, (x[2j], x[2j+1]), as in Mistral's weights: read as complex numbers they turn by a multiplication.
"""

from functools import cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


@cache
def _frequencies(head_dim: int, theta: float) -> NDArray[np.float64]:
    frequencies: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies


def rotation(positions: NDArray[np.int64], *, head_dim: int, theta: float) -> mx.array:
    """Return exp(i * angle) for each position.

    Args:
        positions: (B, L) absolute positions.

    Returns:
        (B, L, 1, head_dim / 2) complex64, to be broadcast over heads.
    """
    angles = positions[..., None].astype(np.float64) * _frequencies(head_dim, theta)
    return mx.array(np.exp(1j * angles).astype(np.complex64)[:, :, None])


def rotate(x: mx.array, turn: mx.array) -> mx.array:
    """Turn the pairs of x, (B, L, H, head_dim), by `rotation`; computed in float32, returned in x's type."""
    return (x.astype(mx.float32).view(mx.complex64) * turn).view(mx.float32).astype(x.dtype)
