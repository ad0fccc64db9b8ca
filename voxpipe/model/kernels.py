"""The two operations that are worth computing in another way on another machine: attention and the gated activation.

`Kernels` uses MLX's own, and `GpuKernels` gives its attention the form that is fused there. `BaseTwoKernels` is for MLX's
CPU backend on Linux, whose exponential takes 12 to 18 ns an element, more than the matrix products around it: 2^x through
`mx.power` takes 4.5.
"""

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import AttentionConfig

Booleans = NDArray[np.bool_] | mx.array
LOG2_E = math.log2(math.e)
UNSEEN = -1e30  # as a base-two score
LEAST = -60.0  # 2^-60 is nothing beside the largest weight, 1, and far from the subnormal numbers, which are slow


class Kernels:
    """Attention and activation with MLX's fused operations.

    Attributes:
        transposed_keys: `attend` takes keys as (R, n_kv_heads, head_dim, capacity).
    """

    transposed_keys = False

    def query_scale(self, config: AttentionConfig) -> float:
        """What queries are multiplied by, with their rotation, before `attend`."""
        return config.head_dim**-0.5

    def mask(self, visible: Booleans, config: AttentionConfig, dtype: mx.Dtype) -> mx.array:
        """(R, L, capacity) of booleans in the form that `attend` takes for queries of a type."""
        return mx.array(visible)[:, None]

    def attend(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
        """Attention of R streams.

        Args:
            q: (R, n_heads, L, head_dim), scaled.
            keys, values: (R, n_kv_heads, capacity, head_dim), the keys maybe transposed.
            mask: from `mask`.

        Returns:
            (R, n_heads, L, head_dim).
        """
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=mask)

    def gated(self, gate_up: mx.array, *, axis: int = -1) -> mx.array:
        """SwiGLU's activation: gate and input, behind each other along an axis, give half of it."""
        gate, up = mx.split(gate_up, 2, axis=axis)
        return gate * mx.sigmoid(gate) * up


class GpuKernels(Kernels):
    """MLX's operations for a GPU, on whole trays whose layers are traced (see `dense`).

    Args:
        folded: make the queries of a key's head one sequence and add the mask to the scores: the only form in which MLX's CUDA
            backend fuses masked attention (cuDNN's). Metal's kernels take heads and booleans as they are.
        compiles: trace the layers; without it they are evaluated one operation after another.
    """

    def __init__(self, *, folded: bool, compiles: bool = True) -> None:
        self.compiles = compiles
        self._folded = folded

    def query_scale(self, config: AttentionConfig) -> float:
        return 1.0  # `attend` scales

    def mask(self, visible: Booleans, config: AttentionConfig, dtype: mx.Dtype) -> mx.array:
        if not self._folded:
            return super().mask(visible, config, dtype)
        scores = mx.where(mx.array(visible), mx.array(0.0, dtype), mx.array(-math.inf, dtype))
        return mx.tile(scores, (1, config.n_heads // config.n_kv_heads, 1))[:, None]

    def attend(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
        grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1]) if self._folded else q
        seen = mx.fast.scaled_dot_product_attention(grouped, keys, values, scale=q.shape[-1] ** -0.5, mask=mask)
        return seen.reshape(q.shape)


class BaseTwoKernels(Kernels):
    """The same with powers of two in place of exponentials, in float32.

    A few queries by transposed keys is a product that BLAS does in place, in a third of the time.
    """

    transposed_keys = True

    def query_scale(self, config: AttentionConfig) -> float:
        return LOG2_E * config.head_dim**-0.5

    def mask(self, visible: Booleans, config: AttentionConfig, dtype: mx.Dtype) -> mx.array:
        n_groups = config.n_heads // config.n_kv_heads  # `attend` treats the queries of a key's head as one matrix
        scores = np.where(visible, np.float32(0.0), np.float32(UNSEEN))
        return mx.array(np.tile(scores, (1, n_groups, 1))[:, None])

    def attend(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
        scores = q.reshape(len(q), keys.shape[1], -1, q.shape[-1]) @ keys + mask
        weights = mx.power(2.0, mx.maximum(scores - scores.max(axis=-1, keepdims=True), LEAST))
        return ((weights @ values) / weights.sum(axis=-1, keepdims=True)).reshape(q.shape)

    def gated(self, gate_up: mx.array, *, axis: int = -1) -> mx.array:
        gate, up = mx.split(gate_up, 2, axis=axis)
        return gate * up / (1.0 + mx.power(1 / math.e, gate))
