"""`voxpipe watch`: folders named on the command line, until a signal ends it or, with `once`, until all is done.

Knows nothing of click.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from voxpipe.errors import EX_OK
from voxpipe.output.events import JsonLines
from voxpipe.runtime.files import Progress
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.loop import StreamLoop
from voxpipe.service.process import process_status
from voxpipe.service.signals import signals
from voxpipe.service.status import print_status
from voxpipe.watch.folder import Folder, WatchOptions
from voxpipe.watch.job import WatchJob
from voxpipe.watch.reports import Display, Reports
from voxpipe.watch.watcher import FolderWatcher
from voxpipe.watch.work import FolderWork

if TYPE_CHECKING:
    from voxpipe.cluster.client import Cluster
    from voxpipe.cluster.loop import ClusterLoop


class WatchService:
    """Transcribes what comes into some folders.

    Args:
        jobs: how many recordings are decoded at once.
        lines: where events go.
        display: told what comes and goes; `on_progress` of every recording that came forward, and `on_turn` now and then.

    Raises:
        VoxpipeError: a folder cannot be watched.
    """

    def __init__(
        self,
        folders: Sequence[WatchOptions],
        *,
        jobs: int,
        lines: JsonLines,
        display: Display | None = None,
        on_progress: Callable[[WatchJob, Progress], None] = lambda job, progress: None,
        on_turn: Callable[[], float | None] = lambda: None,
    ) -> None:
        for options in folders:
            Folder(options).check()
        self._folders = folders
        self._lines = lines
        self._on_turn = on_turn
        self._jobs = jobs
        self._loop = StreamLoop(on_turn=on_turn, on_report=lambda: print_status(self._status()))
        self._work = FolderWork(jobs=jobs, tell=self._loop.wakeup.set, on_progress=on_progress)
        self._reports = [Reports(lines, display) for _ in folders]
        self._watchers: list[FolderWatcher] = []
        self._model: str | None = None
        self._delay_ms: int | None = None

    def run(self, load: Callable[[], Transcriber]) -> int:
        """Load the model, then watch; return the exit status: of the first recording that failed, with `once`."""
        with self._signals(self._loop):
            transcriber = load()
            self._begin(transcriber.name, transcriber.config.transcription_delay_ms)
            self._loop.files = self._work
            status = self._loop.run(transcriber, lambda: self._work.is_over, n_expected=self._jobs)
        return status or self._exit_status

    def run_on(self, cluster: "Cluster", *, send: bool) -> int:
        """As `run`, on a cluster; files are sent to it if its workers do not see them, or all of them."""
        from voxpipe.cluster.files import ClusterFiles
        from voxpipe.cluster.loop import ClusterLoop

        loop = ClusterLoop(self._loop.wakeup, on_turn=self._on_turn, on_report=lambda: print_status(self._status()))
        with self._signals(loop):
            self._begin(cluster.facts.name, cluster.facts.delay_ms)
            loop.run(self._work, ClusterFiles(cluster, n_at_once=self._jobs, send=send, tell=loop.wakeup.set))
        return self._exit_status

    def _signals(self, loop: "StreamLoop | ClusterLoop") -> AbstractContextManager[None]:
        return signals(
            on_stop=loop.stop,
            on_flush=self._rescan,
            on_status=loop.report,
            on_reload=self._rescan,
            wakeup=loop.wakeup.descriptor,
        )

    def _begin(self, model: str, delay_ms: int) -> None:
        """Watch the folders; `model` is called so, and has this delay."""
        self._model, self._delay_ms = model, delay_ms
        self._lines.ready(model=model, delay_ms=self._folders[0].delay_ms or delay_ms)
        for options, reports in zip(self._folders, self._reports, strict=True):
            watcher = FolderWatcher(options, reports, model=model, delay_ms=delay_ms, tell=self._loop.wakeup.set)
            self._watchers.append(watcher)
            self._work.add(watcher)

    @property
    def _exit_status(self) -> int:
        failed = next((reports.status for reports in self._reports if reports.status), EX_OK)
        once = any(options.once for options in self._folders)
        return self._work.exit_status or (failed if once else EX_OK)

    def _rescan(self) -> None:
        for watcher in self._watchers:
            watcher.rescan()

    def _status(self) -> dict[str, object]:
        facts = process_status(model=self._model, delay_ms=self._delay_ms)
        return {**facts, **self._loop.status(), "folders": self._work.status()}
