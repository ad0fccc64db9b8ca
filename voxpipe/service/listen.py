"""Live sources to JSON lines, all on one model.

Readers queue samples; one loop decodes all streams in turn and writes their events. Signals only set a flag and wake the
loop, which then decides. Knows nothing of click.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

from voxpipe.errors import EX_OK, VoxpipeError
from voxpipe.output.events import JsonLines, StreamEvents
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.reader import ListenOptions, Reader, Stream, Wakeup

log = logging.getLogger(__name__)

STEP_TOKENS = 4  # decoder calls before the next stream has its turn
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LiveStream:
    """A stream on the model: its session and its events."""

    def __init__(self, stream: Stream, session: StreamingSession, lines: JsonLines) -> None:
        self._stream = stream
        self._session = session
        self._events = StreamEvents(lines, stream=stream.name, source=stream.path)
        self._was_guarded = False
        self._has_failed = False

    @property
    def error(self) -> VoxpipeError | None:
        return self._stream.error

    def flush(self) -> None:
        self._session.flush()

    def step(self) -> bool:
        """Do a piece of work and write what came of it; return whether there was any."""
        if self._session.starved:
            return False
        for delta in self._session.step(STEP_TOKENS):
            self._events.delta(delta)
        guarded = self._session.n_guarded > 0
        if guarded and not self._was_guarded:
            self._was_guarded = True
            self._events.warning(
                "stall-recovered", "the model was silent over audible sound; its blank token was penalised"
            )
        return True

    def end(self, *, stopped: bool) -> bool:
        """Write the last events if the stream is over, and return whether it is."""
        if self.error is not None and self._session.starved:
            self._fail(self.error)  # now: a pipe's writer may stay for long
        if not self._session.done:
            return False
        self._warn()
        reason = "error" if self.error is not None else "signal" if stopped else "eof"
        self._events.done(reason=reason, audio_s=self._session.audio_s, truncated=self._session.truncated)
        self._stream.on_end()
        return True

    def _warn(self) -> None:
        while self._stream.warnings:
            self._events.warning(*self._stream.warnings.pop(0))

    def _fail(self, error: VoxpipeError) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._warn()
            self._events.error(error.code, str(error))
            log.error("%s", error)


class Listener:
    """Decodes every stream of its sources until they have ended or a signal says so."""

    def __init__(self, paths: list[str], options: ListenOptions, lines: JsonLines) -> None:
        self._options = options
        self._lines = lines
        self._wakeup = Wakeup()
        self._announced: SimpleQueue[Stream] = SimpleQueue()
        self._stopping = False
        self._flushing = False
        self._readers = [Reader(path, name, options, self._announce, self._wakeup) for path, name in _names(paths)]

    def run(self, load: Callable[[], Transcriber]) -> int:
        """Load the model while the sources are already being read, then serve; return the exit status."""
        with self._signals():
            for reader in self._readers:
                reader.start()
            transcriber = load()
            delay_ms = self._options.delay_ms or transcriber.config.transcription_delay_ms
            self._lines.ready(model=transcriber.name, delay_ms=delay_ms)
            return self._serve(transcriber)

    def _serve(self, transcriber: Transcriber) -> int:
        status = EX_OK
        live: list[LiveStream] = []
        while True:
            while not self._announced.empty():
                stream = self._announced.get()
                session = transcriber.create_streaming_session(
                    transcription_delay_ms=self._options.delay_ms, source=stream.audio
                )
                live.append(LiveStream(stream, session, self._lines))
            if self._flushing:
                self._flushing = False
                for stream_on_model in live:
                    stream_on_model.flush()
            worked = [stream_on_model.step() for stream_on_model in live]
            for ended in [one for one in live if one.end(stopped=self._stopping)]:
                live.remove(ended)
                if ended.error is not None:
                    status = status or ended.error.status
            if any(worked):
                continue
            finished = self._stopping or all(reader.finished for reader in self._readers)
            if finished and not live and self._announced.empty():
                return EX_OK if self._stopping else status
            self._wakeup.wait()

    def _announce(self, stream: Stream) -> None:
        self._announced.put(stream)
        self._wakeup.set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Obey signals while the context lasts."""
        handlers = dict.fromkeys(STOP_SIGNALS, self._on_stop)
        handlers[signal.SIGUSR1] = self._on_flush
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        previous_descriptor = signal.set_wakeup_fd(self._wakeup.descriptor, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous_descriptor)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)  # asked twice: now
        self._stopping = True
        for reader in self._readers:
            reader.stop()
        self._wakeup.set()

    def _on_flush(self, number: int, frame: FrameType | None) -> None:
        self._flushing = True
        self._wakeup.set()


def _names(paths: list[str]) -> list[tuple[str, str]]:
    """(path, stream name) of each source: "stdin", or the file's name, numbered where it comes twice."""
    named = []
    seen: dict[str, int] = {}
    for path in paths:
        name = "stdin" if path == "-" else os.path.basename(path)
        seen[name] = seen.get(name, 0) + 1
        named.append((path, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named
