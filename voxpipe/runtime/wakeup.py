"""Wakes a loop that waits, from other threads and from signals."""

import os
import select
from contextlib import suppress

MAX_WAIT_S = 1e6  # select refuses more than 1e8 on macOS


class Wakeup:
    """A pipe to oneself, because a signal that comes just before a wait for a lock is not noticed until the lock is free.

    A loop that waits for other descriptors as well hands it to `select` among them, and calls `drain` behind it.

    Attributes:
        descriptor: for `signal.set_wakeup_fd`.
    """

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self.descriptor, False)

    def fileno(self) -> int:
        """What is readable from `set` on until `drain`."""
        return self._read

    def set(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the loop will wake anyway
            os.write(self.descriptor, b"x")

    def drain(self) -> None:
        """Take what was `set` as noticed; what it announced must be looked for afterwards."""
        with suppress(BlockingIOError):
            os.read(self._read, 1 << 16)  # a pipe holds no more

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for `set`, and `drain`."""
        select.select([self], [], [], None if timeout_s is None else min(timeout_s, MAX_WAIT_S))
        self.drain()

    def __del__(self) -> None:
        # not sooner: another thread may still hold `set`, and the number may be another file's then
        os.close(self._read)
        os.close(self.descriptor)
