"""A progress bar on a terminal: how far, how fast, how long still."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from voxpipe.service.status import clock

REFRESH_S = 0.2


class Estimate:
    """How much of several recordings has been read, in seconds of audio.

    The length of one that was not opened yet is guessed from its size and from those that were.

    Args:
        sizes: of each, in bytes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)
        self._read_s = [0.0] * len(sizes)
        self._whole_s: dict[int, float] = {}  # of those whose length is known
        self._n_known_bytes = 0
        self.n_done = 0

    def add(self, size: int) -> int:
        """One more recording, of so many bytes; return its index."""
        self._sizes.append(size)
        self._read_s.append(0.0)
        return len(self._sizes) - 1

    @property
    def n_files(self) -> int:
        return len(self._sizes)

    @property
    def read_s(self) -> float:
        return sum(self._read_s)

    @property
    def whole_s(self) -> float:
        """Seconds of all, once anything is known."""
        known_s = sum(self._whole_s.values())
        rate = known_s / self._n_known_bytes if self._n_known_bytes else 0.0
        return known_s + rate * (sum(self._sizes) - self._n_known_bytes)

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1; recordings without a length count when they end."""
        return min(1.0, self.read_s / self.whole_s) if self.whole_s else self.n_done / max(1, len(self._sizes))

    def open(self, index: int, duration_s: float | None) -> None:
        """A recording has been opened, and its header says so much."""
        if duration_s is not None and index not in self._whole_s:
            self._know(index, duration_s)

    def read(self, index: int, audio_s: float) -> None:
        """So much of a recording has been read."""
        self._read_s[index] = max(self._read_s[index], audio_s)

    def end(self, index: int) -> None:
        """A recording has ended, wherever its header put the end."""
        self.n_done += 1
        self._know(index, self._read_s[index])

    def _know(self, index: int, duration_s: float) -> None:
        if index not in self._whole_s:
            self._n_known_bytes += self._sizes[index]
        self._whole_s[index] = duration_s


@contextmanager
def progress_bar(estimate: Estimate, n_files: int | None = None, *, shown: bool) -> Iterator["ProgressBar"]:
    """A bar on stderr while the block lasts, with log lines above it; nothing if it is not `shown`.

    Args:
        n_files: of the estimate, which may have more of them.
    """
    if not shown:
        yield ProgressBar(None, estimate, n_files)
        return
    layout = "{percentage:3.0f}% |{bar}| {unit}"  # the one field to which tqdm adds nothing
    with (
        tqdm(total=1.0, bar_format=layout, unit="", file=sys.stderr, leave=False, dynamic_ncols=True) as bar,
        logging_redirect_tqdm([logging.getLogger()]),
    ):
        yield ProgressBar(bar, estimate, n_files)


class ProgressBar:
    """Draws an estimate, now and then."""

    def __init__(self, bar: "tqdm[None] | None", estimate: Estimate, n_files: int | None) -> None:
        self._bar = bar
        self._estimate = estimate
        self._n_files = n_files
        self._started_at = self._drawn_at = time.monotonic()

    def draw(self) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._drawn_at < REFRESH_S:
            return
        self._drawn_at = now
        self._bar.n = self._estimate.share
        n_files = self._estimate.n_files if self._n_files is None else self._n_files
        self._bar.unit = status(self._estimate, n_files, wall_s=now - self._started_at)
        self._bar.refresh()

    def restart(self, estimate: Estimate) -> None:
        """Draw another estimate from now on."""
        self._estimate = estimate
        self._started_at = time.monotonic()

    def clear(self) -> None:
        """Remove what was drawn."""
        if self._bar is not None:
            self._bar.clear()


def status(estimate: Estimate, n_files: int, *, wall_s: float) -> str:
    """`2 of 7 files, rtf 0.12, 0:41 left`; the rtf is seconds of work per second of audio."""
    parts = [f"{estimate.n_done} of {n_files} files"]
    if estimate.read_s:
        parts.append(f"rtf {wall_s / estimate.read_s:.2f}")
    if estimate.share:
        parts.append(f"{clock(round(wall_s / estimate.share - wall_s))} left")
    return ", ".join(parts)
