"""What may be amiss with a live stream while it goes on: the model lags behind it, or it brings nothing but zeros.

Each is told when it begins, not for as long as it lasts. Knows nothing of models, threads or clocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voxpipe.audio.resample import Samples
from voxpipe.config import SAMPLE_RATE

LAG_S = 2.0  # of audio that waits for the model: more than bursts and a busy moment explain
CAUGHT_UP_S = 0.5
SILENT_S = 10.0  # a room is never so quiet that every sample is zero, but a muted line may be for a while


@dataclass(frozen=True)
class Complaint:
    """What a `warning` event says.

    Attributes:
        facts: further keys of it.
    """

    code: str
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class LagWatch:
    """Tells when the model falls behind a live stream, each time it is twice as far behind, and when it has caught up."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def look(self, lag_s: float) -> Complaint | None:
        """Take how many seconds of audio wait now."""
        facts = {"lag_ms": round(lag_s * 1000)}
        if lag_s >= max(LAG_S, 2 * self._told_s):
            self._told_s = lag_s
            message = (
                f"the model is {lag_s:.1f} s behind; run fewer streams or a smaller model (voxpipe bench says what this "
                "machine can do), or have audio dropped with --max-lag"
            )
            return Complaint("lag", message, facts)
        if self._told_s and lag_s <= CAUGHT_UP_S:
            self._told_s = 0.0
            return Complaint("lag", "the model has caught up", facts)
        return None


class SilenceWatch:
    """Tells when SILENT_S of a stream have been zeros, and again only after there has been something else."""

    def __init__(self) -> None:
        self._n_samples = 0  # of the stream
        self._begin = 0  # of the zeros at its end
        self._told = False

    def look(self, samples: Samples) -> Complaint | None:
        """Take the next (n,) samples."""
        self._n_samples += len(samples)
        loud = np.flatnonzero(samples)
        warning = None
        if not self._told:  # the zeros may end within these samples
            warning = self._tell(self._n_samples - len(samples) + (int(loud[0]) if len(loud) else len(samples)))
        if len(loud):
            self._begin = self._n_samples - len(samples) + int(loud[-1]) + 1
            self._told = False
            warning = warning or self._tell(self._n_samples)
        return warning

    def _tell(self, end: int) -> Complaint | None:
        if end - self._begin < SILENT_S * SAMPLE_RATE:
            return None
        self._told = True
        message = (
            f"every sample of the last {SILENT_S:.0f} s is zero; if this is a microphone, see whether it is muted, and let "
            "the program that records use it (on a Mac: System Settings, Privacy & Security, Microphone)"
        )
        return Complaint("silent-input", message, {"start": round(self._begin / SAMPLE_RATE, 2)})


def gap(start: float, end: float) -> Complaint:
    """Of audio between two seconds of the stream that was dropped."""
    message = f"the model was too far behind: {end - start:.2f} s of audio were dropped"
    return Complaint("gap", message, {"lost_s": round(end - start, 2), "start": round(start, 2), "end": round(end, 2)})
