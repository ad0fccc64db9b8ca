"""Live sources to JSON lines: stdin and named pipes, each writer a stream, all on one model.

A thread per source reads bytes and queues samples; one loop decodes all streams in turn and writes their events. A full
queue makes the reader wait, so a file piped at full speed is read as fast as the model runs. Signals only set a flag and
wake the loop, which then decides. Knows nothing of click.
"""

import fcntl
import logging
import os
import select
import signal
import stat
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.errors import EX_OK, AudioError, InputError, VoxpipeError
from voxpipe.output.events import JsonLines, StreamEvents
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.source import StreamingAudioSource
from voxpipe.runtime.transcriber import Transcriber

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # a pipe's capacity on Linux
BUFFER_S = 30.0  # audio queued per stream before its writer has to wait
MAX_UNFINISHED = 4  # streams of one named pipe, being read or decoded, before the next writer has to wait
STEP_TOKENS = 4  # decoder calls before the next stream has its turn
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ListenOptions:
    """What a live stream is made of.

    Attributes:
        encoding, rate, channels: of raw audio, as for `AudioDecoder.from_options`.
        delay_ms: transcription delay; None is the model's own.
    """

    encoding: str = "auto"
    rate: int = 16_000
    channels: int = 1
    delay_ms: int | None = None


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

    def wait(self) -> None:
        """Wait for `set`; what it announced must be looked for afterwards."""
        os.read(self._read, READ_BYTES)


class Stream:
    """One writer's audio, from its first byte to `done`.

    Attributes:
        on_end: called when `done` has been written.
        error: what went wrong while its bytes were read, if anything.
        warnings: what was odd about them.
    """

    def __init__(self, name: str, path: str, wakeup: Wakeup, on_end: Callable[[], None]) -> None:
        self.name = name
        self.path = path
        self.on_end = on_end
        self.audio = StreamingAudioSource(max_buffer_s=BUFFER_S, on_change=wakeup.set)
        self.error: VoxpipeError | None = None
        self.warnings: list[tuple[str, str]] = []  # (code, message)


def is_fifo(path: str) -> bool:
    """Whether `path` is a named pipe rather than a file, a device, or the nameless pipe of a shell's `<(command)`.

    Raises:
        InputError: it cannot be read at all.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}; make a named pipe with: mkfifo {path}") from exc
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a directory; name a named pipe, a file of raw audio, or - for stdin")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: Permission denied")
    place = os.path.realpath(path)  # on Linux, that of a nameless pipe is no path
    return stat.S_ISFIFO(mode) and os.path.exists(place) and not place.startswith(("/dev/fd/", "/dev/stdin"))


def n_waiting_bytes(pipe: int) -> int:
    """How many bytes can be read from a pipe now."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


class Reader(threading.Thread):
    """Turns the bytes of one source into streams: one for stdin or a file, one per writer for a named pipe."""

    def __init__(
        self, path: str, name: str, options: ListenOptions, announce: Callable[[Stream], None], wakeup: Wakeup
    ):
        super().__init__(name=f"reader-{name}", daemon=True)  # it may wait for a writer for ever
        self._path = path
        self._stream_name = name
        self._options = options
        self._announce = announce
        self._wakeup = wakeup
        self._stop_read, self._stop_write = os.pipe()
        self._stopping = False
        self._places = threading.Semaphore(MAX_UNFINISHED)
        self._is_fifo = path != "-" and is_fifo(path)
        self.finished = False

    def stop(self) -> None:
        """Read no further. Safe in a signal handler."""
        self._stopping = True
        os.write(self._stop_write, b"x")

    def run(self) -> None:
        n_streams = 0
        descriptor: int | None = None
        try:
            while not self._stopping:
                self._places.acquire()
                descriptor = self._open(descriptor)
                if self._stopping:
                    break
                n_streams += 1
                name = f"{self._stream_name}#{n_streams}" if self._is_fifo else self._stream_name
                stream = Stream(name, self._path, self._wakeup, self._places.release)
                self._announce(stream)
                try:
                    self._read(descriptor, stream)
                finally:
                    stream.audio.close()
                if not self._is_fifo:
                    break
        except OSError as exc:  # the pipe was removed or may not be opened any more
            log.error("%s: %s; it is not read any more", self._path, exc.strerror)
        finally:
            if descriptor:
                os.close(descriptor)
            self.finished = True
            self._wakeup.set()

    def _open(self, previous: int | None) -> int:
        """Open the source, of a named pipe when a writer comes.

        The descriptor of the writer before stays open until then: one who came in between would find no reader.
        """
        if self._path == "-":
            return 0
        if previous is not None and n_waiting_bytes(previous):  # the next writer has come and gone
            return previous
        descriptor = os.open(self._path, os.O_RDONLY)
        if previous is not None:
            os.close(previous)
        return descriptor

    def _read(self, descriptor: int, stream: Stream) -> None:
        options = self._options
        decoder = AudioDecoder.from_options(options.encoding, rate=options.rate, channels=options.channels)
        n_samples = 0
        try:
            for data in self._chunks(descriptor):
                samples = decoder.push(data)
                n_samples += len(samples)
                stream.audio.append(samples)
            samples = decoder.finish()
            stream.audio.append(samples)
            if decoder.n_leftover_bytes:
                message = f"the input ended within a sample; {decoder.n_leftover_bytes} byte(s) dropped"
                stream.warnings.append(("odd-bytes", message))
            if decoder.n_ignored_bytes:
                message = f"{decoder.n_ignored_bytes} byte(s) behind the end that the WAV header declares were ignored"
                stream.warnings.append(("ignored-bytes", message))
            if n_samples + len(samples) == 0 and not self._stopping:
                stream.error = AudioError(
                    "no audio came in; pipe raw PCM or WAV, for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`"
                )
        except VoxpipeError as exc:
            stream.error = exc
            self._wakeup.set()
            if self._is_fifo:
                for _ in self._chunks(descriptor):  # whatever else this writer sends would begin another stream
                    pass
        except OSError as exc:
            place = "standard input" if self._path == "-" else self._path
            stream.error = InputError(f"cannot read {place}: {exc.strerror}")

    def _chunks(self, descriptor: int) -> Iterator[bytes]:
        """The source's bytes until it ends or `stop` is called."""
        while True:
            readable, _, _ = select.select([descriptor, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            data = os.read(descriptor, READ_BYTES)
            if not data:
                return
            yield data


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
