"""The transformer parts that encoder and decoder share: attention over a ring cache, and the gated feed-forward."""

import mlx.core as mx
import mlx.nn as nn

from voxpipe.config import AttentionConfig
from voxpipe.model.cache import Chunk, RingCache
from voxpipe.model.rope import rotate


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and a sliding window.

    Args:
        bias: whether the query, value and output projections have one (keys never do, where it would cancel out).
    """

    def __init__(self, config: AttentionConfig, *, bias: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=bias)

    def __call__(self, x: mx.array, chunk: Chunk, cache: RingCache, layer: int) -> mx.array:
        """(B, L, dim) -> (B, L, dim); stores the new keys and values in the cache."""
        B, L, _ = x.shape
        q = rotate(self.q_proj(x).reshape(B, L, self.n_heads, self.head_dim), chunk.turn)
        k = rotate(self.k_proj(x).reshape(B, L, self.n_kv_heads, self.head_dim), chunk.turn)
        v = self.v_proj(x).reshape(B, L, self.n_kv_heads, self.head_dim)
        keys, values = cache.update(layer, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), chunk)
        seen = mx.fast.scaled_dot_product_attention(
            q.transpose(0, 2, 1, 3), keys, values, scale=self.scale, mask=chunk.mask
        )  # (B, H, L, head_dim)
        return self.o_proj(seen.transpose(0, 2, 1, 3).reshape(B, L, -1))


class SwiGLU(nn.Module):
    """Gated feed-forward; `bias` is that of the down projection, the only one that may have it."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))
