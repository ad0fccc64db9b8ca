"""What a loop has done since it began, in numbers: its turns, the audio and tokens in them, and how its streams ended.

Counts only go up, so whoever reads them twice knows what happened between. Nothing here grows with time or streams.
"""

import math
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from voxpipe.output.events import Event

TURN_BOUNDS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)  # live needs less than 80 ms
LAG_BOUNDS_S = (0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.0, 10.0, 30.0, 60.0)
N_RECENT_TURNS = 256  # whose median and 95 % are reported
LEAST_RTF_AUDIO_S = 0.08
RTF_WINDOW_S = 60.0  # what lies so far back counts a third


class Histogram:
    """How often values fell below each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last is of what is beyond all bounds
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Fading:
    """A sum in which what was added long ago counts less."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._at = time.monotonic()

    def add(self, value: float) -> None:
        self._sum = self.value() + value
        self._at = time.monotonic()

    def value(self) -> float:
        return self._sum * math.exp((self._at - time.monotonic()) / self._window_s)


@dataclass(frozen=True)
class Reading:
    """How far a stream has come when its numbers are read.

    Attributes:
        audio_s: seconds of audio taken in.
        n_tokens: sampled.
        n_guarded: of them, those at which the blank-rut guard acted.
    """

    audio_s: float = 0.0
    n_tokens: int = 0
    n_guarded: int = 0


class Tally:
    """The numbers of one loop. Written by the loop and, where said so, by other threads; read by any.

    Attributes:
        started, ended, refused: streams: how many were decoded, how many of them ended for each reason, and how many
            were turned away for each error.
        warnings, errors: events, by code.
        audio_s, n_tokens, n_guarded: sums of what streams and recordings came forward by.
        turns_s: seconds that each batch took.
        lags_s: seconds of audio that waited for each live stream when it had had its turn.
        n_flushes, reloads: flushes asked for, and readings of the settings, by whether they `succeeded` or `failed`.
    """

    def __init__(self) -> None:
        self.started = 0
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter()
        self.n_flushes = 0
        self.audio_s = 0.0
        self.n_tokens = 0
        self.n_guarded = 0
        self.turns_s = Histogram(TURN_BOUNDS_S)
        self.lags_s = Histogram(LAG_BOUNDS_S)
        self._recent_s: deque[float] = deque(maxlen=N_RECENT_TURNS)
        self._recent_work_s = Fading(RTF_WINDOW_S)
        self._recent_audio_s = Fading(RTF_WINDOW_S)
        self._lock = threading.Lock()

    def add_turn(self, turn_s: float) -> None:
        """A batch has been decoded."""
        self.turns_s.add(turn_s)
        self._recent_s.append(turn_s)
        self._recent_work_s.add(turn_s)

    def add_progress(self, before: Reading, now: Reading) -> None:
        """A stream had its part in a batch."""
        self.audio_s += now.audio_s - before.audio_s
        self.n_tokens += now.n_tokens - before.n_tokens
        self.n_guarded += now.n_guarded - before.n_guarded
        self._recent_audio_s.add(now.audio_s - before.audio_s)

    def add_event(self, event: Event) -> None:
        """A decoded stream has said something."""
        if event["type"] == "start":
            self.started += 1
        elif event["type"] == "done":
            self.ended[event["reason"]] += 1
        elif event["type"] == "warning":
            self.warnings[event["code"]] += 1
        elif event["type"] == "error":
            self.errors[event["code"]] += 1

    def add_refusal(self, code: str) -> None:
        """A stream was turned away. Safe from any thread."""
        with self._lock:
            self.refused[code] += 1

    def add_flush(self) -> None:
        """Pending words were asked for. Safe from any thread."""
        with self._lock:
            self.n_flushes += 1

    def summary(self) -> dict[str, float]:
        """`turn_ms` and `turn_p95_ms`, median and 95 % of the recent turns, and `rtf`; what is not known is left out."""
        recent = sorted(list(self._recent_s))  # noqa: C414 -- a copy in one go, since the loop goes on appending
        facts: dict[str, float] = {}
        if recent:
            facts["turn_ms"] = round(1000 * recent[len(recent) // 2], 1)
            facts["turn_p95_ms"] = round(1000 * recent[len(recent) * 95 // 100], 1)
        if self.rtf is not None:
            facts["rtf"] = round(self.rtf, 3)
        return facts

    @property
    def rtf(self) -> float | None:
        """Seconds of work per second of audio in the last minute or so; None without any."""
        audio_s = self._recent_audio_s.value()
        return self._recent_work_s.value() / audio_s if audio_s > LEAST_RTF_AUDIO_S else None
