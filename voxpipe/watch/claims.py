"""Who has a recording in hand, for several watchers on one folder: a file that only one of them can make.

A claim names its machine, process and that process's start. One whose process is gone, or which another machine has not
renewed for LEASE_S, is stale and taken over. Where all of this fails (a machine that slept with a claim in hand), two
watchers do the same work, and what they publish is still whole.
"""

import ctypes
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from voxpipe.output.results import NO_LINKS

LEASE_S = 300.0  # of another machine's claim
RENEW_S = 60.0


def _machine() -> str:
    """A name for the place in which process numbers mean something: a machine since its start, or a container on it."""
    if sys.platform == "darwin":  # where the name follows the network
        uuid, wait = (ctypes.c_ubyte * 16)(), (ctypes.c_long * 2)(1, 0)  # a timespec
        if ctypes.CDLL(None).gethostuuid(uuid, wait) == 0:
            return bytes(uuid).hex()
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started_at(pid: int) -> str | None:
    """When a process of this machine began, in any unit; "" if it has ended, None if that is not for us to see."""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return "" if fields[0] in "ZX" else fields[19]
    return started_by_ps(pid)


def started_by_ps(pid: int) -> str | None:
    """The same where there is no /proc; in one language and time zone, since other processes compare it."""
    command = ["/bin/ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    environment = {"LC_ALL": "C", "TZ": "UTC"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    state, _, began = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip() or None


def has_ended(pid: int, start: object) -> bool:
    """Whether the process that began at `start` does not run any more; another may have got its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as somebody else
        pass
    began = started_at(pid)
    return began is not None and began != start


@cache
def owner(pid: int) -> dict[str, object]:
    """What a claim of a process of this machine says."""
    return {"host": _machine(), "pid": pid, "start": started_at(pid)}


class Claim:
    """On one recording, as a file at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._words = ""  # no other claim says the same

    def take(self) -> bool:
        """Make it if nobody has it; return whether it is ours.

        Raises:
            OSError: it cannot be made.
        """
        for _ in range(2):
            try:
                self._make()
                return True
            except FileExistsError:
                if not self.remove_stale():
                    return False
        return False

    def _make(self) -> None:
        """Make it with all that it says, in one step."""
        folder, name = os.path.split(self.path)
        part = os.path.join(folder, f".{name.partition('.')[0]}.{os.getpid()}-{id(self)}.part")
        try:
            self._words = json.dumps({**owner(os.getpid()), "made_ns": time.time_ns()})
            Path(part).write_text(self._words)
            try:
                os.link(part, self.path)
            except OSError as exc:
                if exc.errno not in NO_LINKS:
                    raise
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o666))
                os.replace(part, self.path)
        finally:
            with suppress(OSError):
                os.unlink(part)

    def is_ours(self) -> bool:
        """Whether nobody has taken it over."""
        try:
            return Path(self.path).read_text() == self._words
        except (OSError, ValueError):
            return False

    def renew(self) -> None:
        """Say that we are still at it."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        if self.is_ours():
            with suppress(OSError):
                os.unlink(self.path)

    def remove_stale(self) -> bool:
        """Remove another's claim if it is stale; return whether it is gone."""
        if not is_stale(self.path):
            return not os.path.lexists(self.path)
        try:  # one at a time: the second would remove what the first has just made
            lock = os.open(os.path.dirname(self.path), os.O_RDONLY)
        except OSError:
            return False
        try:
            with suppress(OSError):  # no locks there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if is_stale(self.path):
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
            return not os.path.lexists(self.path)
        finally:
            os.close(lock)


def is_stale(path: str) -> bool:
    """Whether the claim at `path` is nobody's any more."""
    try:
        age_s = time.time() - os.stat(path).st_mtime
        claimed = json.loads(Path(path).read_text())
        if claimed["host"] == owner(os.getpid())["host"]:
            return has_ended(claimed["pid"], claimed["start"])
    except OSError:
        return False  # gone, or not ours to judge
    except (
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
    ):  # its maker was killed before it could say who it was, or is about to
        return age_s > 10.0
    return age_s > LEASE_S
