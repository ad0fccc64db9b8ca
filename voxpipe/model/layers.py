"""The transformer parts that encoder and decoder share, on positions packed into one (N, dim) matrix.

A checkpoint has a matrix for queries, keys and values each, and two for gate and input; `fuse` joins them, since a step
reads one large matrix faster than several small ones. Layers hold the checkpoint's form until then and run only after it.
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig
from voxpipe.model.linear import Blocked, side_by_side
from voxpipe.model.pack import Step
from voxpipe.model.rope import halves_first


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and a sliding window.

    Args:
        bias: whether the query, value and output projections have one (keys never do, where it would cancel out).
    """

    def __init__(self, config: AttentionConfig, *, bias: bool) -> None:
        super().__init__()
        self._config = config
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=bias)

    def fuse(self) -> None:
        """Join the projections, with the channels of queries and keys in the order of `rotate`."""
        config = self._config
        q, k, v = (self.pop(name) for name in ("q_proj", "k_proj", "v_proj"))
        q = _reordered(q, halves_first(config.n_heads, config.head_dim))
        k = _reordered(k, halves_first(config.n_kv_heads, config.head_dim))
        self.qkv = joined([q, k, v])

    def __call__(self, x: mx.array, step: Step, layer: int) -> mx.array:
        """(N, dim) -> (N, dim); stores the new keys and values."""
        return self.o_proj(step.attend(self.qkv, x, layer))


class SwiGLU(nn.Module):
    """Gated feed-forward; `bias` is that of the down projection, the only one that may have it."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=bias)

    def fuse(self) -> None:
        """Join gate and input."""
        self.gate_up = joined([self.pop(name) for name in ("gate_proj", "up_proj")])

    def __call__(self, x: mx.array, step: Step) -> mx.array:
        gate_up = self.gate_up
        if isinstance(gate_up, Blocked) and len(gate_up.weight) % 2 == 0:  # gate and input in blocks of their own
            return self.down_proj(side_by_side(step.kernels.gated(gate_up.blocks(x), axis=0)))
        return self.down_proj(step.kernels.gated(gate_up(x)))


def gelu(x: mx.array) -> mx.array:
    """The exact one, not traced: for `nn.gelu`, MLX calls a C++ compiler on a CPU and loads what that has left in /tmp."""
    return x * (0.5 + 0.5 * mx.erf(x * math.sqrt(0.5)))


class Joined(nn.Module):
    """Several linear maps side by side that are quantized in different ways."""

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.maps = list(maps)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([one(x) for one in self.maps], axis=-1)


def joined(maps: Sequence[nn.Module]) -> nn.Module:
    """One linear map with the outputs of several, one behind another; the first of them becomes it."""
    forms = {(type(one), getattr(one, "bits", None), getattr(one, "group_size", None)) for one in maps}
    if len(forms) > 1:
        return Joined(maps)
    whole = maps[0]
    biases = [one.bias if "bias" in one else None for one in maps]
    if any(bias is not None for bias in biases):
        dtype = next(bias.dtype for bias in biases if bias is not None)
        sizes = [one.weight.shape[0] for one in maps]
        whole.bias = mx.concatenate(
            [mx.zeros(size, dtype) if bias is None else bias for bias, size in zip(biases, sizes, strict=True)]
        )
    for name in ("weight", "scales", "biases"):
        if name in whole:
            whole[name] = mx.concatenate([one[name] for one in maps])
    mx.eval(whole.parameters())
    return whole


def _reordered(linear: nn.Module, order: NDArray[np.int64]) -> nn.Module:
    index = mx.array(order)
    for name in ("weight", "bias", "scales", "biases"):
        if name in linear:
            linear[name] = linear[name][index]
    return linear
