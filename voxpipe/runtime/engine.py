"""Many streams on one model: who takes part in which batch.

An engine belongs to the thread that loaded the model, as its sessions do; other threads reach it only through the sources
that they fill. Every turn is one batch of the streams that have something to do. Live streams come first, in turn where
there are more than a batch holds; files fill what is left of it, and wait while a live stream lags. A stream's tokens do
not depend on any of that.
"""

from collections import deque
from itertools import islice

from voxpipe.errors import BusyError
from voxpipe.model.voxtral import ENCODER_GROUP_TOKENS
from voxpipe.output.transcript import Delta
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import StreamingSession

LAG_S = 0.4  # of audio not yet read: more than a turn or two explain


class Engine:
    """Carries streams on one model.

    Args:
        max_streams: how many live ones at most; None for no limit. How many files there are is up to whoever adds them.
    """

    def __init__(self, runner: Runner, *, max_streams: int | None = None) -> None:
        self._runner = runner
        self._max_streams = max_streams
        self._max_rows = runner.network.max_rows
        self._live: deque[StreamingSession] = deque()
        self._files: deque[StreamingSession] = deque()

    def __len__(self) -> int:
        return len(self._live) + len(self._files)

    def check_room(self) -> None:
        """Raise BusyError if `add` would for a live stream."""
        if len(self._live) == self._max_streams:
            raise BusyError(f"all {self._max_streams} streams are in use; try again when one has ended")

    def add(self, session: StreamingSession, *, live: bool = True) -> None:
        """Let a stream take part until it is done.

        Raises:
            BusyError: it is live, and there are `max_streams` of them already.
        """
        if live:
            self.check_room()
        (self._live if live else self._files).append(session)

    def remove(self, session: StreamingSession) -> None:
        """Let a stream take part no longer, whether it is done or not."""
        (self._live if session in self._live else self._files).remove(session)

    def turn(self) -> list[tuple[StreamingSession, list[Delta]]]:
        """Run one batch.

        Returns:
            Each stream that took part, with its new deltas; none if all are starved. Those that are done have left.
        """
        live = list(islice((session for session in self._live if not session.starved), self._max_rows))
        is_lagging = any(session.waiting_s > LAG_S for session in live)
        files: list[StreamingSession] = []
        if not is_lagging:
            places = self._max_rows - len(live)
            files = list(islice((session for session in self._files if not session.starved), places))
        rows = live + files
        if not rows:
            return []
        is_shared = len(self) > 1 and bool(self._live) and not is_lagging
        most = self._runner.network.tokens_beside_live // len(rows) if is_shared else ENCODER_GROUP_TOKENS
        self._runner.run(rows, group_tokens=min(max(1, most), ENCODER_GROUP_TOKENS))
        for queue, served in ((self._live, live), (self._files, files)):
            if len(queue) > self._max_rows:
                queue.rotate(-len(served))
        results = []
        for session in rows:
            if session.finish_if_exhausted():
                self.remove(session)
            results.append((session, session.take_deltas()))
        return results
