"""Log-mel features: 16 kHz samples in, 100 frames of 128 bins a second out.

Computed on the host in float64: it costs microseconds a frame, is the same on every backend (a GPU's reduced-precision
matmul would ruin quiet bins), and makes the batch and the streaming result equal to the last bit. Knows nothing of
padding or tokens.

Source: mistral-common `audio.py` (filter bank) and the model's processor (periodic Hann window, centred frames, last
frame dropped, fixed maximum).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from voxpipe.config import HOP_LENGTH, SAMPLE_RATE

N_FFT = 400
FRAMES_AT_ONCE = 64  # beyond it intermediates leave the cache: of 1,024 frames each took 1.6 times as long
LOG_FLOOR_BELOW_MAX = 8.0
Floats = NDArray[np.float32]


def _hz_to_mel(hz: float) -> float:
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + np.log(hz / 1000.0) * 27.0 / np.log(6.4)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


@cache
def mel_filter_bank(n_mels: int = 128) -> NDArray[np.float64]:
    """Return the (201, n_mels) filter bank on Slaney's scale, every filter of unit area."""
    edges_hz = _mel_to_hz(np.linspace(_hz_to_mel(0.0), _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    bins_hz = np.arange(N_FFT // 2 + 1)[:, None] * (SAMPLE_RATE / N_FFT)
    low, centre, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    bank: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return bank


@cache
def _sparse_filters(n_mels: int) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """The bank's few non-zero weights, filter by filter: their bins, the weights, and where each filter's begin.

    A product with the whole bank would go through numpy's BLAS, whose second thread spins for a while after every call
    and takes a core from the model.
    """
    bank = mel_filter_bank(n_mels).T
    filters, bins = np.nonzero(bank)
    assert len(np.unique(filters)) == n_mels
    return bins, bank[filters, bins], np.searchsorted(filters, np.arange(n_mels))


@cache
def _window() -> NDArray[np.float64]:
    window: NDArray[np.float64] = 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT))  # periodic
    return window


def frames_to_log_mel(frames: Floats, *, n_mels: int = 128, log_mel_max: float = 1.5) -> Floats:
    """(n, 400) samples -> (n, n_mels); a frame's features do not depend on those beside it."""
    pieces = [frames[first : first + FRAMES_AT_ONCE] for first in range(0, len(frames), FRAMES_AT_ONCE)]
    return np.concatenate([np.zeros((0, n_mels), np.float32), *(_few(piece, n_mels, log_mel_max) for piece in pieces)])


def _few(frames: Floats, n_mels: int, log_mel_max: float) -> Floats:
    power = np.abs(np.fft.rfft(frames * _window(), axis=-1)) ** 2
    bins, weights, first_of_filter = _sparse_filters(n_mels)
    mel = np.add.reduceat(power[..., bins] * weights, first_of_filter, axis=-1)
    log_mel = np.log10(np.maximum(mel, 1e-10))
    result: Floats = ((np.maximum(log_mel, log_mel_max - LOG_FLOOR_BELOW_MAX) + 4.0) / 4.0).astype(np.float32)
    return result


def _frame(samples: Floats) -> Floats:
    """(n,) -> (n_frames, 400) view, every HOP_LENGTH samples."""
    n_frames = max(0, (len(samples) - N_FFT) // HOP_LENGTH + 1)
    size = samples.itemsize  # numpy's sliding windows are the same view, but take 20 us to make
    return np.ndarray((n_frames, N_FFT), samples.dtype, samples, strides=(HOP_LENGTH * size, size))


def log_mel(samples: Floats, *, n_mels: int = 128, log_mel_max: float = 1.5) -> Floats:
    """Return the log-mel features of a whole utterance.

    Args:
        samples: (n_samples,) in [-1, 1], 16 kHz, mono, more than 200 of them.

    Returns:
        (n_samples // 160, n_mels) float32; frame k is centred on sample 160 k, the edges are reflected.
    """
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    return frames_to_log_mel(_frame(padded)[:-1], n_mels=n_mels, log_mel_max=log_mel_max)


def silent_frames(n_frames: int, n_mels: int = 128, log_mel_max: float = 1.5) -> Floats:
    """The (n_frames, n_mels) features of digital silence."""
    return frames_to_log_mel(np.zeros((n_frames, N_FFT), np.float32), n_mels=n_mels, log_mel_max=log_mel_max)


class FrameStream:
    """The frames of the same features from chunks of any size, for a stream that begins with silence.

    Frame k is final once 160 k + 200 samples have come; only the samples that a later frame needs are kept. They are turned
    into features later, those of all streams at once.
    """

    def __init__(self) -> None:
        self._tail: Floats = np.zeros(N_FFT // 2, np.float32)  # the first frame is centred on sample 0

    def n_samples_for(self, n_frames: int) -> int:
        """Samples that must still come for so many frames more."""
        return N_FFT + (n_frames - 1) * HOP_LENGTH - len(self._tail)

    def push(self, samples: Floats) -> Floats:
        """Take (n_samples,) and return the (n_frames, 400) that became final, perhaps none."""
        self._tail = np.concatenate([self._tail, samples])
        frames = _frame(self._tail)
        self._tail = self._tail[len(frames) * HOP_LENGTH :].copy()
        return frames
