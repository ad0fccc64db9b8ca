"""What becomes of one live stream: its session's deltas as events, with what is amiss between them, and `done` at last.

Belongs to the loop that decodes it, and knows nothing of the others.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from voxpipe.errors import VoxpipeError
from voxpipe.output.events import Event, StreamEvents
from voxpipe.output.transcript import Delta, Segment, SegmentStream
from voxpipe.runtime.session import StreamingSession
from voxpipe.service.broadcast import Channel
from voxpipe.service.stream import Stream
from voxpipe.service.symptoms import Complaint, LagWatch, gap
from voxpipe.service.tally import Tally

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
