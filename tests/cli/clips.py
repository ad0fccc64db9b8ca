"""The clips of tests/data/speech as bytes of any kind, and what is said in them."""

import json
import re
import struct
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SPEECH = Path(__file__).parent.parent / "data" / "speech"
BEACH = SPEECH / "beach.wav"
HALL = SPEECH / "hall.flac"
FUTURE = SPEECH / "future.flac"
RATE = 16_000

TEXT = "But this is a letter and no sound at all: whoever pipes it in has made a mistake, and is told so.\n"


@cache
def spoken(clip: Path) -> tuple[tuple[str, float, float], ...]:
    """(word, start, end) of each word."""
    words = json.loads((SPEECH / "words.json").read_text())[clip.name]["words"]
    return tuple((word, start, end) for word, start, end in words)


def said(clip: Path) -> list[str]:
    return [word for word, _, _ in spoken(clip)]


def words(text: str) -> list[str]:
    """Lower case, without punctuation, whichever model wrote it."""
    return re.findall(r"[\w']+", text.lower())


def samples(clip: Path) -> NDArray[np.float32]:
    data, rate = soundfile.read(clip, dtype="float32")
    assert rate == RATE
    return np.asarray(data)


def s16le(clip: Path) -> bytes:
    return (samples(clip) * 32767).astype("<i2").tobytes()


def resampled(clip: Path, rate: int, *, channels: int = 1) -> NDArray[np.float32]:
    """(n, channels) at another rate: the clip in the first channel, half as loud in the next, and so on."""
    mono = soxr.resample(samples(clip), RATE, rate)
    return np.stack([mono / (1 + channel) for channel in range(channels)], axis=1)


def wav_header(
    *, rate: int = RATE, channels: int = 1, bits: int = 16, tag: int = 1, data_size: int, riff_size: int
) -> bytes:
    """RIFF, fmt, ffmpeg's LIST chunk, and the head of the data chunk."""
    frame = channels * bits // 8
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * frame, frame, bits)
    info = b"INFOISFT\x0e\x00\x00\x00Lavf61.7.100\x00\x00"
    return (
        b"RIFF"
        + struct.pack("<I", riff_size)
        + b"WAVE"
        + fmt
        + b"LIST"
        + struct.pack("<I", len(info))
        + info
        + b"data"
        + struct.pack("<I", data_size)
    )
