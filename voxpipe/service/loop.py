"""Live streams to events, all on one engine.

Readers announce streams and queue their samples from threads of their own; the loop decodes them in batches and writes
their events. It belongs to the thread that loaded the model. Knows nothing of sockets, pipes or signals.
"""

import logging
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from voxpipe.errors import EX_OK, EX_SOFTWARE, VoxpipeError, defect
from voxpipe.output.events import Event, StreamEvents
from voxpipe.output.transcript import Delta, Segment, SegmentStream
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.service.broadcast import Broadcast, Channel
from voxpipe.service.stream import Stream
from voxpipe.service.symptoms import Complaint, LagWatch, gap
from voxpipe.service.tally import Reading, Tally
from voxpipe.watch.work import FolderWork

log = logging.getLogger(__name__)

STATUS_CHARACTERS = 120  # of a stream's last words


class LiveStream:
    """A stream on the model: its session and its events.

    Args:
        channel: where its events are told to everybody else.
    """

    def __init__(self, stream: Stream, session: StreamingSession, tally: Tally, channel: Channel) -> None:
        self._stream = stream
        self._session = session
        self._tally = tally
        self._channel = channel
        self._began_at = time.monotonic()
        self._events = StreamEvents(
            stream.lines,
            stream=stream.name,
            source=stream.source,
            logprobs=stream.options.logprobs,
            on_event=self._on_event,
        )
        pause_s = stream.options.segment_pause_s
        self._segments = None if pause_s is None else SegmentStream(pause_s)
        self._beat_at = time.monotonic()
        self._flushing = False
        self._lag = LagWatch()
        self._n_guarded = 0
        self._in_rut = False
        self._has_failed = False

    @property
    def error(self) -> VoxpipeError | None:
        return self._stream.error

    @property
    def heartbeat_in_s(self) -> float | None:
        """Seconds until the next sign of life is due."""
        every_s = self._stream.options.heartbeat_s
        return None if every_s is None else max(0.0, self._beat_at + every_s - time.monotonic())

    def status(self) -> dict[str, Any]:
        """Facts about it, from any thread."""
        session = self._session
        return {
            "id": self._channel.number,
            "stream": self._stream.name,
            "source": self._stream.source,
            "wall_s": round(time.monotonic() - self._began_at, 2),
            "audio_s": round(session.audio_s, 2),
            "lag_ms": round(session.waiting_s * 1000),
            "tokens": session.n_tokens,
            "blank_run_s": round(session.blank_run_s, 2),
            "delay_ms": session.delay_ms,
            "words": self._channel.words[-STATUS_CHARACTERS:],
        }

    def flush(self) -> None:
        """Have pending words written, and the segment ended with them."""
        self._flushing = True
        self._tally.add_flush()
        self._session.flush()

    def write(self, deltas: Sequence[Delta]) -> None:
        """Write what came of a turn."""
        for delta in deltas:
            if self._segments is not None:
                self._write_segment(self._segments.push(delta))
            self._events.delta(delta)
        if self._segments is not None:
            self._write_segment(self._segments.settle(self._session.settled_s))
            if self._flushing and self._session.starved:
                self._flushing = False
                self._write_segment(self._segments.finish("flush"))
        has_acted = self._session.n_guarded > self._n_guarded
        if has_acted and not self._in_rut:
            self._events.warning(
                "stall-recovered", "the model was silent over audible sound; its blank token was penalised"
            )
        self._n_guarded = self._session.n_guarded
        self._in_rut = (self._in_rut or has_acted) and not deltas  # one rut is told once, until there are words again

    def report(self) -> None:
        """Write what is amiss, if anything is, and a sign of life if one is due."""
        self._warn()
        for start, end in self._session.take_gaps():
            self._write_complaint(gap(start, end))
        if self._stream.options.is_live and not self._stream.audio.closed:
            self._write_complaint(self._lag.look(self._session.waiting_s))
        if self.heartbeat_in_s == 0.0:
            self._beat_at = time.monotonic()
            self._events.heartbeat(audio_s=self._session.audio_s, lag_ms=round(self._session.waiting_s * 1000))

    def end(self, *, stopped: bool) -> bool:
        """Write the last events if the stream is over, and return whether it is."""
        if self.error is not None and self._session.starved:
            self._fail(self.error)  # now: a pipe's writer may stay for long
        if not self._session.done:
            return False
        if self._segments is not None:
            self._write_segment(self._segments.finish("end"))
        self._warn_of_the_end()
        reason = "error" if self.error is not None else "signal" if stopped else "eof"
        self._events.done(reason=reason, audio_s=self._session.audio_s, truncated=self._session.truncated)
        self._stream.on_end()
        return True

    def _on_event(self, event: Event) -> None:
        self._tally.add_event(event)
        self._channel.tell(event)

    def _write_segment(self, segment: Segment | None) -> None:
        if segment is not None:
            self._events.segment(segment)

    def abandon(self, error: VoxpipeError) -> None:
        """Write the last events of a stream that cannot be decoded any further."""
        self._fail(error)
        self._events.done(reason="error", audio_s=self._session.audio_s, truncated=False)
        self._stream.on_end()

    def _warn(self) -> None:
        while self._stream.complaints:
            self._write_complaint(self._stream.complaints.popleft())

    def _warn_of_the_end(self) -> None:
        self._warn()
        while self._stream.odd_ends:
            self._write_complaint(self._stream.odd_ends.pop(0))

    def _write_complaint(self, complaint: Complaint | None) -> None:
        if complaint is not None:
            self._events.warning(complaint.code, complaint.message, **complaint.facts)

    def _fail(self, error: VoxpipeError) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._warn_of_the_end()
            self._events.error(error.code, str(error))
            log.error("%s", error)


def refuse(stream: Stream, error: VoxpipeError | None) -> None:
    """Write the events of a stream that is not decoded at all; without an error, because we are asked to stop."""
    stream.audio.close()
    events = StreamEvents(stream.lines, stream=stream.name, source=stream.source)
    if error is not None:
        events.error(error.code, str(error))
    events.done(reason="error" if error is not None else "signal", audio_s=0.0, truncated=False)
    stream.on_end()


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
