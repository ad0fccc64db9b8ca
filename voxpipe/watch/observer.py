"""Reports of changes from the operating system, by way of watchdog."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver

from voxpipe.errors import UnavailableError
from voxpipe.watch.records import STATE_FOLDER

# not those of reading: they would be our own
HEEDED: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileClosedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]
OURS = f"/{STATE_FOLDER}/"
TOO_MANY_FOLDERS = "inotify watches is reached; raise it with `sysctl fs.inotify.max_user_watches=1048576`"
LIMITS = {
    errno.ENOSPC: TOO_MANY_FOLDERS,
    errno.EMFILE: "inotify instances is reached; raise it with `sysctl fs.inotify.max_user_instances=1024`",
}


class Observer(FileSystemEventHandler):
    """Reports what happens below some folders, from a thread of its own.

    Args:
        on_change: takes a path that came, changed or went, and whether it was given this name in one step.
        on_loss: called when reports may have been lost, or a folder came with all that is in it.
    """

    def __init__(self, on_change: Callable[[str, bool], None], on_loss: Callable[[], None]) -> None:
        self._on_change = on_change
        self._on_loss = on_loss
        self._observer: BaseObserver | None = None
        self._ears = _Complaints(on_loss)

    def start(self, folders: list[str], *, recursive: bool) -> None:
        """Begin.

        Raises:
            UnavailableError: the system does not report; says why, and the remedy.
        """
        complaints = logging.getLogger("watchdog")
        complaints.propagate = False
        complaints.addHandler(self._ears)
        try:
            self._observer = _make_observer()
            self._observer.start()
            for folder in dict.fromkeys(folders):
                self._observer.schedule(self, folder, recursive=recursive, event_filter=HEEDED)
        except OSError as exc:
            self.stop()
            limit = LIMITS.get(exc.errno or 0)
            raise UnavailableError(f"the system's limit of {limit}" if limit else exc.strerror or str(exc)) from exc

    def stop(self) -> None:
        if self._observer is not None:
            with suppress(RuntimeError):  # it has not been started
                self._observer.stop()
                self._observer.join()
            self._observer = None
        logging.getLogger("watchdog").removeHandler(self._ears)

    @property
    def is_alive(self) -> bool:
        """Whether all folders are still observed: their removal or unmounting ends that."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(one.is_alive() for one in observer.emitters)

    def on_any_event(self, event: FileSystemEvent) -> None:
        source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")
        if event.is_directory:
            if not os.path.basename(target or source).startswith("."):
                self._on_loss()
            return
        for path, is_whole in ((source, False), (target, event.event_type == "moved")):
            if path and OURS not in path:
                self._on_change(path, is_whole)


class _Complaints(logging.Handler):
    """What watchdog warns of, such as a queue that overflowed, means that reports were lost."""

    def __init__(self, on_loss: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._on_loss = on_loss

    def emit(self, record: logging.LogRecord) -> None:
        self._on_loss()


def _make_observer() -> Any:
    if sys.platform.startswith("linux"):
        from watchdog.observers.inotify import InotifyObserver

        # full: what is moved in from elsewhere is reported as moved, not as created, which could be its first byte
        return InotifyObserver(generate_full_events=True)
    import watchdog.observers

    return watchdog.observers.Observer()
