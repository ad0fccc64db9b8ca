"""Raw PCM: bytes in any encoding, rate and number of channels -> mono float32 samples.

A pipe cuts bytes where it likes. What does not fill a whole frame (one sample of every channel) is
kept for the next call, so any chunking of the bytes gives the same samples. This module knows
nothing of headers: it is told the format and believes it.

Source: G.711 (ITU-T, tables 1a and 2a) for `mulaw` and `alaw`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxpipe.audio.encodings import DTYPES, ENCODINGS
from voxpipe.audio.resample import (
    EMPTY,
    MAX_RATE,
    MIN_RATE,
    SAMPLE_RATE,
    Resampler,
    Samples,
)
from voxpipe.errors import UsageError

MAX_CHANNELS = 64
MAX_MAGNITUDE = 32_768.0  # floats scaled like int16 pass; beyond it, squares overflow downstream

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """How to read raw bytes; checked when made.

    Raises:
        UsageError: an encoding, rate (Hz) or number of channels that cannot be read.
    """

    encoding: str = "s16le"
    rate: int = SAMPLE_RATE
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in DTYPES:
            raise UsageError(f"unknown sample format {self.encoding!r}: use one of {', '.join(ENCODINGS)}")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise UsageError(
                f"a sampling rate of {self.rate} Hz is not possible: give it in Hz, from {MIN_RATE} to {MAX_RATE}"
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UsageError(f"{self.channels} channels are not possible: use 1 to {MAX_CHANNELS}")

    @property
    def n_sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return 3 if self.encoding.startswith("s24") else np.dtype(DTYPES[self.encoding]).itemsize

    @property
    def n_frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.n_sample_bytes * self.channels


DEFAULT_FORMAT = PcmFormat()


class PcmDecoder:
    """Raw bytes in `pcm_format`, decoded to mono float32 at the format's own rate.

    Integers are divided by their full scale, so int16 -32768 is -1.0. Channels are averaged. Floats
    that are NaN or infinite become 0 and the others are held within +-MAX_MAGNITUDE: one such value
    would poison the model's caches for the rest of the stream. Within that nothing is clipped:
    a recording that goes beyond +-1 keeps its shape.
    """

    def __init__(self, pcm_format: PcmFormat, *, split: bool = False) -> None:
        """Make a decoder; with `split` it keeps the channels apart and returns (n, channels) samples."""
        self.format = pcm_format
        self._split = split
        self._residual = b""  # less than one frame

    @property
    def n_leftover_bytes(self) -> int:
        """Bytes of a frame not yet complete; after the last push, bytes that were lost."""
        return len(self._residual)

    def push(self, data: Bytes) -> Samples:
        """Return the (n,) samples that `data` completes; n is 0 when it completes none."""
        data = self._residual + bytes(data) if self._residual else bytes(data)
        n_whole_bytes = len(data) - len(data) % self.format.n_frame_bytes
        self._residual = data[n_whole_bytes:]
        if not n_whole_bytes:
            return np.zeros((0, self.format.channels), np.float32) if self._split else EMPTY
        frames = _decode(data[:n_whole_bytes], self.format.encoding)
        frames = frames.reshape(-1, self.format.channels)  # (n, channels)
        if self._split:
            return frames
        if self.format.channels == 1:
            return frames[:, 0]
        return to_mono(frames)


class RawDecoder:
    """Raw bytes in `pcm_format` -> mono float32 at 16 kHz: a PcmDecoder, then a Resampler."""

    def __init__(self, pcm_format: PcmFormat) -> None:
        self.format = pcm_format
        self._pcm = PcmDecoder(pcm_format)
        self._resampler = Resampler(pcm_format.rate)

    @property
    def n_leftover_bytes(self) -> int:
        """As PcmDecoder's."""
        return self._pcm.n_leftover_bytes

    def push(self, data: Bytes) -> Samples:
        """Return the (m,) samples at 16 kHz that `data` completes."""
        return self._resampler.push(self._pcm.push(data))

    def finish(self) -> Samples:
        """Return the resampler's (m,) tail."""
        return self._resampler.finish()


def to_mono(frames: Samples) -> Samples:
    """Average (n, channels) samples over the channels -> (n,)."""
    mono: Samples = frames.mean(axis=1, dtype=np.float32)
    return mono


def make_finite(samples: NDArray[np.floating]) -> Samples:
    """Return float32 `samples` with NaN and infinities as 0, the rest within +-MAX_MAGNITUDE."""
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    held: Samples = np.clip(finite, -MAX_MAGNITUDE, MAX_MAGNITUDE).astype(np.float32)
    return held


def _decode(data: bytes, encoding: str) -> Samples:
    """Decode whole samples -> (n,), new memory."""
    if encoding in _COMPANDED:
        return _COMPANDED[encoding][np.frombuffer(data, np.uint8)]
    if encoding.startswith("s24"):
        data = _widen_24_bits(data, encoding)
    samples = np.frombuffer(data, DTYPES[encoding])
    if samples.dtype.kind == "f":
        return make_finite(samples)
    full_scale = np.float32(1 << (8 * samples.dtype.itemsize - 1))
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - full_scale) / full_scale
    return samples.astype(np.float32) / full_scale


def _widen_24_bits(data: bytes, encoding: str) -> bytes:
    """Make each 3-byte sample a 4-byte one, 256 times as large."""
    narrow = np.frombuffer(data, np.uint8).reshape(-1, 3)
    wide = np.zeros((len(narrow), 4), np.uint8)
    low = 1 if encoding == "s24le" else 0  # the new byte is the least significant one
    wide[:, low : low + 3] = narrow
    return wide.tobytes()


def _mulaw_table() -> Samples:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> Samples:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = code >> 4 & 7
    step = (code & 0x0F) << 4
    magnitude = np.where(segment == 0, step + 8, step + 0x108 << np.maximum(segment, 1) - 1)
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


_COMPANDED = {"mulaw": _mulaw_table(), "alaw": _alaw_table()}
