"""Live streams to events, all on one engine.

Readers announce streams and queue their samples from threads of their own; the loop decodes them in batches and writes
their events. It belongs to the thread that loaded the model. Knows nothing of sockets, pipes or signals.
"""

import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from voxpipe.errors import EX_OK, BusyError, VoxpipeError
from voxpipe.output.events import StreamEvents
from voxpipe.output.transcript import Delta, Segment, SegmentStream
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.stream import Stream

log = logging.getLogger(__name__)


class Wakeup:
    """Wakes the loop from other threads and, by way of `signal.set_wakeup_fd`, from signals.

    It is a pipe, because a signal that comes just before a wait for a lock is not noticed until the lock is free.
    """

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        os.set_blocking(self.descriptor, False)

    def set(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the loop will wake anyway
            os.write(self.descriptor, b"x")

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for `set`; what it announced must be looked for afterwards."""
        readable, _, _ = select.select([self._read], [], [], timeout_s)
        if readable:
            os.read(self._read, 1 << 16)


class LiveStream:
    """A stream on the model: its session and its events."""

    def __init__(self, stream: Stream, session: StreamingSession) -> None:
        self._stream = stream
        self._session = session
        self._events = StreamEvents(stream.lines, stream=stream.name, source=stream.source)
        pause_s = stream.options.segment_pause_s
        self._segments = None if pause_s is None else SegmentStream(pause_s)
        self._beat_at = time.monotonic()
        self._flushing = False
        self._was_guarded = False
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
            "stream": self._stream.name,
            "source": self._stream.source,
            "audio_s": round(session.audio_s, 2),
            "lag_ms": round(session.waiting_s * 1000),
            "tokens": session.n_tokens,
            "delay_ms": session.delay_ms,
        }

    def flush(self) -> None:
        """Have pending words written, and the segment ended with them."""
        self._flushing = True
        self._session.flush()

    def write(self, deltas: Sequence[Delta]) -> None:
        """Write what came of a turn."""
        for delta in deltas:
            if self._segments is not None:
                self._write_segment(self._segments.push(delta), "pause")
            self._events.delta(delta)
        if self._segments is not None:
            self._write_segment(self._segments.settle(self._session.settled_s), "pause")
            if self._flushing and self._session.starved:
                self._flushing = False
                self._write_segment(self._segments.finish(), "flush")
        guarded = self._session.n_guarded > 0
        if guarded and not self._was_guarded:
            self._was_guarded = True
            self._events.warning(
                "stall-recovered", "the model was silent over audible sound; its blank token was penalised"
            )

    def beat(self) -> None:
        """Give a sign of life if one is due."""
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
            self._write_segment(self._segments.finish(), "end")
        self._warn()
        reason = "error" if self.error is not None else "signal" if stopped else "eof"
        self._events.done(reason=reason, audio_s=self._session.audio_s, truncated=self._session.truncated)
        self._stream.on_end()
        return True

    def _write_segment(self, segment: Segment | None, reason: str) -> None:
        if segment is not None:
            self._events.segment(segment, reason)

    def _warn(self) -> None:
        while self._stream.warnings:
            self._events.warning(*self._stream.warnings.pop(0))

    def _fail(self, error: VoxpipeError) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._warn()
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
    """

    def __init__(self, *, max_streams: int | None = None, on_turn: Callable[[], float | None] = lambda: None) -> None:
        self.wakeup = Wakeup()
        self._on_turn = on_turn
        self._max_streams = max_streams
        self._announced: SimpleQueue[Stream] = SimpleQueue()
        self._stopping = False
        self._flushing = False
        self._live: dict[StreamingSession, LiveStream] = {}

    def announce(self, stream: Stream) -> None:
        """Have a stream decoded. Safe from any thread."""
        self._announced.put(stream)
        self.wakeup.set()

    @property
    def n_streams(self) -> int:
        """Streams that are being decoded."""
        return len(self._live)

    def status(self) -> dict[str, Any]:
        """Facts about every stream, from any thread."""
        return {"streams": [live.status() for live in list(self._live.values())]}

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

        Args:
            is_over: whether no further stream will be announced.
            n_expected: how many streams there will usually be at once.
        """
        status = EX_OK
        engine = transcriber.create_engine(n_expected=n_expected, max_streams=self._max_streams)
        while True:
            due_s = self._on_turn()
            while not self._announced.empty():
                stream = self._announced.get()
                try:
                    engine.check_room()
                except BusyError as exc:
                    refuse(stream, exc)
                    continue
                session = transcriber.create_streaming_session(
                    transcription_delay_ms=stream.options.delay_ms, source=stream.audio
                )
                engine.add(session)
                self._live[session] = LiveStream(stream, session)
            if self._flushing:
                self._flushing = False
                for live in self._live.values():
                    live.flush()
            worked = engine.turn()
            for session, deltas in worked:
                self._live[session].write(deltas)
            for session, live in list(self._live.items()):
                live.beat()
                if live.end(stopped=self._stopping):
                    del self._live[session]
                    if live.error is not None:
                        status = status or live.error.status
            if worked:
                continue
            if not self._live and self._announced.empty() and (self._stopping or is_over()):
                return EX_OK if self._stopping else status
            due = [due_s, *(live.heartbeat_in_s for live in self._live.values())]
            self.wakeup.wait(min((seconds for seconds in due if seconds is not None), default=None))
