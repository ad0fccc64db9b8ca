"""Voxtral Realtime over a whole recording in plain float64: no chunks, no caches, no MLX.

Written from the specification, to be compared with. It reads Mistral's tensor names.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tests.random_checkpoints import EMBEDDING_MODULE, WHISPER, Sizes, Tensors

Array = NDArray[np.float64]
erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def rotate(x: Array, positions: NDArray[np.int64], theta: float) -> Array:
    """(L, H, D) turned pair by pair, (x[2j], x[2j+1])."""
    head_dim = x.shape[-1]
    angles = positions[:, None] * theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = odd * cos + even * sin
    return turned


def windowed_attention(q: Array, k: Array, v: Array, window: int) -> Array:
    """(L, H, D) queries over (L, H_kv, D) keys; a query sees `window` keys, itself the last."""
    length, n_heads, head_dim = q.shape
    k, v = (np.repeat(x, n_heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    distance = np.arange(length)[:, None] - np.arange(length)
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v))


class Reference:
    """One checkpoint."""

    def __init__(self, tensors: Tensors, sizes: Sizes) -> None:
        self._tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self._sizes = sizes

    def _linear(self, name: str, x: Array) -> Array:
        bias = self._tensors.get(f"{name}.bias")
        product: Array = x @ self._tensors[f"{name}.weight"].T
        return product if bias is None else product + bias

    def _norm(self, name: str, x: Array) -> Array:
        mean_square = (x**2).mean(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean_square + self._sizes.norm_eps) * self._tensors[f"{name}.weight"])

    def _conv(self, name: str, x: Array, stride: int) -> Array:
        weight = self._tensors[f"{name}.weight"]  # (out, in, 3)
        padded = np.pad(x, ((3 - stride, 0), (0, 0)))
        starts = range(0, len(padded) - 2, stride)
        rows = [np.einsum("oik,ki->o", weight, padded[start : start + 3]) for start in starts]
        return gelu(np.stack(rows) + self._tensors[f"{name}.bias"])

    def _layer(self, name: str, x: Array, n_kv_heads: int, n_heads: int, window: int, scale: Array | float) -> Array:
        length = len(x)
        positions = np.arange(length)
        hidden = self._norm(f"{name}.attention_norm", x)
        q = self._linear(f"{name}.attention.wq", hidden).reshape(length, n_heads, -1)
        k = self._linear(f"{name}.attention.wk", hidden).reshape(length, n_kv_heads, -1)
        v = self._linear(f"{name}.attention.wv", hidden).reshape(length, n_kv_heads, -1)
        theta = self._sizes.rope_theta
        seen = windowed_attention(rotate(q, positions, theta), rotate(k, positions, theta), v, window)
        x = x + self._linear(f"{name}.attention.wo", seen.reshape(length, -1))
        hidden = self._norm(f"{name}.ffn_norm", x) * scale
        gate = silu(self._linear(f"{name}.feed_forward.w1", hidden))
        return x + self._linear(f"{name}.feed_forward.w2", gate * self._linear(f"{name}.feed_forward.w3", hidden))

    def audio_embeds(self, mel: NDArray[np.floating]) -> Array:
        """(8 T, n_mels) -> (T, decoder_dim)."""
        s = self._sizes
        x = self._conv(f"{WHISPER}conv_layers.0.conv", mel.astype(np.float64), 1)
        x = self._conv(f"{WHISPER}conv_layers.1.conv", x, 2)
        for i in range(s.encoder_layers):
            name = f"{WHISPER}transformer.layers.{i}"
            x = self._layer(name, x, s.encoder_heads, s.encoder_heads, s.encoder_window, 1.0)
        x = self._norm(f"{WHISPER}transformer.norm", x).reshape(len(x) // 4, -1)
        x = gelu(self._linear(f"{EMBEDDING_MODULE}audio_language_projection.0", x))
        return self._linear(f"{EMBEDDING_MODULE}audio_language_projection.2", x)

    def delay_scale(self, layer: int, n_delay_tokens: int) -> Array:
        """(decoder_dim,) factor on the input of the layer's feed-forward."""
        half = self._sizes.decoder_dim // 2
        angles = n_delay_tokens * np.exp(-math.log(10_000.0) * np.arange(half) / half)
        t_cond = np.concatenate([np.cos(angles), np.sin(angles)])
        hidden = gelu(self._linear(f"layers.{layer}.ada_rms_norm_t_cond.0", t_cond))
        return 1.0 + self._linear(f"layers.{layer}.ada_rms_norm_t_cond.2", hidden)

    def logits(self, audio_embeds: NDArray[np.floating], tokens: NDArray[np.integer], n_delay_tokens: int) -> Array:
        """(T, decoder_dim) and (T,) -> (T, vocab_size)."""
        s = self._sizes
        embedding = self._tensors[f"{EMBEDDING_MODULE}tok_embeddings.weight"]
        x = audio_embeds.astype(np.float64) + embedding[tokens]
        for i in range(s.decoder_layers):
            scale = self.delay_scale(i, n_delay_tokens)
            x = self._layer(f"layers.{i}", x, s.decoder_kv_heads, s.decoder_heads, s.decoder_window, scale)
        return np.asarray(self._norm("norm", x) @ embedding.T)
