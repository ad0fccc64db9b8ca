"""The recordings of watched folders on a cluster: the loop that takes the place of `StreamLoop` where nothing is decoded here."""

from collections.abc import Callable

from voxpipe.cluster.files import ClusterFiles
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.watch.work import FolderWork


class ClusterLoop:
    """Carries recordings to a cluster and back.

    Args:
        wakeup: set by whoever has something for it.
        on_turn: called between turns; says within how many seconds it wants to be called again, if it does.
        on_report: called when a `report` was asked for.
    """

    def __init__(self, wakeup: Wakeup, *, on_turn: Callable[[], float | None], on_report: Callable[[], None]) -> None:
        self.wakeup = wakeup
        self._on_turn = on_turn
        self._on_report = on_report
        self._stopping = False
        self._reporting = False

    def report(self) -> None:
        """Have the status reported between two turns. Safe from any thread and in signal handlers."""
        self._reporting = True
        self.wakeup.set()

    def stop(self) -> None:
        """Give up what is unfinished, and end. Safe from any thread and in signal handlers."""
        self._stopping = True
        self.wakeup.set()

    def run(self, work: FolderWork, files: ClusterFiles) -> None:
        """Serve until there is nothing more to come, or a `stop`.

        Raises:
            VoxpipeError: as from `Cluster`.
        """
        try:
            while not self._stopping and not work.is_over:
                if self._reporting:
                    self._reporting = False
                    self._on_report()
                due = [self._on_turn(), work.prepare_on(files)]
                self.wakeup.wait(min(seconds for seconds in due if seconds is not None))
        finally:
            work.stop()
