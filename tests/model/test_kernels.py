"""Attention and gated activation with powers of two against float64 and against MLX's own, at the extremes too."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.model.reference import silu
from tests.model.test_cache import HEAD_DIM, HEADS, KERNELS, KV_HEADS, all_kernels, config
from tests.random_checkpoints import Floats, Uniform
from voxpipe.config import AttentionConfig
from voxpipe.model.kernels import Kernels


def attention(
    kernels: Kernels, sizes: AttentionConfig, q: Floats, k: Floats, v: Floats, visible: NDArray[np.bool_]
) -> Floats:
    """(R, L, H, D), (R, H_kv, capacity, D) twice, (R, L, capacity) -> (R, L, H D)."""
    scaled = mx.array(q).swapaxes(1, 2) * kernels.query_scale(sizes)
    keys = mx.array(k.swapaxes(2, 3) if kernels.transposed_keys else k)
    seen = kernels.attend(scaled, keys, mx.array(v), kernels.mask(visible, sizes, mx.float32))
    return np.array(seen.swapaxes(1, 2).reshape(*q.shape[:2], -1))


def attention64(q: Floats, k: Floats, v: Floats, visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    n_rows, length, n_heads, head_dim = q.shape
    keys, values = (np.repeat(x.astype(np.float64), n_heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("rlhd,rhcd->rhlc", q.astype(np.float64), keys) / np.sqrt(head_dim)
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = np.einsum("rhlc,rhcd->rlhd", weights / weights.sum(axis=-1, keepdims=True), values)
    return np.asarray(seen.reshape(n_rows, length, -1))


def inputs(
    n_rows: int, length: int, capacity: int, *, n_heads: int = HEADS, n_kv_heads: int = KV_HEADS
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    uniform = Uniform(n_rows * 100 + length)
    visible = uniform(n_rows, length, capacity) > 0.3
    visible[:, :, 0] = True  # a query sees itself at least
    return (
        uniform(n_rows, length, n_heads, HEAD_DIM, std=1.5),
        uniform(n_rows, n_kv_heads, capacity, HEAD_DIM, std=1.5),
        uniform(n_rows, n_kv_heads, capacity, HEAD_DIM),
        visible,
    )


@all_kernels
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 2), (6, 2), (3, 3), (8, 1)])
@pytest.mark.parametrize(("n_rows", "length", "capacity"), [(1, 1, 1), (1, 1, 40), (1, 6, 17), (3, 1, 40), (4, 5, 33)])
def test_attention(n_rows: int, length: int, capacity: int, n_heads: int, n_kv_heads: int, kernels: Kernels) -> None:
    sizes = replace(config(10), n_heads=n_heads, n_kv_heads=n_kv_heads)
    values = inputs(n_rows, length, capacity, n_heads=n_heads, n_kv_heads=n_kv_heads)
    np.testing.assert_allclose(attention(kernels, sizes, *values), attention64(*values), atol=3e-6)


@all_kernels
@pytest.mark.parametrize("size", [30.0, 1e3, 1e5, 1e15])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_attention_with_huge_scores_is_finite_and_picks_the_best(size: float, sign: float, kernels: Kernels) -> None:
    """All scores of one sign, each by at least a thirtieth above the next: the best key has all the weight."""
    q, k, v, visible = inputs(2, 3, 20)
    q[:] = 1.0
    rank = np.stack([np.random.default_rng(row).permutation(20) for row in range(2)])
    k[:] = (sign * size * (20 + (rank if sign > 0 else -rank)) / 40)[:, None, :, None]
    got = attention(kernels, config(10), q, k, v, visible)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, attention64(q, k, v, visible), atol=1e-5)


@all_kernels
@pytest.mark.parametrize("score", [-1e6, -100.0, 100.0, 1e6])
def test_what_is_not_visible_has_no_weight_whatever_its_score(score: float, kernels: Kernels) -> None:
    """Loud values behind the mask; the visible scores lie far below or above theirs."""
    q, k, v, visible = inputs(1, 2, 12)
    q[:], k[:] = 1.0, 0.01
    k[:, :, ::2] = -score / 10
    k[:, :, 1::2] = score / 10
    visible[:] = False
    visible[:, :, ::2] = True
    v[:, :, 1::2] = 1e4
    got = attention(kernels, config(10), q, k, v, visible)
    np.testing.assert_allclose(got, attention64(q, k, v, visible), atol=1e-5)


def gated(kernels: Kernels, gate: Floats, up: Floats) -> Floats:
    return np.array(kernels.gated(mx.array(np.concatenate([gate, up], axis=-1))))


@all_kernels
def test_gated_activation(kernels: Kernels) -> None:
    uniform = Uniform(1)
    gate, up = uniform(5, 33, std=4.0), uniform(5, 33, std=2.0)
    expected = silu(gate.astype(np.float64)) * up
    np.testing.assert_allclose(gated(kernels, gate, up), expected, rtol=2e-6, atol=1e-6)


@all_kernels
@pytest.mark.parametrize("gate", [-1e6, -200.0, -127.0, -88.8, -20.0, -0.0, 0.0, 20.0, 88.8, 127.0, 200.0, 1e6])
def test_gated_activation_is_finite_for_any_gate(gate: float, kernels: Kernels) -> None:
    gates, up = np.full((1, 3), gate, np.float32), np.array([[-3.0, 1.0, 1e3]], np.float32)
    got = gated(kernels, gates, up)
    assert np.isfinite(got).all()
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(got, silu(gates.astype(np.float64)) * up, rtol=1e-5, atol=1e-6)


@all_kernels
def test_all_kernels_agree_where_a_network_is_used(kernels: Kernels) -> None:
    values = inputs(3, 4, 60)
    gate, up = Uniform(2)(8, 64, std=3.0), Uniform(3)(8, 64)
    own = KERNELS["own"]
    np.testing.assert_allclose(attention(kernels, config(10), *values), attention(own, config(10), *values), atol=3e-6)
    np.testing.assert_allclose(gated(kernels, gate, up), gated(own, gate, up), rtol=2e-6, atol=1e-6)
