"""Rotary positions: exact from the first second to the first year."""

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.model import reference
from tests.random_checkpoints import Uniform
from voxpipe.model.rope import halves_first, rotate, rotation

THETA = 1e6
FAR = [0, 10_000, 10_000_000, 1_000_000_000]  # one billion encoder frames: 231 days


def turned(x: NDArray[np.float32], positions: NDArray[np.int64], dtype: mx.Dtype = mx.float32) -> NDArray[np.float32]:
    """(N, H, D) with neighbouring channels paired, at (N,)."""
    n_heads, head_dim = x.shape[1:]
    order = halves_first(n_heads, head_dim)
    by_halves = x.reshape(len(x), -1)[:, order].reshape(x.shape)
    factors = rotation(positions, head_dim=head_dim, theta=THETA)
    got = np.array(rotate(mx.array(by_halves).astype(dtype), *factors).astype(mx.float32))
    return got.reshape(len(x), -1)[:, np.argsort(order)].reshape(x.shape)


@pytest.mark.parametrize("head_dim", [2, 12, 64, 128])
@pytest.mark.parametrize("first", FAR)
def test_equals_float64(first: int, head_dim: int) -> None:
    x = Uniform(1)(10, 3, head_dim)
    positions = first + np.array([0, 1, 2, 3, 4, 7, 8, 9, 10, 11])
    expected = reference.rotate(x.astype(np.float64), positions, THETA)
    np.testing.assert_allclose(turned(x, positions), expected, atol=5e-7)  # float32 rounding of values near 2


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 2), (3, 12), (4, 64)])
def test_halves_first_brings_a_heads_even_channels_before_its_odd_ones(n_heads: int, head_dim: int) -> None:
    order = halves_first(n_heads, head_dim).reshape(n_heads, head_dim)
    for head in range(n_heads):
        first = head * head_dim
        assert order[head].tolist() == [
            *range(first, first + head_dim, 2),
            *range(first + 1, first + head_dim, 2),
        ]


@pytest.mark.parametrize("shift", FAR)
def test_scores_depend_on_distance_only(shift: int) -> None:
    q, k = Uniform(2)(1, 1, 64), Uniform(3)(1, 1, 64)

    def score(distance: int, first: int) -> float:
        at_q, at_k = np.array([first + distance]), np.array([first])
        return float((turned(q, at_q) * turned(k, at_k)).sum())

    for distance in (0, 1, 17, 749):
        assert score(distance, shift) == pytest.approx(score(distance, 0), abs=1e-5)


def test_each_pair_has_its_frequency() -> None:
    """One radian turns (1, 0) to (cos 1, sin 1) in the first pair, and hardly anything in the last."""
    x = np.zeros((1, 1, 8), np.float32)
    x[..., 0::2] = 1.0
    got = turned(x, np.array([1]))[0, 0]
    assert got[:2] == pytest.approx([np.cos(1.0), np.sin(1.0)], abs=1e-7)
    assert got[6:] == pytest.approx([1.0, THETA**-0.75], abs=1e-7)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_low_precision_keeps_its_type_and_rounds_once(dtype: mx.Dtype) -> None:
    x = mx.array(Uniform(4)(4, 2, 16)).astype(dtype)
    factors = rotation(np.arange(10_000_000, 10_000_004), head_dim=16, theta=THETA)
    got = rotate(x, *factors)
    assert got.dtype == dtype
    expected = rotate(x.astype(mx.float32), *factors).astype(dtype)
    assert mx.array_equal(got, expected)
