"""Wakes a loop that waits, from other threads and from signals."""

import os
import select
from contextlib import suppress


class Wakeup:
    """A pipe to oneself, because a signal that comes just before a wait for a lock is not noticed until the lock is free.

    Attributes:
        descriptor: for `signal.set_wakeup_fd`.
    """

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        os.set_blocking(self.descriptor, False)

    def set(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the loop will wake anyway
            os.write(self.descriptor, b"x")

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for `set`; what it announced must be looked for afterwards."""
        readable, _, _ = select.select([self._read], [], [], timeout_s)
        if readable:
            os.read(self._read, 1 << 16)

    def __del__(
        self,
    ) -> None:  # not sooner: another thread may still hold `set`, and the number may be another file's then
        os.close(self._read)
        os.close(self.descriptor)
