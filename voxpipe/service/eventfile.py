"""Where the events of a daemon's pipes go for weeks: onto a disk that may fill up, into a file that may be rotated away.

A file that was renamed or removed is made anew at its path with the next event, so whoever rotates it sends no signal.
What a full disk does not take waits here, up to a bound; other streams go on.
"""

import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from voxpipe.errors import OutputError

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 4 << 20  # of events: half a day of speech
RETRY_S = 2.0
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EAGAIN)  # somebody may mend it while we run
MODE = 0o640  # what people say is not for everybody


class EventFile:
    """The output of a `JsonLines`: every write is a whole line.

    Args:
        path: made if it is not there; None for standard output.
        on_gone: called once when nobody reads standard output any more; lines are then dropped.

    Raises:
        OutputError: the file cannot be made.
    """

    def __init__(self, path: Path | None, *, on_gone: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self.on_gone = on_gone
        self._waiting: deque[bytes] = deque()
        self._n_written = 0  # bytes of the first of them that are in the file
        self._n_waiting_bytes = 0
        self._n_lost = 0
        self._is_gone = False
        self._in_trouble = False
        try:
            self._descriptor = 1 if path is None else _open(path, MODE)
        except OSError as exc:
            raise OutputError(f"cannot write the events to {path}: {exc.strerror}") from exc

    def write(self, line: bytes) -> int:
        """Write a line, after those that wait."""
        if self._n_waiting_bytes + len(line) > MAX_WAITING_BYTES:
            self._n_lost += 1
        elif not self._is_gone:
            self._waiting.append(line)
            self._n_waiting_bytes += len(line)
        self.retry()
        return len(line)

    def flush(self) -> None:
        """Nothing is buffered that could be written."""

    def retry(self) -> float | None:
        """Write what waits; returns the seconds after which to try again, if anything still does."""
        if not self._waiting:
            return None
        try:
            self._follow()
            while self._waiting:
                self._write_some()
        except BrokenPipeError:
            self._is_gone = True
            self._waiting.clear()
            self.on_gone()
            return None
        except OSError as exc:
            if exc.errno not in PASSING:
                raise
            if not self._in_trouble:
                log.error("cannot write events to %s: %s; they wait in memory", self._name, exc.strerror)
            self._in_trouble = True
            return RETRY_S
        if self._in_trouble:
            log.error("events can be written to %s again; %d were lost", self._name, self._n_lost)
            self._in_trouble = False
            self._n_lost = 0
        return None

    @property
    def _name(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    def _write_some(self) -> None:
        line = self._waiting[0]
        self._n_written += os.write(self._descriptor, line[self._n_written :])
        if self._n_written == len(line):
            self._waiting.popleft()
            self._n_waiting_bytes -= len(line)
            self._n_written = 0

    def _follow(self) -> None:
        """See that the file is still the one at its path, or make it anew; a line that it has half of begins again there."""
        if self._path is None:
            return
        mine = os.fstat(self._descriptor)
        is_emptied = stat.S_ISREG(mine.st_mode) and mine.st_size < self._n_written
        if is_emptied:  # by who copied it away
            self._n_written = 0
        try:
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
        except FileNotFoundError:
            pass
        descriptor = _open(self._path, stat.S_IMODE(mine.st_mode))
        if self._n_written:
            with suppress(OSError):  # where half a line cannot be taken back, it stays
                os.ftruncate(self._descriptor, mine.st_size - self._n_written)
            self._n_written = 0
        os.close(self._descriptor)
        self._descriptor = descriptor


def _open(path: Path, mode: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
