"""What the measurements listen to: a clip repeated to length, or noise that is modulated like speech.

Silence would flatter: the model answers it with blanks, which are guessed right.
"""

from os import PathLike

import numpy as np
from numpy.typing import NDArray

from voxpipe.audio.files import read_blocks
from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import AudioError

BANDS_HZ = ((100, 400), (400, 1_000), (1_000, 2_400), (2_400, 6_000))
SYLLABLES_HZ = 4.0
BURST_S = 2.4  # of sound, then a pause
PAUSE_S = 0.6
Floats = NDArray[np.float32]


def read_clip(path: str | PathLike[str], seconds: float | None = None) -> Floats:
    """The first `seconds` of a file at 16 kHz, repeated from its beginning where it is shorter; by default all of it.

    Raises:
        AudioError, InputError: it is empty, damaged or missing.
    """
    wanted = None if seconds is None else round(seconds * SAMPLE_RATE)
    blocks, n_samples = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        n_samples += len(block)
        if wanted is not None and n_samples >= wanted:
            break
    if not n_samples:
        raise AudioError(f"{path} has no audio in it")
    return np.resize(np.concatenate(blocks), n_samples if wanted is None else wanted)


def noise_bursts(seconds: float) -> Floats:
    """(n_samples,) of 16 kHz noise in four bands, each swelling at the rate of syllables, with pauses; always the same."""
    n_samples = round(seconds * SAMPLE_RATE)
    time_s = np.arange(n_samples) / SAMPLE_RATE
    spectrum = np.fft.rfft(np.random.Generator(np.random.PCG64(0)).standard_normal(n_samples))
    hz = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    sound = np.zeros(n_samples)
    for index, (low, high) in enumerate(BANDS_HZ):
        band = np.fft.irfft(np.where((hz >= low) & (hz < high), spectrum, 0.0), n_samples)
        rate_hz = SYLLABLES_HZ * (1.0 + 0.13 * index)  # the bands drift apart: no two syllables are alike
        sound += band * np.maximum(0.0, np.sin(2 * np.pi * rate_hz * time_s + index)) ** 2
    sound[time_s % (BURST_S + PAUSE_S) > BURST_S] = 0.0
    samples: Floats = (0.2 * sound / np.abs(sound).max()).astype(np.float32)
    return samples
