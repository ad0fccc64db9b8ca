"""The text decoder: one step per 80 ms, told by the delay how long it may wait before it commits to a word.

The delay reaches every layer as a factor on the input of its feed-forward block. It is constant for a stream, so
`delay_scales` is computed once and passed in.
"""

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from voxpipe.config import DecoderConfig
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.dense import Calls, positions
from voxpipe.model.kernels import GpuKernels, Kernels
from voxpipe.model.layers import Attention, SwiGLU, gelu
from voxpipe.model.pack import Step


def time_embedding(n_delay_tokens: int, dim: int) -> mx.array:
    """(dim,) float32 sinusoids of the delay in tokens, cosines first."""
    inverse = np.exp(-math.log(10_000.0) * np.arange(dim // 2) / (dim // 2))
    angles = n_delay_tokens * inverse
    return mx.array(np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32))


class DelayModulation(nn.Module):
    """Bottleneck that turns the delay's embedding into one factor per channel."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.dim, config.ada_dim, bias=False)
        self.up = nn.Linear(config.ada_dim, config.dim, bias=False)

    def __call__(self, t_cond: mx.array) -> mx.array:
        """(dim,) float32 -> (dim,) float32, whatever the weights' type: it is computed once per stream."""
        hidden = gelu(t_cond @ self.down.weight.astype(mx.float32).T)
        return 1.0 + hidden @ self.up.weight.astype(mx.float32).T


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, bias=False)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ada = DelayModulation(config)
        self.mlp = SwiGLU(config.dim, config.hidden_dim, bias=False)

    def __call__(self, x: mx.array, scale: mx.array, step: Step, layer: int) -> mx.array:
        x = x + self.attention(self.attention_norm(x), step, layer)
        return x + self.mlp(self.ffn_norm(x) * scale, step)


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self._config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = [DecoderLayer(config) for _ in range(config.n_layers)]
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self._calls: Calls = {}

    def forget_calls(self) -> None:
        """Have the layers traced anew: something about them has changed."""
        self._calls.clear()

    def make_tray(self, kernels: Kernels, *, max_tokens: int, n_rows: int = 1, lane: int = 0) -> Tray:
        """Caches of `n_rows` streams, for calls of at most `max_tokens` positions of each."""
        return Tray(
            self._config,
            n_rows=n_rows,
            max_chunk=max_tokens,
            dtype=self.norm.weight.dtype,
            transposed_keys=kernels.transposed_keys,
            doubles=isinstance(kernels, GpuKernels),
            lane=lane,
        )

    def delay_scales(self, n_delay_tokens: int) -> mx.array:
        """(n_layers, dim) factors of one delay, in the weights' type so that nothing is promoted."""
        t_cond = time_embedding(n_delay_tokens, self._config.dim)
        scales = mx.stack([layer.ada(t_cond) for layer in self.layers])
        return scales.astype(self.norm.weight.dtype)

    def __call__(
        self, x: mx.array, scales: mx.array, pieces: Sequence[tuple[Ring, int]], kernels: Kernels
    ) -> Iterator[mx.array]:
        """Process the next positions of several streams.

        Args:
            x: (N, dim) audio embedding + token embedding.
            scales: (n_layers, 1 or N, dim): `delay_scales` of all, or of each position.
            pieces: each stream's ring, which is advanced, and how many of the N positions it brings.

        Yields:
            What each layer makes of them; at last (N, dim) normalised hidden states, for `logits`.
        """
        return positions(self._config, kernels, pieces, self._calls).run(self._through, x, scales)

    def _through(self, x: mx.array, scales: mx.array | None, step: Step) -> Iterator[mx.array]:
        assert scales is not None
        for index, layer in enumerate(self.layers):
            x = layer(x, scales[index], step, index)
            yield x
        yield self.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, dim) -> (N, vocab_size) through the tied embedding."""
        return self.embed_tokens.as_linear(hidden)
