"""Signals as calls, for as long as a block lasts.

Handlers only set flags and wake a loop, which then decides; a second request to stop ends the process at once.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS_SIGNALS = tuple(signal.Signals[name] for name in ("SIGUSR2", "SIGINFO") if hasattr(signal, name))


def heeded(numbers: Iterable[int]) -> list[int]:
    """Those of some signals that are not ignored, as a shell has SIGINT ignored in what it starts with `&`."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def signals(
    *,
    on_stop: Callable[[], None],
    on_flush: Callable[[], None],
    on_status: Callable[[], None],
    on_reload: Callable[[], None] | None = None,
    wakeup: int | None = None,
) -> Iterator[None]:
    """Obey SIGINT and SIGTERM, SIGUSR1, SIGUSR2 (macOS: also SIGINFO, its Ctrl-T) and, if there is anything to reload, SIGHUP.

    SIGINT and SIGTERM stay ignored where they are.

    Args:
        wakeup: descriptor that every signal writes to, so that none is missed by a loop about to sleep.
    """
    is_stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(128 + number)  # asked twice: now
        is_stopping = True
        on_stop()

    handlers: dict[int, Any] = dict.fromkeys(heeded(STOP_SIGNALS), stop)
    handlers[signal.SIGUSR1] = lambda number, frame: on_flush()
    handlers |= dict.fromkeys(STATUS_SIGNALS, lambda number, frame: on_status())
    if on_reload is not None:
        handlers[signal.SIGHUP] = lambda number, frame: on_reload()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    previous_wakeup = None if wakeup is None else signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        if previous_wakeup is not None:
            signal.set_wakeup_fd(previous_wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
