"""What can go wrong for a user, and the exit status each kind of failure ends with.

Statuses are the sysexits numbers, so that service managers and shell scripts can tell a wrong command (do not retry)
from a passing condition (do). A `VoxpipeError` carries one line that says what is wrong and how to mend it; the command
line prints that line and nothing else. Broken invariants of our own are ordinary exceptions and keep their traceback.
"""

import os

EX_OK = os.EX_OK
EX_USAGE = os.EX_USAGE  # 64: the command line is wrong
EX_DATAERR = os.EX_DATAERR  # 65: the input is not what it claims to be
EX_NOINPUT = os.EX_NOINPUT  # 66: the input is missing or unreadable
EX_UNAVAILABLE = os.EX_UNAVAILABLE  # 69: something needed is not installed or not reachable
EX_SOFTWARE = os.EX_SOFTWARE  # 70: a defect of ours
EX_CANTCREAT = os.EX_CANTCREAT  # 73: the output cannot be made
EX_IOERR = os.EX_IOERR  # 74: reading or writing failed on the way
EX_TEMPFAIL = os.EX_TEMPFAIL  # 75: it would work at another moment
EX_CONFIG = os.EX_CONFIG  # 78: model or configuration is wrong; a restart will not help


class VoxpipeError(Exception):
    """A failure the user can mend; `str(error)` is one clear line with the remedy."""

    status = EX_SOFTWARE
    code = "error"  # the `code` of the JSON `error` event


class UsageError(VoxpipeError, ValueError):
    """An option or argument has a value that is not allowed."""

    status = EX_USAGE
    code = "usage"


class AudioError(VoxpipeError, ValueError):
    """The audio is empty, corrupt, or not audio at all."""

    status = EX_DATAERR
    code = "audio"


class InputError(VoxpipeError, OSError):
    """An input file is missing or cannot be read."""

    status = EX_NOINPUT
    code = "input"


class OutputError(VoxpipeError, OSError):
    """An output file cannot be written."""

    status = EX_CANTCREAT
    code = "output"


class UnavailableError(VoxpipeError, RuntimeError):
    """A program, a backend or a network service that this needs is not there."""

    status = EX_UNAVAILABLE
    code = "unavailable"


class BusyError(VoxpipeError, RuntimeError):
    """All places are taken; later there may be one."""

    status = EX_TEMPFAIL
    code = "busy"


class ModelError(VoxpipeError, ValueError):
    """A checkpoint is missing, damaged, or of a kind that cannot be loaded."""

    status = EX_CONFIG
    code = "model"


class ConfigError(VoxpipeError, ValueError):
    """A configuration file cannot be read or says something that is not allowed."""

    status = EX_CONFIG
    code = "config"


def defect() -> VoxpipeError:
    """What a stream is told of an exception that is nobody's mistake but ours; its traceback goes to the log."""
    return VoxpipeError("voxpipe failed: this is a defect; its log, on stderr, has the details")


def status_of(code: str) -> int:
    """The exit status of the `error` event with this code."""
    kinds: list[type[VoxpipeError]] = [VoxpipeError, *VoxpipeError.__subclasses__()]
    return next((kind.status for kind in kinds if kind.code == code), EX_SOFTWARE)
