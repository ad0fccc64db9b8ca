"""The Voxtral Realtime architecture at `tiny`'s size in PyTorch, for training and for streaming-equivalent evaluation.

Parameter names are those of the exported checkpoint (mlx-audio layout); convolution weights are in PyTorch's order
here and are turned at export. The auxiliary heads (`aux`) help training only and are never exported.

Source: mistral-common (mel filters), mlx-audio `voxtral_realtime` (names, order of operations).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

BOS, EOS, PAD, WORD = 1, 2, 32, 33  # PAD: [STREAMING_PAD], WORD: [STREAMING_WORD]
LEFT_PAD = 32  # tokens of silence before the audio
TOKEN_SAMPLES = 1280  # 80 ms: hop 160 x convolution 2 x adapter 4
N_MELS = 128

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class NetworkConfig:
    """Sizes of the network. The defaults give 14.3 M parameters; with a decoder of `dec_ffn` 2048, 18.3 M."""

    dim: int = 256
    enc_layers: int = 12
    enc_heads: int = 4
    enc_ffn: int = 768
    enc_window: int = 384  # frames of 20 ms
    dec_dim: int = 256
    dec_layers: int = 4
    dec_heads: int = 4
    dec_kv: int = 2
    dec_ffn: int = 768
    dec_window: int = 256  # tokens of 80 ms
    head_dim: int = 64
    vocab: int = 1024
    ada: int = 32
    theta: float = 1e6
    n_phonemes: int = 180
    phoneme_layer: int = 8
    teacher_dim: int = 512
    enc_dropout: float = 0.1
    dec_dropout: float = 0.1


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), 1e-5).to(x.dtype)


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (L, head_dim / 2)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions.double()[:, None] * theta**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate interleaved pairs of x (B, H, L, head_dim)."""
    cos, sin = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)


class KeyValueCache:
    """Keys and values of all positions so far; the window is the mask's matter."""

    def __init__(self, batch: int, n_heads: int, length: int, head_dim: int, device: torch.device) -> None:
        self.keys = torch.zeros(batch, n_heads, length, head_dim, device=device)
        self.values = torch.zeros_like(self.keys)
        self.offset = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.offset + keys.shape[2]
        self.keys[:, :, self.offset : end] = keys
        self.values[:, :, self.offset : end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    def __init__(self, dim: int, *, n_heads: int, n_kv_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=bias)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=bias)

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend, cache: KeyValueCache | None = None
    ) -> Tensor:
        B, L, _ = x.shape
        q = self.wq(x).view(B, L, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(B, L, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(B, L, self.n_kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.extend(k, v)
        if self.n_kv_heads != self.n_heads:
            k = k.repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            v = v.repeat_interleave(self.n_heads // self.n_kv_heads, 1)
        mixed: Tensor = self.wo(attend(q, k, v.to(q.dtype)).transpose(1, 2).reshape(B, L, -1))
        return mixed


class EncoderLayer(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.dim)
        self.attention = Attention(c.dim, n_heads=c.enc_heads, n_kv_heads=c.enc_heads, head_dim=c.head_dim, bias=True)
        self.ffn_norm = RMSNorm(c.dim)
        self.feed_forward_w1 = nn.Linear(c.dim, c.enc_ffn, bias=False)
        self.feed_forward_w3 = nn.Linear(c.dim, c.enc_ffn, bias=False)
        self.feed_forward_w2 = nn.Linear(c.enc_ffn, c.dim)
        self.dropout = c.enc_dropout

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        mixed = self.attention(self.attention_norm(x), table, attend)
        x = x + F.dropout(mixed, self.dropout, self.training)
        h = self.ffn_norm(x)
        h = self.feed_forward_w2(F.silu(self.feed_forward_w1(h)) * self.feed_forward_w3(h))
        return x + F.dropout(h, self.dropout, self.training)


class CausalConv(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, 3, stride=stride)
        self.padding = 3 - stride

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(F.pad(x, (self.padding, 0))))


class Encoder(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.c = c
        self.conv_layers_0_conv = CausalConv(N_MELS, c.dim, 1)
        self.conv_layers_1_conv = CausalConv(c.dim, c.dim, 2)
        self.transformer_layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.enc_layers))
        self.transformer_norm = RMSNorm(c.dim)
        self.audio_language_projection_0 = nn.Linear(4 * c.dim, c.dec_dim, bias=False)
        self.audio_language_projection_2 = nn.Linear(c.dec_dim, c.dec_dim, bias=False)

    def forward(self, mel: Tensor, attend: Attend) -> tuple[Tensor, Tensor, Tensor]:
        """Encode mel (B, 128, F).

        Returns:
            The decoder's audio embeddings (B, F/8, dec_dim), the last layer (B, F/2, dim) and the layer that the
            phoneme head reads (B, F/2, dim).
        """
        x = self.conv_layers_1_conv(self.conv_layers_0_conv(mel)).transpose(1, 2)  # (B, F/2, dim)
        B, T, _ = x.shape
        table = rope_table(torch.arange(T, device=x.device), self.c.head_dim, self.c.theta)
        middle = x
        for i, layer in enumerate(self.transformer_layers):
            x = layer(x, table, attend)
            if i + 1 == self.c.phoneme_layer:
                middle = x
        x = self.transformer_norm(x)
        stacked = self.audio_language_projection_0(x.reshape(B, T // 4, -1))  # (B, F/8, dec_dim)
        return self.audio_language_projection_2(F.gelu(stacked)), x, middle


class AdaScale(nn.Module):
    """Delay conditioning: a scale of the feed-forward input from the delay vector."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.ada_down = nn.Linear(dim, rank, bias=False)
        self.ada_up = nn.Linear(rank, dim, bias=False)

    def forward(self, t_cond: Tensor) -> Tensor:
        scale: Tensor = self.ada_up(F.gelu(self.ada_down(t_cond)))
        return scale


class DecoderLayer(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.dec_dim)
        self.attention = Attention(c.dec_dim, n_heads=c.dec_heads, n_kv_heads=c.dec_kv, head_dim=c.head_dim, bias=False)
        self.ffn_norm = RMSNorm(c.dec_dim)
        self.ada_rms_norm_t_cond = AdaScale(c.dec_dim, c.ada)
        self.feed_forward_w1 = nn.Linear(c.dec_dim, c.dec_ffn, bias=False)
        self.feed_forward_w3 = nn.Linear(c.dec_dim, c.dec_ffn, bias=False)
        self.feed_forward_w2 = nn.Linear(c.dec_ffn, c.dec_dim, bias=False)
        self.dropout = c.dec_dropout

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        attend: Attend,
        t_cond: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(x), table, attend, cache)
        x = x + F.dropout(mixed, self.dropout, self.training)
        h = self.ffn_norm(x)
        h = h * (1 + self.ada_rms_norm_t_cond(t_cond)).to(h.dtype)[:, None]
        h = self.feed_forward_w2(F.silu(self.feed_forward_w1(h)) * self.feed_forward_w3(h))
        return x + F.dropout(h, self.dropout, self.training)


class Decoder(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.c = c
        self.tok_embeddings = nn.Embedding(c.vocab, c.dec_dim)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.dec_layers))
        self.norm = RMSNorm(c.dec_dim)

    def forward(self, x: Tensor, attend: Attend, t_cond: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        offset = caches[0].offset if caches else 0
        positions = torch.arange(offset, offset + x.shape[1], device=x.device)
        table = rope_table(positions, self.c.head_dim, self.c.theta)
        for i, layer in enumerate(self.layers):
            x = layer(x, table, attend, t_cond, caches[i] if caches else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, h: Tensor) -> Tensor:
        return F.linear(h, self.tok_embeddings.weight.to(h.dtype))


class AuxiliaryHeads(nn.Module):
    """Heads that only training uses: phonemes at 50 Hz from a middle layer; the teacher's features at 50 Hz and CTC over word
    pieces at 25 Hz from the last."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(c.dim)
        self.phonemes = nn.Linear(c.dim, c.n_phonemes)
        self.teacher = nn.Linear(c.dim, c.teacher_dim)
        self.ctc = nn.Linear(2 * c.dim, c.vocab + 1)


class Network(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.c = c
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.aux = AuxiliaryHeads(c)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=(c.dec_dim if "tok_emb" in name else weight.shape[1]) ** -0.5)
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            if name.endswith(("wo.weight", "feed_forward_w2.weight")):
                weight.data.mul_((2 * (c.enc_layers if "encoder" in name else c.dec_layers)) ** -0.5)
            if "ada_up" in name:
                nn.init.zeros_(weight)

    def delay_vector(self, delay_tokens: Tensor) -> Tensor:
        """Return the sinusoidal vector (B, dec_dim) of delays (B,) in tokens; cosines first."""
        half = self.c.dec_dim // 2
        exponents = torch.arange(half, device=delay_tokens.device, dtype=torch.float32) / half
        angles = delay_tokens.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
        return torch.cat((angles.cos(), angles.sin()), -1)


def window_mask(n_queries: int, n_keys: int, window: int, device: torch.device) -> Tensor:
    """Return the mask by which each of the last n_queries positions sees `window` keys up to itself."""
    query = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None]
    return (key <= query) & (key > query - window)


def masked_attention(mask: Tensor) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class LogMel:
    """Log-mel features of whole signals: (B, n_samples) -> (B, 128, n_samples / 160)."""

    def __init__(self, device: torch.device) -> None:
        self.filters = mel_filters(N_MELS).to(device)  # (201, 128)
        self.window = torch.hann_window(400, device=device)

    def __call__(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(
            samples, 400, 160, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )[..., :-1]
        power = spectrum.real**2 + spectrum.imag**2
        log_mel = torch.log10((self.filters.T @ power).clamp_min(1e-10)).clamp_min(1.5 - 8)
        return (log_mel + 4) / 4


def hz_to_mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))


def mel_filters(n_mels: int) -> Tensor:
    """Return triangular filters (201, n_mels) of unit area up to 8 kHz."""
    corners = mel_to_hz(np.linspace(0, hz_to_mel(8000.0), n_mels + 2))
    bins = 40.0 * np.arange(201)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (corners[2:] - corners[:-2])
    return torch.from_numpy(filters.astype(np.float32))
