"""Augmentation on the accelerator: from planned pieces of the bank to degraded log-mel features.

`fetch_audio` reads the planned pieces at their rates; `degrade` adds what lies between a mouth and a microphone file: room,
microphone curve, band limits, codecs, noise, babble, music, level, clipping; `warp_and_mask` moves formants and hides parts of
the features; `corrupt_inputs` spoils previous tokens, so that the decoder learns to go on after its own errors.
Every function draws a new degree for every row. All tensors live on one device; nothing here knows words.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import FRAME_SAMPLES, NO_PHONEME, Bank
from .network import LEFT_PAD, N_MELS, PAD, TOKEN_SAMPLES, hz_to_mel, mel_to_hz
from .teacher import HOP

SAMPLE_RATE = 16000
PHONEME_LAG = 1280 + 160  # samples by which phoneme labels trail, so that the causal encoder has heard them
TEACHER_LAG = 3200  # the same for the teacher's features, which know what comes next
TWIN_SHARE = 0.5  # of the first views: how many hear the twins of their pieces too


@dataclass
class Fetched:
    """The planned pieces: samples (B, S) at unit level, and what is known of every 20 or 10 ms of them."""

    samples: Tensor
    phonemes: Tensor  # (B, S / 320), -100 where unknown
    features: Tensor  # (B, S / 320, dim) of the teacher; dim is 0 without one
    taught: Tensor  # (B, S / 320), where `features` hold
    warp: Tensor  # (B, S / 160), formant warp
    speech: Tensor  # (B, S / 160), where speech lies


def views(plan: dict[str, Tensor], n_views: int) -> dict[str, Tensor]:
    """Return every row `n_views` times, the second views behind the first, with what sets the views apart.

    "shift" is the way from a piece to its twin, where the row hears the twin: second views always do; "own_warp" is a formant
    warp of the row.
    """
    seen = {name: tensor.repeat(n_views, *[1] * (tensor.dim() - 1)) for name, tensor in plan.items()}
    n_rows, device = len(seen["twin"]), seen["twin"].device
    hears_twin = coin(n_rows, TWIN_SHARE, device)
    if n_views > 1:
        hears_twin[n_rows // 2 :] = True
    seen["shift"] = seen["twin"] * hears_twin
    seen["own_warp"] = uniform(n_rows, 0.94, 1.06, device) if n_views > 1 else torch.ones(n_rows, 1, device=device)
    return seen


def uniform(n_rows: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(n_rows, 1, device=device) * (high - low) + low


def coin(n_rows: int, chance: float, device: torch.device) -> Tensor:
    return torch.rand(n_rows, 1, device=device) < chance


def fetch_audio(plan: dict[str, Tensor], bank: Bank, n_tokens: int) -> Fetched:
    """Read the planned pieces of `views` from the bank; phonemes and features are those of the piece, never of its twin."""
    device = bank.samples.device
    n_samples = (n_tokens - LEFT_PAD) * TOKEN_SAMPLES
    B = plan["start"].shape[0]
    position = torch.arange(n_samples, device=device)[None].expand(B, n_samples).contiguous()
    piece = torch.searchsorted(plan["start"], position, right=True) - 1
    inside = piece >= 0
    piece = piece.clamp_min(0)
    offset = position - plan["start"].gather(1, piece)
    left = plan["length"].gather(1, piece) - offset
    inside &= left > 0
    read = offset.double() * plan["rate"].gather(1, piece)
    whole = read.floor()
    part = (read - whole).float()
    index = (whole.long() + plan["bank_start"].gather(1, piece)).clamp(1, bank.samples.numel() - 3)
    index = torch.where(inside, index, torch.ones_like(index))
    shift = torch.where(inside, plan["shift"].gather(1, piece), torch.zeros_like(index))
    heard = (index + shift).clamp(max=bank.samples.numel() - 3)
    y0, y1, y2, y3 = (bank.samples[heard + step].float() for step in (-1, 0, 1, 2))  # Catmull-Rom interpolation
    curve = 2 * y0 - 5 * y1 + 4 * y2 - y3 + part * (3 * (y1 - y2) + y3 - y0)
    samples = y1 + 0.5 * part * (y2 - y0 + part * curve)
    gain = bank.inverse_rms[plan["utterance_base"] // FRAME_SAMPLES] * 10 ** (plan["gain_db"] / 20)
    fade = (offset.clamp(max=32).float() / 32) * (left.clamp(0, 32).float() / 32)  # 2 ms against clicks at cuts
    samples = samples * gain.gather(1, piece) * fade * inside
    steps = torch.arange(4 * (n_tokens - LEFT_PAD), device=device) * 320 + 320 - PHONEME_LAG
    at = steps.clamp_min(0)
    labels = bank.phonemes[index[:, at] // FRAME_SAMPLES].long()
    labels = torch.where(inside[:, at] & (steps >= 0), labels, torch.zeros_like(labels))
    labels = torch.where(labels == NO_PHONEME, torch.full_like(labels, -100), labels)
    steps = steps + PHONEME_LAG - TEACHER_LAG
    at = steps.clamp_min(0)
    features = bank.features[index[:, at] // HOP]
    taught = inside[:, at] & (steps >= 0)
    warp = plan["warp"].gather(1, piece[:, ::160]) * plan["own_warp"]
    warp = torch.where(inside[:, ::160], warp, torch.ones((), device=device))
    return Fetched(samples, labels, features, taught, warp, inside[:, ::160])


def random_curve(n_rows: int, n_nodes: int, deviation_db: Tensor | float, axis: Tensor) -> Tensor:
    """Return smooth random curves in dB (n_rows, len(axis)); `axis` runs from 0 to 1."""
    nodes = torch.randn(n_rows, 1, n_nodes, device=axis.device)
    curve = F.interpolate(nodes, size=512, mode="linear", align_corners=True)[:, 0]
    return curve[:, (axis * 511).long()] * deviation_db


def room_response(n_rows: int, device: torch.device) -> Tensor:
    """Return room impulse responses (n_rows, 9600): direct sound, early reflections, a tail that darkens."""
    n_samples = 9600  # 0.6 s
    time_s = torch.arange(n_samples, device=device) / SAMPLE_RATE
    bright_s = uniform(n_rows, 0.05, 0.45, device)
    dark_s = bright_s * uniform(n_rows, 1.0, 2.0, device)
    noise = torch.randn(n_rows, n_samples, device=device)
    dark = F.avg_pool1d(torch.randn(n_rows, 1, n_samples, device=device), 7, 1, 3)[:, 0] * 2.6
    tail = noise * 10 ** (-3 * time_s / bright_s) + dark * 10 ** (-3 * time_s / dark_s)
    tail = tail * (time_s >= uniform(n_rows, 0.001, 0.02, device))
    tail = tail / (tail.square().sum(1, keepdim=True) + 1e-9).sqrt() * 10 ** (uniform(n_rows, -20, 3, device) / 20)
    response = tail * coin(n_rows, 0.5, device)
    when = torch.randint(16, 640, (n_rows, 6), device=device)
    reflections = torch.randn(n_rows, 6, device=device) * 0.35 * coin(n_rows, 0.5, device)
    response.scatter_add_(1, when, reflections * torch.exp(-when / 400))
    response[:, 0] += 1
    return response


def microphone(samples: Tensor) -> Tensor:
    """Apply a room, a random frequency response and a band limit to (B, S)."""
    B, S = samples.shape
    device = samples.device
    hz = torch.linspace(0, 8000, S // 2 + 1, device=device)
    octave_axis = torch.log2(hz.clamp_min(50) / 50) / math.log2(160)
    gain_db = random_curve(B, 10, uniform(B, 1, 7, device), octave_axis) * coin(B, 0.75, device)
    gain_db = gain_db + (octave_axis[None] - 0.6) * uniform(B, -18, 18, device) * coin(B, 0.5, device)
    low_hz = torch.where(coin(B, 0.3, device), uniform(B, 60, 450, device), torch.zeros(B, 1, device=device))
    high_hz = torch.where(coin(B, 0.25, device), uniform(B, 2800, 7500, device), torch.full((B, 1), 9e3, device=device))
    telephone = coin(B, 0.1, device)
    low_hz = torch.where(telephone, uniform(B, 200, 350, device), low_hz)
    high_hz = torch.where(telephone, uniform(B, 3200, 3900, device), high_hz)
    gain_db = (
        gain_db - (low_hz - hz).clamp_min(0) / low_hz.clamp_min(1) * 40 - (hz - high_hz).clamp_min(0) / high_hz * 150
    )
    spectrum = torch.fft.rfft(samples) * 10 ** (gain_db.clamp(-70, 20) / 20)
    spectrum = spectrum * torch.fft.rfft(room_response(B, device), n=S)
    return torch.fft.irfft(spectrum, n=S)


def coloured_noise(n_rows: int, n_samples: int, device: torch.device) -> Tensor:
    """Return noise of unit level with a random colour and, for half the rows, a level that moves."""
    hz = torch.linspace(0, 8000, n_samples // 2 + 1, device=device)
    octave_axis = torch.log2(hz.clamp_min(50) / 50) / math.log2(160)
    slope = uniform(n_rows, -0.3, 1.4, device)
    shape = (hz.clamp_min(30) / 1000) ** -slope * 10 ** (random_curve(n_rows, 8, 5.0, octave_axis) / 20)
    noise = torch.fft.irfft(torch.fft.rfft(torch.randn(n_rows, n_samples, device=device)) * shape, n=n_samples)
    noise = noise / noise.std(1, keepdim=True)
    level = torch.randn(n_rows, 1, 40, device=device) * uniform(n_rows, 0, 8, device)[:, None]
    level = F.interpolate(level, size=n_samples, mode="linear")[:, 0] * coin(n_rows, 0.5, device)
    hum_hz = torch.where(coin(n_rows, 0.5, device), 50.0, 60.0)
    time_s = torch.arange(n_samples, device=device) / SAMPLE_RATE
    hum = sum(torch.sin(2 * math.pi * hum_hz * k * time_s) * uniform(n_rows, 0, 1, device) for k in (1, 2, 3, 5))
    return noise * 10 ** (level / 20) + hum * coin(n_rows, 0.12, device)


def music(n_rows: int, n_samples: int, device: torch.device) -> Tensor:
    """Return chords and beats of unit level: four voices of decaying harmonic notes on a random pulse."""
    time_s = torch.arange(n_samples, device=device)[None] / SAMPLE_RATE
    total = torch.zeros(n_rows, n_samples, device=device)
    n_notes = 256
    for _ in range(4):
        beat_s = uniform(n_rows, 0.12, 0.8, device)
        note = (time_s / beat_s).long().clamp(max=n_notes - 1)
        since_s = time_s - note * beat_s
        semitone = torch.randint(-24, 30, (n_rows, n_notes), device=device).float()
        scale = torch.tensor([0, 0, 2, 2, 4, 5, 5, 7, 7, 9, 9, 11], device=device)
        semitone = (semitone // 12) * 12 + scale[(semitone % 12).long()]
        pitch_hz = (220 * 2 ** (semitone / 12)).gather(1, note)
        audible = (torch.rand(n_rows, n_notes, device=device) < 0.7).float().gather(1, note)
        envelope = torch.exp(-since_s / uniform(n_rows, 0.1, 1.5, device)) * (since_s * 200).clamp(max=1) * audible
        phase = 2 * math.pi * pitch_hz * since_s
        loudness = uniform(n_rows, 0.3, 0.9, device)
        voice = sum(torch.sin(k * phase) * loudness**k * (k * pitch_hz < 7500) for k in range(1, 6))
        drum = torch.randn(n_rows, n_samples, device=device) * torch.exp(-since_s / 0.03) * coin(n_rows, 0.3, device)
        total = total + envelope * voice + drum * 0.5
    return total / (total.std(1, keepdim=True) + 1e-6)


def telephone_codec(samples: Tensor) -> Tensor:
    """Quantize to 8-bit mu-law at each row's own level."""
    peak = samples.abs().amax(1, keepdim=True).clamp_min(1e-6)
    y = samples / peak
    coded = torch.sign(y) * torch.log1p(255 * y.abs()) / math.log(256)
    coded = torch.round(coded * 127) / 127
    return torch.sign(coded) * (torch.expm1(coded.abs() * math.log(256)) / 255) * peak


def lossy_codec(samples: Tensor) -> Tensor:
    """Imitate low bit rates: weak parts of the spectrum vanish, the others are kept in coarse steps."""
    B, S = samples.shape
    device = samples.device
    window = torch.hann_window(640, device=device)
    spectrum = torch.stft(samples, 640, 320, window=window, return_complex=True)  # (B, 321, frames)
    magnitude = spectrum.abs()
    local_peak = F.max_pool1d(magnitude.transpose(1, 2).flatten(0, 1)[:, None], 33, 1, 16)[:, 0]
    local_peak = local_peak.view(B, -1, 321).transpose(1, 2)
    floor = local_peak * 10 ** (-uniform(B, 6, 30, device)[..., None] / 20)
    step = uniform(B, 0.05, 0.5, device)[..., None]
    coarse = torch.exp(torch.round(torch.log(magnitude + 1e-9) / step) * step)
    spectrum = spectrum * (coarse / (magnitude + 1e-9)) * (magnitude >= floor)
    return torch.istft(spectrum, 640, 320, window=window, length=S)


def degrade(samples: Tensor, speech: Tensor, plan: dict[str, Tensor], ease: float = 0.0) -> Tensor:
    """Return what a recording of `samples` (B, S, unit level) might be, in [-1, 1].

    Args:
        ease: 0 to 1, how many of the rows with noise or other voices are spared them.
        speech: (B, S / 160) where speech lies; gated rows are digital zero elsewhere.
    """
    B, S = samples.shape
    device = samples.device
    x = microphone(samples)
    level = (x.square().sum(1, keepdim=True) / ((x.abs() > 1e-3).sum(1, keepdim=True) + 1)).sqrt()
    spoken = level > 1e-3
    x = torch.where(spoken, x / level.clamp_min(1e-3), x)
    snr_db = torch.where(coin(B, 0.5 - 0.3 * ease, device), uniform(B, 2, 30, device), uniform(B, 30, 70, device))
    y = x + coloured_noise(B, S, device) * 10 ** (-snr_db / 20) * coin(B, 0.8, device)
    others = (x.roll(1, 0) + x.roll(2, 0) + x.roll(5, 0)) / 1.7
    y = y + others * 10 ** (-uniform(B, 8, 28, device) / 20) * (coin(B, 0.12 - 0.06 * ease, device) & spoken)
    n_music = max(1, B // 10)
    tune = music(n_music, S, device) * 10 ** (-uniform(n_music, 4, 30, device) / 20)
    quiet_first = torch.argsort(spoken[:, 0].int() * 2 + torch.rand(B, device=device))  # rows without speech first
    y = y.index_add(0, quiet_first[:n_music], tune)
    rows = torch.randperm(B, device=device)
    n_coded = max(1, B // 7)
    for codec, chosen in ((lossy_codec, rows[:n_coded]), (telephone_codec, rows[n_coded : n_coded + max(1, B // 20)])):
        y = y.index_copy(0, chosen, codec(y[chosen]))
    y = y * 10 ** (uniform(B, -50, -9, device) / 20)
    y = torch.where(coin(B, 0.1, device), y.clamp(-0.12, 0.12), y).clamp(-1, 1)
    margin = int(torch.randint(0, 25, ()))  # 10 ms steps of recording kept around gated speech
    near = F.max_pool1d(speech[:, None].float(), 2 * margin + 1, 1, margin)[:, 0] > 0
    audible = (near | ~plan["gated"][:, None] | ~spoken).repeat_interleave(160, 1)
    audible = audible & (torch.arange(S, device=device)[None] < plan["silence_from"][:, None])
    return y * audible


def warp_and_mask(mel: Tensor, warp: Tensor, first_frame: int, ease: float = 0.0) -> Tensor:
    """Stretch the frequency axis of mel (B, 128, T) by `warp` (B, T - first_frame) and hide bands and moments.

    `ease`, 0 to 1, leaves more rows whole.
    """
    B, _, T = mel.shape
    device = mel.device
    centres = torch.linspace(0, hz_to_mel(8000.0), N_MELS + 2, device=device)[1:-1]
    step = float(centres[1] - centres[0])
    centre_hz = torch.from_numpy(mel_to_hz(centres.cpu().numpy())).float().to(device)
    source_hz = (centre_hz[None, :, None] * warp[:, None]).clamp(max=7990)  # (B, 128, T')
    source_mel = torch.where(source_hz < 1000, 3 * source_hz / 200, 15 + (source_hz / 1000).log() * 27 / math.log(6.4))
    position = (source_mel / step - 1).clamp(0, N_MELS - 1.001)
    below = position.long()
    part = position - below
    body = mel[:, :, first_frame:]
    body = body.gather(1, below) * (1 - part) + body.gather(1, below + 1) * part
    fill = body.mean((1, 2), keepdim=True)
    hidden = torch.zeros(B, N_MELS, T - first_frame, dtype=torch.bool, device=device)
    bins, frames = torch.arange(N_MELS, device=device)[None], torch.arange(T - first_frame, device=device)[None]
    for _ in range(2):
        width = uniform(B, 0, 34, device)
        low = uniform(B, 0, 1, device) * (N_MELS - width)
        hidden |= ((bins >= low) & (bins < low + width))[:, :, None]
    moments = torch.zeros(B, T - first_frame, dtype=torch.bool, device=device)
    for _ in range(20):
        width = uniform(B, 0, 32, device)
        start = uniform(B, 0, 1, device) * (T - first_frame - width)
        moments |= (frames >= start) & (frames < start + width)
    hidden = (hidden | moments[:, None]) & coin(B, 0.85 - 0.55 * ease, device)[..., None]
    return torch.cat((mel[:, :, :first_frame], torch.where(hidden, fill, body)), 2)


def black_out(n_rows: int, n_tokens: int, device: torch.device) -> Tensor:
    """Return which audio embeddings the decoder gets (n_rows, n_tokens), 1 or 0: a third of the rows lack a fifth of them."""
    position = torch.arange(n_tokens, device=device)[None]
    heard = torch.ones(n_rows, n_tokens, device=device)
    for _ in range(10):
        width = uniform(n_rows, 0, 14, device)
        start = uniform(n_rows, LEFT_PAD, n_tokens, device)
        heard *= (position < start) | (position >= start + width)
    return torch.where(coin(n_rows, 0.33, device), heard, 1.0)


def corrupt_inputs(inputs: Tensor, delay: Tensor, vocab: int) -> Tensor:
    """Replace some previous text tokens by others or by PAD and insert a few; the prompt stays as it is."""
    B, L = inputs.shape
    device = inputs.device
    degree = torch.where(coin(B, 0.15, device), uniform(B, 0.3, 1.0, device), uniform(B, 0, 0.2, device))
    body = torch.arange(L, device=device)[None] > LEFT_PAD + delay[:, None]
    text = (inputs >= 64) & body
    other = torch.randint(64, vocab, (B, L), device=device)
    replacement = torch.where(torch.rand(B, L, device=device) < 0.5, other, torch.full_like(inputs, PAD))
    spoiled = torch.where(text & (torch.rand(B, L, device=device) < degree), replacement, inputs)
    inserted = body & (inputs < 64) & (torch.rand(B, L, device=device) < 0.01)
    return torch.where(inserted, torch.randint(64, vocab, (B, L), device=device), spoiled)
