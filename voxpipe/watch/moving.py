"""Putting a recording away when it is done: it gets a name that is free, in one step, and only then loses its old one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from voxpipe.errors import OutputError
from voxpipe.output.results import NO_LINKS, PART_SUFFIX, give_name, sync, sync_directory
from voxpipe.watch.records import digest_of


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
        if not _put(path, name) and not _is_same(path, name, size, mtime_ns):
            continue
        sync_directory(os.path.dirname(name))
        if not _is_still(path, size, mtime_ns):
            return None
        os.unlink(path)
        return name
    raise AssertionError("names do not end")


def _put(path: str, name: str) -> bool:
    """Give a file another name, or copy it to there; return whether that was free."""
    try:
        os.link(path, name, follow_symlinks=False)
        return True
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, *NO_LINKS):
            raise
    if os.path.lexists(name):
        return False
    try:
        _copy(path, name)
    except OutputError:  # somebody was faster
        if not os.path.lexists(name):
            raise
        return False
    return True


def _copy(path: str, name: str) -> None:
    """Copy to another file system, whole or not at all.

    Raises:
        OutputError: there is something now.
        OSError: it cannot be done.
    """
    descriptor, part = tempfile.mkstemp(dir=os.path.dirname(name), prefix=".", suffix=PART_SUFFIX)
    try:
        with open(descriptor, "rb") as file:
            shutil.copy2(path, part)
            sync(file.fileno())
        give_name(part, name, replace=False)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _is_same(path: str, name: str, size: int, mtime_ns: int) -> bool:
    """Whether a process that was killed has made `name` of it, before it could remove the old name."""
    if not _is_still(name, size, mtime_ns):
        return False
    if os.path.samefile(path, name):
        return True
    digest = digest_of(path)
    return digest is not None and digest == digest_of(name)


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
