"""When a file that came or changed is complete: after a time without any change, which begins anew with every one.

Nothing is ever given up: a file that goes on growing goes on being waited for. The clock is the caller's.
"""

import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from voxpipe.watch.completeness import missing

PATIENCE = 12  # times the settle time: how long a file without a change is waited for if its own header promises more
LEAST_PATIENCE_S = 10.0

Key = tuple[int, int, int]  # size, time of the last change in ns, inode


def key_of(status: os.stat_result) -> Key:
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_key(path: str) -> Key | None:
    """Of a regular file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return key_of(status) if stat.S_ISREG(status.st_mode) else None


@dataclass(slots=True)
class _Pending:
    key: Key
    since: float  # when it was found so
    look_at: float
    lack: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has become of a file: it is complete, it is gone, or it is quiet and yet not complete.

    Attributes:
        lack: what its header says is missing. With `is_settled`, it has been waited for long enough.
    """

    path: str
    is_settled: bool = False
    is_gone: bool = False
    lack: str | None = None


class Settling:
    """Files that are being waited for.

    Args:
        settle_s: seconds without an event and with the same size and time of change.
    """

    def __init__(self, settle_s: float) -> None:
        self.settle_s = settle_s
        self.patience_s = max(LEAST_PATIENCE_S, PATIENCE * settle_s)
        self._pending: dict[str, _Pending] = {}
        self._queue: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, path: object) -> bool:
        return path in self._pending

    def touch(self, path: str, key: Key, now: float, *, is_event: bool) -> None:
        """A file has been seen; an event restarts its time even if nothing about it looks changed."""
        pending = self._pending.get(path)
        if pending is None:
            self._pending[path] = _Pending(key, now, now + self.settle_s)
            heapq.heappush(self._queue, (now + self.settle_s, path))
        elif is_event or key != pending.key:
            lacked = pending.lack is not None
            pending.key, pending.since, pending.lack = key, now, None
            if lacked:  # it would only be looked at when patience ends
                self._look_at(path, pending, now + self.settle_s)

    def drop(self, path: str) -> None:
        self._pending.pop(path, None)

    def due_in_s(self, now: float) -> float | None:
        """Seconds until there is something to look at."""
        return max(0.0, self._queue[0][0] - now) if self._queue else None

    def look(self, now: float) -> Iterator[Verdict]:
        """Look at the files whose time has come."""
        while self._queue and self._queue[0][0] <= now:
            due, path = heapq.heappop(self._queue)
            pending = self._pending.get(path)
            if pending is None or pending.look_at != due:
                continue  # dropped, or put in the queue anew
            verdict = self._judge(path, pending, now)
            if verdict is not None:
                if verdict.is_settled or verdict.is_gone:
                    del self._pending[path]
                yield verdict

    def _judge(self, path: str, pending: _Pending, now: float) -> Verdict | None:
        key = read_key(path)
        if key is None:
            return Verdict(path, is_gone=True)
        if key != pending.key:
            pending.key, pending.since, pending.lack = key, now, None
        if now < pending.since + self.settle_s:
            self._look_at(path, pending, pending.since + self.settle_s)
            return None
        try:
            lack = missing(path)
        except OSError:
            lack = None  # reading it will say why
        if lack is None or now >= pending.since + self.patience_s:
            return Verdict(path, is_settled=True, lack=lack)
        self._look_at(path, pending, pending.since + self.patience_s)
        if pending.lack is not None:
            return None
        pending.lack = lack
        return Verdict(path, lack=lack)

    def _look_at(self, path: str, pending: _Pending, when: float) -> None:
        pending.look_at = when
        heapq.heappush(self._queue, (when, path))
