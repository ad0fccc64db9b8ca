"""SIGINT and SIGTERM as an exception, for commands that finish what is whole and leave the rest."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from voxpipe.service.signals import STOP_SIGNALS, heeded


class Interrupted(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Makes SIGINT and SIGTERM raise Interrupted while the block lasts; the second of them acts as it does anywhere."""

    def __init__(self) -> None:
        self._is_held_back = False
        self._pending: int | None = None

    def __enter__(self) -> "Interrupts":
        self._previous = {number: signal.signal(number, self._on_signal) for number in heeded(STOP_SIGNALS)}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let a signal wait until the block has ended."""
        self._is_held_back = True
        try:
            yield
        finally:
            self._is_held_back = False
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self._pending = number
        if not self._is_held_back:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
