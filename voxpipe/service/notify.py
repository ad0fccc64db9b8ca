"""What a service manager is told, and what it hands over: systemd's notification and activation protocols.

Without systemd the environment variables are missing and nothing happens.

Source: sd_notify(3), sd_listen_fds(3).
"""

import os
import socket
import stat
from contextlib import suppress

FIRST_DESCRIPTOR = 3


def notify(**fields: str | int) -> None:
    """Send fields such as READY=1 or STATUS="…" to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract names
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(message.encode(), address)


def watchdog_s() -> float | None:
    """Seconds within which the service manager wants a WATCHDOG=1, if it does."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) and is_ours else None


def inherited_descriptors() -> list[int]:
    """Descriptors of sockets and FIFOs that the service manager opened for us."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def inherited_pipes(descriptors: list[int]) -> dict[str, int]:
    """Which of these are named pipes, by their path."""
    pipes = [descriptor for descriptor in descriptors if stat.S_ISFIFO(os.fstat(descriptor).st_mode)]
    return {os.readlink(f"/proc/self/fd/{descriptor}"): descriptor for descriptor in pipes}
