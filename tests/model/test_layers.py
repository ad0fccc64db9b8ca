"""Joined linear maps give what the maps give one by one, whatever they are quantized to."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tests.model.test_cache import config
from tests.random_checkpoints import Uniform
from voxpipe.model.layers import Attention, Joined, SwiGLU, joined
from voxpipe.model.rope import halves_first

N_INPUTS = 128


def linear(
    seed: int, n_outputs: int, *, bias: bool = False, bits: int | None = None, group_size: int = 64
) -> nn.Module:
    uniform = Uniform(seed)
    plain = nn.Linear(N_INPUTS, n_outputs, bias=bias)
    plain.weight = mx.array(uniform(n_outputs, N_INPUTS))
    if bias:
        plain.bias = mx.array(uniform(n_outputs))
    return plain if bits is None else plain.to_quantized(group_size=group_size, bits=bits)


X = mx.array(Uniform(99)(5, N_INPUTS))
CASES: dict[str, tuple[list[dict[str, object]], type]] = {
    "plain": ([{}, {}, {}], nn.Linear),
    "plain with biases": ([{"bias": True}] * 3, nn.Linear),
    "plain, the first without a bias": ([{}, {"bias": True}, {}], nn.Linear),
    "plain, the middle without a bias": ([{"bias": True}, {}, {"bias": True}], nn.Linear),
    "quantized": ([{"bits": 4}] * 3, nn.QuantizedLinear),
    "quantized with biases": (
        [{"bits": 8, "bias": True}, {"bits": 8}, {"bits": 8, "bias": True}],
        nn.QuantizedLinear,
    ),
    "of different bits": ([{"bits": 4}, {"bits": 8, "bias": True}, {"bits": 4}], Joined),
    "of different groups": ([{"bits": 4}, {"bits": 4, "group_size": 32}, {"bits": 4}], Joined),
    "partly quantized": ([{"bits": 4}, {"bias": True}, {"bits": 4, "bias": True}], Joined),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_maps_equal_each_alone(name: str) -> None:
    options, kind = CASES[name]

    def maps() -> list[nn.Module]:
        return [linear(seed, n, **one) for seed, (n, one) in enumerate(zip((32, 64, 96), options, strict=True))]  # type: ignore[arg-type]

    whole = joined(maps())
    assert type(whole) is kind
    got = np.array(whole(X))
    assert got.shape == (5, 32 + 64 + 96)
    np.testing.assert_allclose(got, np.concatenate([np.array(one(X)) for one in maps()], axis=-1), atol=1e-5)


def biased(attention: Attention, names: Sequence[str]) -> None:
    for seed, name in enumerate(names):
        one = getattr(attention, name)
        one.weight = mx.array(Uniform(seed)(*one.weight.shape))
        if "bias" in one:
            one.bias = mx.array(Uniform(50 + seed)(*one.bias.shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [None, 4])
def test_fused_attention_has_queries_and_keys_by_halves_and_values_as_they_were(bits: int | None, bias: bool) -> None:
    sizes = config(10, dim=N_INPUTS)
    attention = Attention(sizes, bias=bias)
    names = ("q_proj", "k_proj", "v_proj")
    biased(attention, names)
    if bits is not None:
        for name in names:
            setattr(attention, name, getattr(attention, name).to_quantized(group_size=64, bits=bits))
    q, k, v = (np.array(getattr(attention, name)(X)) for name in names)
    q = q[:, halves_first(sizes.n_heads, sizes.head_dim)]
    k = k[:, halves_first(sizes.n_kv_heads, sizes.head_dim)]
    attention.fuse()
    assert not set(names) & set(attention)
    np.testing.assert_allclose(np.array(attention.qkv(X)), np.concatenate([q, k, v], axis=1), atol=1e-5)


def test_fused_feed_forward_has_the_gate_before_the_input() -> None:
    mlp = SwiGLU(N_INPUTS, 48, bias=True)
    expected = np.concatenate([np.array(mlp.gate_proj(X)), np.array(mlp.up_proj(X))], axis=1)
    mlp.fuse()
    assert not {"gate_proj", "up_proj"} & set(mlp)
    np.testing.assert_allclose(np.array(mlp.gate_up(X)), expected, atol=1e-6)
