"""The recordings of several watched folders on one engine, beside whatever live streams it carries.

Belongs to the model's thread; each folder has a thread of its own.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from voxpipe.errors import EX_OK, EX_SOFTWARE
from voxpipe.output.transcript import Delta
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.files import FileStreams, Progress
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.watch.job import WatchJob
from voxpipe.watch.reports import LinesError
from voxpipe.watch.watcher import FolderWatcher

if TYPE_CHECKING:
    from voxpipe.cluster.files import ClusterFiles

log = logging.getLogger(__name__)

JOIN_S = 5.0  # for the folders' threads to put things in order; one that waits for a dead disc never does


class FolderWork:
    """Takes jobs from the folders in turn, and brings them what becomes of them.

    Args:
        jobs: how many recordings are decoded at once.
        tell: called, from other threads, when there is something to do.
        on_progress: called with every job that came forward, and how.

    Attributes:
        exit_status: of a defect, if there was one.
    """

    def __init__(
        self,
        *,
        jobs: int,
        tell: Callable[[], None],
        on_progress: Callable[[WatchJob, Progress], None] = lambda job, progress: None,
    ) -> None:
        self._n_jobs = jobs
        self._tell = tell
        self._on_progress = on_progress
        self._watchers: list[FolderWatcher] = []
        self._ending: list[FolderWatcher] = []  # not waited for before the end: live streams go on
        self._jobs: dict[int, tuple[WatchJob, FolderWatcher]] = {}
        self._n_begun = 0
        self.exit_status = EX_OK
        self._streams: FileStreams | ClusterFiles | None = None

    def add(self, watcher: FolderWatcher) -> None:
        """Begin to watch a folder."""
        self._watchers.append(watcher)
        watcher.start()

    def remove(self, watcher: FolderWatcher) -> None:
        """Watch a folder no longer; what is unfinished of it is given up, by its own thread."""
        self._watchers.remove(watcher)
        for job, owner in self._jobs.values():
            if owner is watcher:
                job.cancel()
        watcher.stop()
        self._ending = [one for one in (*self._ending, watcher) if one.is_alive()]

    def status(self) -> list[dict[str, Any]]:
        """Facts about each folder, from any thread."""
        return [watcher.status() for watcher in sorted(self._watchers, key=lambda watcher: watcher.options.path)]

    @property
    def is_over(self) -> bool:
        """Whether no folder has anything left to be done, nor ever will."""
        return not self._jobs and all(watcher.finished for watcher in self._watchers)

    def prepare(self, transcriber: Transcriber, engine: Engine) -> float | None:
        """Begin what there is room for; return the seconds within which to look again, if at all.

        Raises:
            OSError: the events cannot be written any more.
        """
        if not isinstance(self._streams, FileStreams):
            self._streams = FileStreams(transcriber, engine, jobs=self._n_jobs, tell=self._tell)
        self._fill(self._streams)
        for progress in self._streams.open():
            self._bring(progress)
        return self._streams.look_in_s

    def take(self, worked: Sequence[tuple[StreamingSession, list[Delta]]]) -> None:
        """Bring the folders what came of their streams in a turn."""
        for progress in self._streams.take(worked) if isinstance(self._streams, FileStreams) else ():
            self._bring(progress)

    def prepare_on(self, files: "ClusterFiles") -> float | None:
        """As `prepare` and `take`, where a cluster does the work."""
        self._streams = files
        for progress in files.take():
            self._bring(progress)
        self._fill(files)
        return files.look_in_s

    def stop(self) -> None:
        """Give up all that is unfinished, and end."""
        if self._streams is not None:
            self._streams.close()
            self._streams = None
        self._jobs.clear()
        for watcher in self._watchers:
            watcher.stop()
        until = time.monotonic() + JOIN_S
        for watcher in (*self._watchers, *self._ending):
            if watcher.is_alive():
                watcher.join(max(0.0, until - time.monotonic()))

    def _fill(self, streams: "FileStreams | ClusterFiles") -> None:
        """Begin what there is room for."""
        for watcher in list(self._watchers):
            if watcher.failure is not None:
                self._on_failure(watcher, watcher.failure)
        while streams.has_room and (taken := self._take()) is not None:
            self._n_begun += 1
            self._jobs[self._n_begun] = taken
            streams.begin(self._n_begun, taken[0], delay_ms=taken[0].delay_ms)

    def _on_failure(self, watcher: FolderWatcher, failure: BaseException) -> None:
        if isinstance(failure, LinesError) and failure.__cause__ is not None:
            raise failure.__cause__
        log.error("a defect of voxpipe; %s is not watched any more", watcher.options.path, exc_info=failure)
        self.exit_status = EX_SOFTWARE
        self.remove(watcher)

    def _take(self) -> tuple[WatchJob, FolderWatcher] | None:
        for watcher in list(self._watchers):
            job = watcher.take()
            if job is not None:
                self._watchers.remove(watcher)  # its next turn comes after the others'
                self._watchers.append(watcher)
                return job, watcher
        return None

    def _bring(self, progress: Progress) -> None:
        job, watcher = self._jobs[progress.index]
        watcher.bring(job, progress)
        self._on_progress(job, progress)
        if self._streams is not None and progress.index not in self._streams:
            del self._jobs[progress.index]
