"""A listening Unix socket and its path: taken from nobody who serves it, and left to whoever comes after."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from voxpipe.errors import OutputError
from voxpipe.service.place import REMEDY, foreign_folder

BACKLOG = 1024  # clients that may wait to be accepted


class BoundSocket(socket.socket):
    """A listening socket that takes its path away when it is closed.

    It does so while it still listens: nobody has taken the path over before, and whoever does afterwards keeps it.
    """

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._made: os.stat_result | None = None
        try:
            with _umask(0o777 & ~mode):
                self.bind(str(path))
            self._made = path.lstat()
            self.listen(BACKLOG)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._made is not None:
            with suppress(OSError):  # somebody else has removed it
                if os.path.samestat(self._path.lstat(), self._made):
                    self._path.unlink()
            self._made = None
        super().close()


def bind(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening socket at `path`, in place of one that nobody serves any more; it goes when the socket is closed.

    Raises:
        OutputError: it cannot be made there, or somebody serves it.
    """
    try:
        with _umask(0o077):
            path.parent.mkdir(parents=True, exist_ok=True)
        if (folder := foreign_folder(path)) is not None:
            raise OutputError(f"{folder} is another user's, who could hear what comes in; {REMEDY}")
        with _locked(path.parent):
            if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
                raise OutputError(f"{path} is in the way: it is no socket; name another path or remove it")
            with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                raise OutputError(f"another voxpipe serves {path} already; stop it, or name another path")
            path.unlink(missing_ok=True)
            return BoundSocket(path, mode)
    except OutputError:
        raise
    except OSError as exc:
        raise OutputError(f"cannot make the socket {path}: {exc.strerror or exc}") from exc


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Without another voxpipe that binds in the same folder, which would find a socket that does not listen yet."""
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that may not be listed, or a network file system's, cannot be locked
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
