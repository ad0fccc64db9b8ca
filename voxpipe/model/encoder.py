"""The causal audio encoder: mel frames to audio embeddings, 80 ms at a time or many at once.

Causal convolutions (100 -> 50 Hz), a windowed transformer, and the adapter that stacks four frames into one embedding
of the decoder's width (12.5 Hz). What a later chunk needs of an earlier one is in `EncoderState`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import EncoderConfig
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.dense import Calls, positions
from voxpipe.model.kernels import GpuKernels, Kernels
from voxpipe.model.layers import Attention, SwiGLU, gelu
from voxpipe.model.pack import Step

FRAMES_PER_TOKEN = 4  # encoder frames (20 ms) per audio embedding
KERNEL = 3  # of both convolutions; the second has stride 2
Floats = NDArray[np.float32]


@dataclass
class EncoderState:
    """What one stream carries between chunks.

    Attributes:
        mel_tail: (3, n_mels) last mel frames: from them the first convolution makes the frame that the second one still
            needs. Zeros before the first chunk.
        begun: whether there was a chunk; before the first frame the second convolution sees zeros, too.
    """

    ring: Ring
    mel_tail: Floats
    begun: bool = False

    def fork(self, tray: Tray) -> "EncoderState":
        """A state in a free row of `tray` that goes on from here by itself."""
        return EncoderState(self.ring.fork(tray), self.mel_tail, self.begun)


class EncoderLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, bias=True)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config.dim, config.hidden_dim, bias=True)

    def __call__(self, x: mx.array, step: Step, layer: int) -> mx.array:
        x = x + self.attention(self.attention_norm(x), step, layer)
        return x + self.mlp(self.ffn_norm(x), step)


class Adapter(nn.Module):
    """Two linear maps from four stacked encoder frames to one audio embedding."""

    def __init__(self, config: EncoderConfig, output_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FRAMES_PER_TOKEN * config.dim, output_dim, bias=False)
        self.linear_2 = nn.Linear(output_dim, output_dim, bias=False)

    def __call__(self, frames: mx.array) -> mx.array:
        """(4 T, dim) -> (T, output_dim)."""
        stacked = frames.reshape(frames.shape[0] // FRAMES_PER_TOKEN, -1)
        return self.linear_2(gelu(self.linear_1(stacked)))


class Encoder(nn.Module):
    def __init__(self, config: EncoderConfig, output_dim: int) -> None:
        super().__init__()
        self._config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, kernel_size=KERNEL)
        self.conv2 = nn.Conv1d(config.dim, config.dim, kernel_size=KERNEL, stride=2)
        self.layers = [EncoderLayer(config) for _ in range(config.n_layers)]
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.adapter = Adapter(config, output_dim)
        self._calls: Calls = {}

    def forget_calls(self) -> None:
        """Have the layers traced anew: something about them has changed."""
        self._calls.clear()

    def make_tray(self, kernels: Kernels, *, max_tokens: int, n_rows: int = 1, lane: int = 0) -> Tray:
        """Caches of `n_rows` streams, for chunks of at most `max_tokens` audio embeddings."""
        return Tray(
            self._config,
            n_rows=n_rows,
            max_chunk=max_tokens * FRAMES_PER_TOKEN,
            dtype=self.norm.weight.dtype,
            transposed_keys=kernels.transposed_keys,
            doubles=isinstance(kernels, GpuKernels),
            lane=lane,
        )

    def make_state(self, tray: Tray, *, first_token: int = 0) -> EncoderState:
        """State of a new stream in a free row of `tray`."""
        ring = tray.take_row(first_token * FRAMES_PER_TOKEN)
        return EncoderState(ring, np.zeros((KERNEL, self._config.n_mels), np.float32))

    def __call__(self, pieces: Sequence[tuple[EncoderState, Floats]], kernels: Kernels) -> Iterator[mx.array]:
        """Encode the next mel frames of several streams.

        Args:
            pieces: each stream's state, which is advanced, and its (8 T, n_mels) frames.

        Yields:
            What each layer makes of them; at last (sum of all T, output_dim) audio embeddings, in the order of the pieces.
        """
        convolved = self._convolve(pieces)
        rings = [(state.ring, len(mel) // 2) for state, mel in pieces]
        for frames in positions(self._config, kernels, rings, self._calls).run(self._through, convolved):
            yield frames
        yield self.adapter(frames)

    def _through(self, x: mx.array, scales: mx.array | None, step: Step) -> Iterator[mx.array]:
        for index, layer in enumerate(self.layers):
            x = layer(x, step, index)
            yield x
        yield self.norm(x)

    def _convolve(self, pieces: Sequence[tuple[EncoderState, Floats]]) -> mx.array:
        """Both convolutions as products with windows of three frames: (sum of 8 T) mel frames -> (sum of 4 T, dim)."""
        windows, second_windows, first_rows = [], [], []
        n_rows = 0
        for state, mel in pieces:
            frames = np.concatenate([state.mel_tail, mel])
            row, size = frames.strides  # (8 T + 1, 3 n_mels): windows of three rows that lie behind each other
            windows.append(np.ndarray((len(mel) + 1, KERNEL * mel.shape[1]), frames.dtype, frames, strides=(row, size)))
            second_windows.append(n_rows + 2 * np.arange(len(mel) // 2)[:, None] + np.arange(KERNEL))
            if not state.begun:
                first_rows.append(n_rows)
            n_rows += len(mel) + 1
            state.mel_tail, state.begun = frames[-KERNEL:], True
        dtype = self.norm.weight.dtype
        x = gelu(_product(self.conv1, mx.array(np.concatenate(windows)).astype(dtype)))
        if first_rows:
            shown = np.ones((n_rows, 1), np.float32)
            shown[first_rows] = 0.0
            x = x * mx.array(shown).astype(dtype)
        return gelu(_product(self.conv2, x[mx.array(np.concatenate(second_windows))]))


def _product(conv: nn.Conv1d, windows: mx.array) -> mx.array:
    """(N, 3, n_inputs) or (N, 3 n_inputs) -> (N, n_outputs)."""
    n_outputs = conv.weight.shape[0]
    return mx.addmm(conv.bias, windows.reshape(len(windows), -1), conv.weight.reshape(n_outputs, -1).T)
