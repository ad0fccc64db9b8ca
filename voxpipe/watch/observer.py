"""Reports of changes from the operating system, by way of watchdog."""

import errno
import logging
import os
import sys
import warnings
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
IS_MACOS = sys.platform == "darwin"  # whose reports are of all that is below a folder in any case
LOGGERS = ("watchdog", "fsevents")  # both are watchdog's
TOO_MANY_FOLDERS = "inotify watches is reached; raise it with `sysctl fs.inotify.max_user_watches=1048576`"
LIMITS: dict[int | None, str] = {
    errno.ENOSPC: TOO_MANY_FOLDERS,
    errno.EMFILE: "inotify instances is reached; raise it with `sysctl fs.inotify.max_user_instances=1024`",
}


class Observer(FileSystemEventHandler):
    """Reports what happens below some folders, from a thread of its own.

    Args:
        on_change: takes a path that came, changed or went, and whether it was given this name in one step.
        on_folder: takes a folder that came, with all that may be in it.
        on_loss: called when reports may have been lost, or a folder went elsewhere with all that was in it.
    """

    def __init__(
        self, on_change: Callable[[str, bool], None], on_folder: Callable[[str], None], on_loss: Callable[[], None]
    ) -> None:
        self._on_change = on_change
        self._on_folder = on_folder
        self._on_loss = on_loss
        self._observer: BaseObserver | None = None
        self._ears = _Complaints(on_loss)

    def start(self, folders: list[str], *, recursive: bool) -> None:
        """Begin.

        Raises:
            UnavailableError: the system does not report; says why, and the remedy.
        """
        for name in LOGGERS:
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(self._ears)
        try:
            self._observer = _make_observer()
            self._observer.start()
            for folder in dict.fromkeys(folders):
                self._observer.schedule(self, folder, recursive=recursive or IS_MACOS, event_filter=HEEDED)
        except (OSError, RuntimeError, SystemError) as exc:  # FSEvents raises the last two
            self.stop()
            limit = LIMITS.get(getattr(exc, "errno", None))
            reason = getattr(exc, "strerror", None) or str(exc)
            raise UnavailableError(f"the system's limit of {limit}" if limit else reason) from exc

    def stop(self) -> None:
        if self._observer is not None:
            with suppress(RuntimeError):  # it has not been started
                self._observer.stop()
                self._observer.join()
            self._observer = None
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self._ears)

    @property
    def is_alive(self) -> bool:
        """Whether all folders are still observed: their removal or unmounting ends that."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(one.is_alive() for one in observer.emitters)

    def on_any_event(self, event: FileSystemEvent) -> None:
        source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")
        if event.is_directory:
            came, went = (source, "") if event.event_type == "created" else (target, source)
            if went and not os.path.basename(went).startswith("."):
                self._on_loss()
            elif came:
                self._on_folder(came)
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

        # what comes in a folder that is just being added is added twice, which changes nothing
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, r"watchdog\.")
        # full: what is moved in from elsewhere is reported as moved, not as created, which could be its first byte
        return InotifyObserver(generate_full_events=True)
    if sys.platform == "darwin":
        return _make_fsevents_observer()
    import watchdog.observers

    return watchdog.observers.Observer()


def _make_fsevents_observer() -> Any:
    """Watchdog's own, that also warns when the system says that it has merged or dropped reports."""
    from watchdog.observers.fsevents import FSEventsEmitter, FSEventsObserver

    class Emitter(FSEventsEmitter):
        def queue_events(self, timeout: float, events: list[Any]) -> None:  # type: ignore[override]  # as its own
            if any(event.must_scan_subdirs for event in events):
                logging.getLogger("fsevents").warning("reports were lost below %s", self.watch.path)
            super().queue_events(timeout, events)

    class FullObserver(FSEventsObserver):
        def __init__(self) -> None:
            BaseObserver.__init__(self, Emitter)

    return FullObserver()
