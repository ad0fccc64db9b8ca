"""Resampling to the model's 16 kHz, as a stream.

The filter's state lives in the object, so a signal pushed in pieces of any size gives, sample for
sample, what it gives in one piece. This module knows nothing of bytes or files: float32 in, float32 out.

Source: libsoxr through python-soxr, quality HQ (linear phase, 20 bits).
"""

import numpy as np
import soxr
from numpy.typing import NDArray

from voxpipe.errors import AudioError

Samples = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz; what the mel front end expects
MIN_RATE = 1_000  # Hz; below it there is no speech, such a number is kHz typed for Hz
MAX_RATE = 768_000  # Hz; the fastest converters sold
EMPTY: Samples = np.zeros(0, np.float32)
EMPTY.flags.writeable = False  # it is handed out again and again


class Resampler:
    """A mono stream at `rate` Hz, brought to 16 kHz.

    The whole output holds `n_in * 16000 / rate` samples, rounded to the nearest, halves upwards.
    Until `finish` it lags behind the input by the filter's length: nothing at 16 kHz, at most 80 ms
    from 22 kHz upwards, 115 ms at 8 kHz.
    """

    def __init__(self, rate: int) -> None:
        """Make the filter.

        Raises:
            AudioError: `rate` is outside MIN_RATE..MAX_RATE.
        """
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(
                f"cannot use audio sampled at {rate} Hz: the rate must be between {MIN_RATE} and {MAX_RATE} Hz"
            )
        self._stream = None
        if rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._finished = False

    def push(self, samples: Samples) -> Samples:
        """Take (n,) samples and return the (m,) at 16 kHz that they complete.

        m is 0 while the filter fills. At 16 kHz the array itself comes back, not a copy.
        """
        if self._finished:
            raise RuntimeError("push after finish")
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples)
        return resampled

    def finish(self) -> Samples:
        """Return the (m,) samples that the filter still held; a second call returns none."""
        tail = EMPTY
        if self._stream is not None and not self._finished:
            tail = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        self._finished = True
        return tail


class MultiResampler:
    """As Resampler, for (n, channels) samples: each channel as if it were alone."""

    def __init__(self, rate: int, channels: int) -> None:
        """Make the filters.

        Raises:
            AudioError: as Resampler's.
        """
        self._resamplers = [Resampler(rate) for _ in range(channels)]

    def push(self, frames: Samples) -> Samples:
        """Take (n, channels) samples and return the (m, channels) at 16 kHz that they complete."""
        columns = zip(self._resamplers, frames.T, strict=True)
        return _side_by_side([one.push(np.ascontiguousarray(column)) for one, column in columns])

    def finish(self) -> Samples:
        """Return the (m, channels) samples that the filters still held."""
        return _side_by_side([one.finish() for one in self._resamplers])


def _side_by_side(columns: list[Samples]) -> Samples:
    """One column needs no copy."""
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)
