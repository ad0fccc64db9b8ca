"""A wakeup by itself and among other descriptors."""

import os
import select
import signal
import threading
import time

import pytest

from voxpipe.runtime.wakeup import Wakeup


def is_set(wakeup: Wakeup) -> bool:
    return bool(select.select([wakeup], [], [], 0)[0])


def test_what_was_set_before_or_meanwhile_ends_the_wait() -> None:
    wakeup = Wakeup()
    for _ in range(1 << 17):  # more than a pipe holds
        wakeup.set()
    wakeup.wait()
    assert not is_set(wakeup)
    threading.Timer(0.05, wakeup.set).start()
    wakeup.wait()
    assert not is_set(wakeup)


def test_drain_does_not_wait() -> None:
    wakeup = Wakeup()
    wakeup.drain()
    wakeup.set()
    assert is_set(wakeup)
    wakeup.drain()
    assert not is_set(wakeup)


def test_the_wait_has_an_end() -> None:
    wakeup = Wakeup()
    began_at = time.monotonic()
    wakeup.wait(0.05)
    assert 0.04 < time.monotonic() - began_at < 5


@pytest.mark.parametrize("timeout_s", [1e9, float("inf"), None])
def test_any_time_may_be_named(timeout_s: float | None) -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.wait(timeout_s)


def test_a_signal_wakes() -> None:
    wakeup = Wakeup()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    descriptor = signal.set_wakeup_fd(wakeup.descriptor, warn_on_full_buffer=False)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        wakeup.wait()
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGUSR1, before)


def test_its_descriptors_are_closed_with_the_last_who_can_set_it() -> None:
    wakeup = Wakeup()
    numbers = (wakeup.fileno(), wakeup.descriptor)
    setter = wakeup.set
    del wakeup
    setter()
    assert all(map(is_open, numbers))
    del setter
    assert not any(map(is_open, numbers))


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
