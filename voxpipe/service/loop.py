"""Live streams to events, all on one engine.

Readers announce streams and queue their samples from threads of their own; the loop decodes them in batches and writes
their events. It belongs to the thread that loaded the model. Knows nothing of sockets, pipes or signals.
"""

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from voxpipe.errors import EX_OK, EX_SOFTWARE, VoxpipeError, defect
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.service.broadcast import Broadcast
from voxpipe.service.live import LiveStream, refuse
from voxpipe.service.stream import Stream
from voxpipe.service.tally import Reading, Tally
from voxpipe.watch.work import FolderWork

log = logging.getLogger(__name__)


class StreamLoop:
    """Decodes every stream that is announced.

    Args:
        max_streams: how many at most; None for no limit.
        on_turn: called between turns; says within how many seconds it wants to be called again, if it does.
        on_report: called when a `report` was asked for.

    Attributes:
        files: recordings that are decoded where live streams leave room.
        tally: what it has done.
        broadcast: where the events of all its streams can be had.
    """

    def __init__(
        self,
        *,
        max_streams: int | None = None,
        on_turn: Callable[[], float | None] = lambda: None,
        on_report: Callable[[], None] = lambda: None,
    ) -> None:
        self.wakeup = Wakeup()
        self.files: FolderWork | None = None
        self.tally = Tally()
        self.broadcast = Broadcast()
        self._on_turn = on_turn
        self._on_report = on_report
        self._max_streams = max_streams
        self._announced: SimpleQueue[Stream] = SimpleQueue()
        self._stopping = False
        self._flushing = False
        self._reporting = False
        self._live: dict[StreamingSession, LiveStream] = {}
        self._readings: WeakKeyDictionary[StreamingSession, Reading] = WeakKeyDictionary()

    def announce(self, stream: Stream) -> None:
        """Have a stream decoded. Safe from any thread."""
        self._announced.put(stream)
        self.wakeup.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    @property
    def n_streams(self) -> int:
        """Streams that are being decoded."""
        return len(self._live)

    def status(self) -> dict[str, Any]:
        """Facts about every stream, from any thread."""
        return {
            **self.tally.summary(),
            "subscribers": self.broadcast.n_subscribers,
            "streams": [live.status() for live in list(self._live.values())],
        }

    def refuse(self, stream: Stream, error: VoxpipeError | None) -> None:
        """As the function of that name, and counted. Safe from any thread."""
        if error is not None:
            self.tally.add_refusal(error.code)
        refuse(stream, error)

    def report(self) -> None:
        """Have the status reported between two turns. Safe from any thread and in signal handlers."""
        self._reporting = True
        self.wakeup.set()

    def flush(self) -> None:
        """Write out the pending words of every stream. Safe from any thread and in signal handlers."""
        self._flushing = True
        self.wakeup.set()

    def stop(self) -> None:
        """End every stream with what was heard, which its reader has been told. Safe from any thread and in handlers."""
        self._stopping = True
        self.wakeup.set()

    def run(self, transcriber: Transcriber, is_over: Callable[[], bool], *, n_expected: int = 1) -> int:
        """Serve until there is nothing more to come; return the exit status of the first stream that failed.

        An exception that is nobody's mistake but ours ends all streams with an error, and its status is EX_SOFTWARE.

        Args:
            is_over: whether no further stream will be announced.
            n_expected: how many streams there will usually be at once.
        """
        try:
            return self._serve(transcriber, is_over, n_expected)
        except (OSError, VoxpipeError):  # the output's, the user's
            raise
        except Exception:
            log.exception("a defect of voxpipe; all streams end")
            self._abandon()
            return EX_SOFTWARE
        finally:
            self._give_up_files()

    def _give_up_files(self) -> None:
        if self.files is not None:
            self.files.stop()
            self.files = None

    def _count(self, session: StreamingSession) -> None:
        """Add what came of a turn to the tally, be it a live stream's or a recording's."""
        reading = Reading(session.audio_s, session.n_tokens, session.n_guarded)
        self.tally.add_progress(self._readings.get(session, Reading()), reading)
        self._readings[session] = reading

    def _abandon(self) -> None:
        for live in self._live.values():
            live.abandon(defect())
        while not self._announced.empty():
            self.refuse(self._announced.get(), defect())

    def _begin(self, stream: Stream, transcriber: Transcriber, engine: Engine) -> VoxpipeError | None:
        """Let a stream take part; return why it cannot, which is its own affair and no other stream's."""
        try:
            engine.check_room()
            session = transcriber.create_streaming_session(
                transcription_delay_ms=stream.options.delay_ms,
                source=stream.audio,
                n_alternatives=stream.options.n_alternatives,
            )
            live = LiveStream(stream, session, self.tally, self.broadcast.open())
        except VoxpipeError as exc:
            return exc
        except OSError:  # the output's
            raise
        except Exception:
            log.exception("a defect of voxpipe, in %s", stream.name)
            return defect()
        engine.add(session)
        self._live[session] = live
        return None

    def _serve(self, transcriber: Transcriber, is_over: Callable[[], bool], n_expected: int) -> int:
        status = EX_OK
        engine = transcriber.create_engine(n_expected=n_expected, max_streams=self._max_streams)
        while True:
            due_s = self._on_turn()
            if self._reporting:
                self._reporting = False
                self._on_report()
            while not self._announced.empty():
                stream = self._announced.get()
                error = self._begin(stream, transcriber, engine)
                if error is not None:
                    self.refuse(stream, error)
                    status = status or error.status
            if self._flushing:
                self._flushing = False
                for live in self._live.values():
                    live.flush()
            if self._stopping:
                self._give_up_files()
            look_in_s = None if self.files is None else self.files.prepare(transcriber, engine)
            began_at = time.perf_counter()
            worked = engine.turn()
            if worked:
                self.tally.add_turn(time.perf_counter() - began_at)
            for session, deltas in worked:
                self._count(session)
                if session in self._live:
                    self.tally.lags_s.add(session.waiting_s)
                    self._live[session].write(deltas)
            if self.files is not None:
                self.files.take(worked)
            for session, live in list(self._live.items()):
                live.report()
                if live.end(stopped=self._stopping):
                    del self._live[session]
                    if live.error is not None:
                        status = status or live.error.status
            if worked:
                continue
            if not self._live and (self._stopping or is_over()) and self._announced.empty():
                return EX_OK if self._stopping else status
            due = [due_s, look_in_s, *(live.heartbeat_in_s for live in self._live.values())]
            self.wakeup.wait(min((seconds for seconds in due if seconds is not None), default=None))
