"""Complete recordings that wait for their turn, or for a better moment. The clock is the caller's."""

import heapq
from collections import deque

from voxpipe.watch.settling import Key

FIRST_RETRY_S = 2.0  # doubled with every attempt
MAX_RETRY_S = 300.0
MAX_HOLD_S = 30.0


def retry_in_s(attempts: int) -> float:
    """Seconds until a further attempt after so many in vain."""
    return min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts - 1, 10))


class Backlog:
    """In the order in which they became complete."""

    def __init__(self) -> None:
        self._queue: deque[str] = deque()
        self._keys: dict[str, Key] = {}  # of those in the queue
        self._later: list[tuple[float, str]] = []
        self._later_keys: dict[str, Key] = {}
        self._held_s = 0.0
        self._held_until = 0.0

    def __len__(self) -> int:
        return len(self._keys) + len(self._later_keys)

    def __contains__(self, path: object) -> bool:
        return path in self._keys

    def holds(self, path: str, key: Key) -> bool:
        """Whether a recording, as it is, waits here."""
        return key in (self._keys.get(path), self._later_keys.get(path))

    def add(self, path: str, key: Key) -> None:
        self._keys[path] = key
        self._queue.append(path)

    def put_off(self, path: str, key: Key, *, until: float) -> None:
        self._later_keys[path] = key
        heapq.heappush(self._later, (until, path))

    def drop(self, path: str) -> bool:
        """Forget a recording, whose name in the queues leads to nothing then; return whether it was here."""
        return (self._keys.pop(path, None), self._later_keys.pop(path, None)) != (None, None)

    def hold(self, now: float) -> float:
        """Begin nothing for a while, longer every time, since nothing can be written; return for how long."""
        self._held_s = min(MAX_HOLD_S, 2 * self._held_s or FIRST_RETRY_S)
        self._held_until = now + self._held_s
        return self._held_s

    def release(self) -> None:
        """Something could be written."""
        self._held_s = self._held_until = 0.0

    def may_begin(self, now: float, n_in_work: int) -> bool:
        """Whether there is something to `take`: one at a time after `hold`, until something could be written."""
        return bool(self._queue) and now >= self._held_until and not (self._held_s and n_in_work)

    def take(self) -> tuple[str, Key] | None:
        """The next recording; None if the next in the queue is not wanted any more."""
        path = self._queue.popleft()
        key = self._keys.pop(path, None)
        return None if key is None else (path, key)

    def due(self, now: float) -> list[tuple[str, Key]]:
        """Remove and return those whose moment has come."""
        found = []
        while self._later and self._later[0][0] <= now:
            _, path = heapq.heappop(self._later)
            key = self._later_keys.pop(path, None)
            if key is not None:
                found.append((path, key))
        return found

    def due_in_s(self, now: float) -> float | None:
        """Seconds until something may change."""
        moments = [self._later[0][0]] if self._later else []
        moments += [self._held_until] if self._queue and self._held_until > now else []
        return max(0.0, min(moments) - now) if moments else None
