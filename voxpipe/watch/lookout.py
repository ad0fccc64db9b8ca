"""Which recordings there are in a folder: looked for from time to time, and reported by the system in between.

Reports get lost (queues overflow, networks and other machines do not report), so they only make things faster. Where there
are none, everything is looked at all the time. Knows nothing of what becomes of a recording.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from voxpipe.audio.files import display_name
from voxpipe.errors import UnavailableError
from voxpipe.watch.filesystems import silent_kind
from voxpipe.watch.folder import Folder, WatchOptions, explain
from voxpipe.watch.observer import TOO_MANY_FOLDERS, Observer
from voxpipe.watch.reports import Reports
from voxpipe.watch.settling import Key, key_of

log = logging.getLogger(__name__)

N_AT_ONCE = 200  # files that are looked at in one step
POLL_S = 2.0  # between two looks at everything where nothing is reported, or ten times as long as a look takes
POLL_SHARE = 10
MISSING_S = 5.0  # between two looks for a folder that is not there


class Lookout:
    """Looks at a folder, a step at a time.

    Args:
        on_change: takes a path that was reported, and whether it got its name in one step; from another thread.
        on_folder: takes a folder that came; from another thread.
        on_loss: called when reports may have been lost, from another thread.
    """

    def __init__(
        self,
        folder: Folder,
        options: WatchOptions,
        reports: Reports,
        *,
        on_change: Callable[[str, bool], None],
        on_folder: Callable[[str], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._options = options
        self._reports = reports
        self._observer = Observer(on_change, on_folder, on_loss)
        self._polling: str | None = None  # why
        self._observed: tuple[int, int] | None = None  # device and inode of the folder
        self._scan: Iterator[tuple[str, os.stat_result] | None] | None = None
        self._is_whole = False
        self._began_at = 0.0
        self._next_at = 0.0
        self._whole_at = 0.0
        self._trouble = ""  # why it could not be looked at
        self._namesakes: dict[str, set[str]] = {}  # recordings by what their outputs would be called
        self._new_namesakes: dict[str, set[str]] = {}

    @property
    def is_polling(self) -> bool:
        return self._polling is not None

    @property
    def is_looking(self) -> bool:
        """Whether a look at everything has begun, or is asked for."""
        return self._scan is not None or 0.0 in (self._next_at, self._whole_at)

    def due_in_s(self, now: float) -> float:
        """Seconds until there is something to do."""
        return 0.0 if self._scan is not None else max(0.0, min(self._next_at, self._whole_at) - now)

    def start(self) -> None:
        """Have changes reported, if they can be."""
        folder = self._folder
        if not os.path.isdir(folder.root):  # every look at everything tries again
            return
        kind = silent_kind(folder.root)
        if self._options.poll:
            self._polling = "asked for"
        elif kind is not None:
            self._polling = f"it lies on {kind}, which does not report what other machines do"
        else:
            with suppress(OSError):  # which is told of the first recording
                os.makedirs(folder.output_root, exist_ok=True)
            try:
                self._observer.start(folder.observed, recursive=self._options.recursive)
                status = os.stat(folder.root)
                self._observed = (status.st_dev, status.st_ino)
            except (UnavailableError, OSError) as exc:
                self._polling = str(exc)
        self._reports.watching(folder.root, polling=self._polling, asked_for=self._options.poll)

    def stop(self) -> None:
        self._observer.stop()

    def ask(self) -> None:
        """Look at everything now, and at what is settled once more."""
        self._whole_at = 0.0

    def ask_for_new(self) -> None:
        """Look at everything now, for what may have come unreported."""
        self._next_at = 0.0

    def begin(self, now: float) -> bool | None:
        """Begin to look at everything if it is time for that; return whether what is settled is to be looked at again."""
        if self._scan is not None or now < min(self._next_at, self._whole_at):
            return None
        self._began_at = now
        self._next_at = math.inf
        self._is_whole = now >= self._whole_at
        if self._is_whole:
            self._whole_at = now + self._options.rescan_s
            self._observe_again()
        self._new_namesakes = {}
        self._scan = self._folder.scan(tidy=self._is_whole)
        return self._is_whole

    def look(self) -> Iterator[tuple[str, Key]]:
        """Yield some more of the recordings, if a look has begun."""
        if self._scan is None:
            return
        n_seen = 0
        try:
            for found in islice(self._scan, N_AT_ONCE):
                n_seen += 1
                if found is not None:
                    yield found[0], key_of(found[1])
            self._trouble = ""
        except OSError as exc:
            if self._trouble != (trouble := explain(exc)):
                log.warning("%s: %s; it is looked for again", display_name(self._folder.root), trouble)
            self._trouble = trouble
            self._whole_at = min(self._whole_at, time.monotonic() + MISSING_S)
            n_seen = 0
        if n_seen < N_AT_ONCE:
            self._end()

    def add(self, path: str) -> None:
        """A recording is there."""
        for namesakes in (self._namesakes, self._new_namesakes):
            namesakes.setdefault(_stem(path), set()).add(path)

    def remove(self, path: str) -> None:
        """A recording has gone."""
        for namesakes in (self._namesakes, self._new_namesakes):
            namesakes.get(_stem(path), set()).discard(path)

    def has_namesake(self, path: str) -> bool:
        """Whether another recording beside it differs in its suffix only."""
        return len(self._namesakes.get(_stem(path), ())) > 1

    def _observe_again(self) -> None:
        """Have changes reported once more if the folder was removed or unmounted, and is back."""
        if self._polling is not None:
            return
        try:
            status = os.stat(self._folder.root)
        except OSError:
            return
        if not self._observer.is_alive or self._observed != (status.st_dev, status.st_ino):
            self._observer.stop()
            self.start()

    def _end(self) -> None:
        self._scan = None
        self._namesakes = self._new_namesakes
        if self._polling is None and self._options.recursive and self._folder.n_folders >= _max_watches():
            self._observer.stop()  # it does not say which folders it could not watch
            self._polling = f"the system's limit of {TOO_MANY_FOLDERS}"
            self._reports.watching(self._folder.root, polling=self._polling, asked_for=False)
        now = time.monotonic()
        every_s = self._options.rescan_s
        if self._polling is not None:
            every_s = min(every_s, max(POLL_S, POLL_SHARE * (now - self._began_at)))
        self._next_at = min(self._next_at, now + every_s)  # unless it was asked for in the meantime


def _stem(path: str) -> str:
    return os.path.splitext(path)[0].casefold()


def _max_watches() -> float:
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except (OSError, ValueError):
        return sys.maxsize
