"""Putting a recording away when it is done: it gets a name that is free, in one step, and only then loses its old one."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from voxpipe.output.results import NO_LINKS, sync_directory


def put_away(path: str, target: str, size: int, mtime_ns: int) -> str | None:
    """Move a file to `target`, or `NAME.2.SUFFIX` beside it if something else is there; never onto anything.

    Returns:
        Where it went; None if it is gone, or not that file any more.

    Raises:
        OSError: it cannot be moved; it is still where it was.
    """
    if not _is_still(path, size, mtime_ns):
        return None
    os.makedirs(os.path.dirname(target), exist_ok=True)
    for name in _names(target):
        try:
            os.link(path, name, follow_symlinks=False)
        except FileExistsError:
            if not os.path.samefile(path, name):  # else we were killed before we could remove the old name
                continue
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, *NO_LINKS):
                raise
            if os.path.lexists(name):
                if not _is_still(name, size, mtime_ns):  # else, again, a copy that was made before
                    continue
            else:
                _copy(path, name)
        sync_directory(os.path.dirname(name))
        if not _is_still(path, size, mtime_ns):
            return None
        os.unlink(path)
        return name
    raise AssertionError("names do not end")


def _copy(path: str, name: str) -> None:
    """Copy to another file system, whole or not at all."""
    part = os.path.join(os.path.dirname(name), f".{os.getpid()}.part")
    try:
        shutil.copy2(path, part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.rename(part, name)
    except OSError:
        with suppress(OSError):
            os.unlink(part)
        raise


def _names(target: str) -> Iterator[str]:
    yield target
    stem, suffix = os.path.splitext(target)
    yield from (f"{stem}.{number}{suffix}" for number in count(2))


def _is_still(path: str, size: int, mtime_ns: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (size, mtime_ns)
