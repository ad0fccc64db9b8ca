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
import weakref
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.errors import EX_OK, AudioError, InputError, VoxpipeError, defect
from voxpipe.output.events import JsonLines
from voxpipe.service.loop import StreamLoop
from voxpipe.service.stream import Stream, StreamOptions
from voxpipe.service.symptoms import Complaint

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # a pipe's capacity on Linux
IDLE_S = 2.0  # without a byte end a stream of a pipe whose writers' end cannot be seen
MAX_UNFINISHED = 4  # streams of one named pipe, being read or decoded, before the next writer has to wait


@dataclass(frozen=True)
class AudioOptions:
    """What raw audio is, as for `AudioDecoder.from_options`."""

    encoding: str = "auto"
    rate: int = 16_000
    channels: int = 1

    def decoder(self) -> AudioDecoder:
        """A decoder of it.

        Raises:
            UsageError: it cannot be read.
        """
        return AudioDecoder.from_options(self.encoding, rate=self.rate, channels=self.channels)


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


def stream_name(path: str, taken: Collection[str]) -> str:
    """What a source's streams are called: "stdin", or the file's name, numbered where the name is taken."""
    name = "stdin" if path == "-" else os.path.basename(path)
    numbered = (f"{name}-{n}" for n in count(2))
    return next(one for one in chain([name], numbered) if one not in taken)


def n_waiting_bytes(pipe: int) -> int:
    """How many bytes can be read from a pipe now."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


def odd_ends(decoder: AudioDecoder) -> list[Complaint]:
    """What was odd about the end of a stream of bytes."""
    complaints = []
    if decoder.n_leftover_bytes:
        message = f"the input ended within a sample; {decoder.n_leftover_bytes} byte(s) dropped"
        complaints.append(Complaint("odd-bytes", message))
    if decoder.n_ignored_bytes:
        message = f"{decoder.n_ignored_bytes} byte(s) behind the end that the WAV header declares were ignored"
        complaints.append(Complaint("ignored-bytes", message))
    return complaints


class Reader(threading.Thread):
    """Turns the bytes of one source into streams: one for stdin or a file, one per writer for a named pipe.

    Args:
        inherited: the descriptor of a named pipe that a service manager holds open for writing too. It never comes to an
            end, so what comes without a break of IDLE_S is a stream.

    Attributes:
        stream_name: of its streams; those of a named pipe are numbered besides.
        finished: nothing more will come.
        status: the exit status, once it has finished.
    """

    def __init__(
        self,
        path: str,
        name: str,
        loop: StreamLoop,
        lines: JsonLines,
        audio_options: AudioOptions,
        stream_options: StreamOptions,
        *,
        inherited: int | None = None,
    ) -> None:
        super().__init__(name=f"reader-{name}", daemon=True)  # it may wait for a writer for ever
        self._inherited = inherited
        self._path = path
        self.stream_name = name
        self._loop = loop
        self._lines = lines
        self._audio_options = audio_options
        self._stream_options = stream_options
        self._stopping = False
        self._places = threading.Semaphore(MAX_UNFINISHED)
        self._is_fifo = path != "-" and is_fifo(path)
        self._place = os.stat(path) if self._is_fifo else None
        self.finished = False
        self.status = EX_OK
        self._stop_read, self._stop_write = os.pipe()
        for descriptor in (self._stop_read, self._stop_write):  # not sooner: the number may be another file's in `stop`
            weakref.finalize(self, os.close, descriptor)

    @property
    def is_stale(self) -> bool:
        """Whether nobody reads what is at its path: it has ended, or another pipe is there now."""
        if self.finished or self._place is None or self._inherited is not None:
            return self.finished
        try:
            return not os.path.samestat(os.stat(self._path), self._place)
        except OSError:
            return True

    def stop(self) -> None:
        """Read no further. Safe in a signal handler."""
        self._stopping = True
        os.write(self._stop_write, b"x")
        if self._is_fifo:  # be the writer that it may be waiting for
            with suppress(OSError):
                os.close(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK))

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
                name = f"{self.stream_name}#{n_streams}" if self._is_fifo else self.stream_name
                stream = Stream(
                    name,
                    self._path,
                    self._lines,
                    self._stream_options,
                    on_audio=self._loop.wakeup.set,
                    on_end=self._places.release,
                )
                self._loop.announce(stream)
                try:
                    self._read(descriptor, stream)
                finally:
                    stream.audio.close()
                if not self._is_fifo:
                    break
        except OSError as exc:  # the pipe was removed or may not be opened any more
            log.error("%s: %s; it is not read any more", self._path, exc.strerror)
            self.status = InputError.status
        finally:
            if descriptor:
                os.close(descriptor)
            self.finished = True
            self._loop.wakeup.set()

    def _open(self, previous: int | None) -> int:
        """Open the source, of a named pipe when a writer comes: the first opens it, a later one has written or gone.

        The descriptor of the writer before stays open until the next one is: who came in between would find no reader.
        """
        if self._path == "-":
            return 0
        if self._inherited is not None:
            select.select([self._inherited, self._stop_read], [], [])
            return os.dup(self._inherited) if previous is None else previous
        if previous is None:
            descriptor = os.open(self._path, os.O_RDONLY)
        else:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)  # else one who comes and goes now goes unseen
            if n_waiting_bytes(previous):  # the next writer has come; if he has gone too, only `previous` tells his end
                os.close(descriptor)
                return previous
            os.close(previous)
            os.set_blocking(descriptor, True)
            select.select([descriptor, self._stop_read], [], [])
        if self._place is not None:
            self._place = os.fstat(descriptor)
        return descriptor

    def _read(self, descriptor: int, stream: Stream) -> None:
        decoder = self._audio_options.decoder()
        n_samples = 0
        has_ended = False
        try:
            for data in self._chunks(descriptor):
                samples = decoder.push(data)
                n_samples += len(samples)
                stream.push(samples)
            has_ended = True
            samples = decoder.finish()
            stream.push(samples)
            stream.odd_ends = odd_ends(decoder)
            if n_samples + len(samples) == 0 and not self._stopping:
                stream.error = AudioError(
                    "no audio came in; pipe raw PCM or WAV, for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`"
                )
        except VoxpipeError as exc:
            stream.error = exc
            self._loop.wakeup.set()
            if self._is_fifo and not has_ended:  # macOS tells of an end once, then waits for the next writer
                for _ in self._chunks(descriptor):  # whatever else this writer sends would begin another stream
                    pass
        except OSError as exc:
            place = "standard input" if self._path == "-" else self._path
            stream.error = InputError(f"cannot read {place}: {exc.strerror}")
        except Exception:
            log.exception("a defect of voxpipe, in %s", stream.name)
            stream.error = defect()

    def _chunks(self, descriptor: int) -> Iterator[bytes]:
        """The source's bytes until it ends or `stop` is called."""
        idle_s = None if self._inherited is None else IDLE_S
        while True:
            readable, _, _ = select.select([descriptor, self._stop_read], [], [], idle_s)
            if self._stop_read in readable or not readable:
                return
            data = os.read(descriptor, READ_BYTES)
            if not data:
                return
            yield data
