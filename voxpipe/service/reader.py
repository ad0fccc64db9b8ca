"""Bytes from stdin, files and named pipes, turned into streams of samples: a thread per source.

A source's bytes are decoded and queued; a full queue makes the reader wait, so a file piped at full speed is read as fast
as the model runs. Each writer of a named pipe is a stream of its own. Knows nothing of models.
"""

import fcntl
import logging
import os
import select
import stat
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.errors import AudioError, InputError, VoxpipeError
from voxpipe.runtime.source import StreamingAudioSource

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # a pipe's capacity on Linux
BUFFER_S = 30.0  # audio queued per stream before its writer has to wait
MAX_UNFINISHED = 4  # streams of one named pipe, being read or decoded, before the next writer has to wait


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
