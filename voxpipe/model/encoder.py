"""The causal audio encoder: mel frames to audio embeddings, 80 ms at a time or many at once.

Causal convolutions (100 -> 50 Hz), a windowed transformer, and the adapter that stacks four frames into one embedding
of the decoder's width (12.5 Hz). What a later chunk needs of an earlier one is in `EncoderState`.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from voxpipe.config import MEL_FRAMES_PER_TOKEN, EncoderConfig
from voxpipe.model.cache import Chunk, RingCache
from voxpipe.model.layers import Attention, SwiGLU

FRAMES_PER_TOKEN = 4  # encoder frames (20 ms) per audio embedding
CONV1_CONTEXT = 2  # kernel 3, stride 1
CONV2_CONTEXT = 1  # kernel 3, stride 2: with an even number of new frames the phase never slips


@dataclass
class EncoderState:
    """What one batch of streams carries between chunks."""

    conv1_tail: mx.array  # (B, 2, n_mels) last mel frames
    conv2_tail: mx.array  # (B, 1, dim) last frame of the first convolution
    cache: RingCache


class EncoderLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, bias=True)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config.dim, config.hidden_dim, bias=True)

    def __call__(self, x: mx.array, chunk: Chunk, cache: RingCache, layer: int) -> mx.array:
        x = x + self.attention(self.attention_norm(x), chunk, cache, layer)
        return x + self.mlp(self.ffn_norm(x))


class Adapter(nn.Module):
    """Two linear maps from four stacked encoder frames to one audio embedding."""

    def __init__(self, config: EncoderConfig, output_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FRAMES_PER_TOKEN * config.dim, output_dim, bias=False)
        self.linear_2 = nn.Linear(output_dim, output_dim, bias=False)

    def __call__(self, frames: mx.array) -> mx.array:
        """(B, 4 T, dim) -> (B, T, output_dim)."""
        B, n_frames, _ = frames.shape
        stacked = frames.reshape(B, n_frames // FRAMES_PER_TOKEN, -1)
        return self.linear_2(nn.gelu(self.linear_1(stacked)))


class Encoder(nn.Module):
    def __init__(self, config: EncoderConfig, output_dim: int) -> None:
        super().__init__()
        self._config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, kernel_size=3)
        self.conv2 = nn.Conv1d(config.dim, config.dim, kernel_size=3, stride=2)
        self.layers = [EncoderLayer(config) for _ in range(config.n_layers)]
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.adapter = Adapter(config, output_dim)

    def make_state(self, *, batch: int, max_tokens: int, first_token: int = 0) -> EncoderState:
        """State of `batch` new streams, for calls of at most `max_tokens` audio embeddings."""
        dtype = self.conv1.weight.dtype
        return EncoderState(
            conv1_tail=mx.zeros((batch, CONV1_CONTEXT, self._config.n_mels), dtype),
            conv2_tail=mx.zeros((batch, CONV2_CONTEXT, self._config.dim), dtype),
            cache=RingCache(
                self._config,
                batch=batch,
                max_chunk=max_tokens * FRAMES_PER_TOKEN,
                dtype=dtype,
                first_position=first_token * FRAMES_PER_TOKEN,
            ),
        )

    def __call__(self, mel: mx.array, state: EncoderState) -> mx.array:
        """(B, 8 T, n_mels) mel frames -> (B, T, output_dim) audio embeddings; advances `state`."""
        if mel.shape[1] % MEL_FRAMES_PER_TOKEN:
            raise ValueError(f"{mel.shape[1]} mel frames are not whole tokens of {MEL_FRAMES_PER_TOKEN}")
        x = mx.concatenate([state.conv1_tail, mel.astype(state.conv1_tail.dtype)], axis=1)
        state.conv1_tail = x[:, -CONV1_CONTEXT:]
        x = mx.concatenate([state.conv2_tail, nn.gelu(self.conv1(x))], axis=1)
        state.conv2_tail = x[:, -CONV2_CONTEXT:]
        x = nn.gelu(self.conv2(x))  # (B, 4 T, dim)
        chunk = state.cache.extend(x.shape[1])
        for index, layer in enumerate(self.layers):
            x = layer(x, chunk, state.cache, index)
        return self.adapter(self.norm(x))
