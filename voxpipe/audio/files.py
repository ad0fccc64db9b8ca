"""Audio files of any kind -> blocks of 16 kHz samples, mono or of every channel, never a whole file in memory.

`sndfile` reads what libsndfile can (wav flac ogg opus mp3 aiff ...), `ffmpeg`, where it is
installed, the rest; here it is decided which, and what is no audio file at all. This module knows
nothing of streams without an end: a FIFO belongs to `voxpipe listen`.
"""

import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import TracebackType
from typing import Self

from voxpipe.audio import ffmpeg, sndfile
from voxpipe.audio.resample import Samples
from voxpipe.audio.sniff import MAX_HEAD_BYTES, RAW, TEXT, WAV, sniff
from voxpipe.audio.wav import WavDecoder
from voxpipe.errors import AudioError, InputError, UnavailableError

BLOCK_S = 10.0
N_WAV_BYTES = 1 << 18  # read at a time from a WAV whose header was never completed
HEADERLESS_SUFFIXES = (".raw", ".pcm", ".s16", ".s16le", ".f32", ".f32le")
MAX_SPLIT_CHANNELS = 16  # each is a transcript of its own, with caches of its own
SNDFILE_CONTAINERS = ("WAV", "FLAC", "Ogg", "MP3", "AIFF", "AU", "CAF", "Wave64")


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file says of itself; None is unknown.

    `container` and `encoding` are names for people, `rate` is in Hz. `duration_s` is the header's
    word, for some MP3 files an estimate.
    """

    container: str
    encoding: str | None = None
    rate: int | None = None
    channels: int | None = None
    duration_s: float | None = None


def display_name(path: str) -> str:
    """What messages call a file: its path, on one line and in UTF-8 whatever it holds."""
    return path if path.isprintable() else repr(path)


def read_blocks(path: str | os.PathLike[str], *, block_s: float = BLOCK_S) -> Iterator[Samples]:
    """Open `path`, yield its sound as `AudioFile.blocks` does, and close it.

    Every error, also of opening, comes with a `next`.
    """
    with AudioFile(path) as file:
        yield from file.blocks(block_s=block_s)


def check_is_file(path: str) -> os.stat_result:
    """What the system says of a file, if it is one that may hold audio; errors as for `AudioFile`."""
    name = display_name(path)
    try:
        status = os.stat(path)  # before open, which would end a FIFO's writer
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise InputError(f"{name}: {_system_reason(exc)}") from exc
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a directory; name its files")
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
        raise InputError(f"{name}: is a FIFO, socket or device; streams are read by `voxpipe listen`")
    if not stat.S_ISREG(mode):
        raise InputError(f"{name}: is not a regular file")
    if status.st_size == 0:
        raise AudioError(f"{name}: is empty (0 bytes)")
    return status


class AudioFile:
    """An open audio file: `info` describes it, `blocks` reads it, once.

    Args:
        split: keep the channels apart.
        children: where ffmpeg can be found by another thread, to end it when it hangs.

    Attributes:
        status: of the file when it was opened (`os.stat`).

    Raises:
        InputError: no such file, not readable, or not a regular file.
        AudioError: empty, text, damaged, or of a rate that cannot be used.
        UnavailableError: reading it takes ffmpeg, and there is none on PATH.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, split: bool = False, children: ffmpeg.Children | None = None
    ) -> None:
        self.path = os.fspath(path)
        self._children = children or ffmpeg.Children()
        self._name = display_name(self.path)
        self._split = split
        self._blocks: Iterator[Samples] | None = None
        self._sound: sndfile.SequentialFile | None = None
        self.status = check_is_file(self.path)
        kind = self._sniff()
        try:
            self._sound = sndfile.SequentialFile(self._open())
        except sndfile.OpenError as exc:
            self._check_ffmpeg_helps(kind, reason=sndfile.explain(exc))
            self.info = AudioInfo(self._kind_name(kind), *ffmpeg.probe(self.path, children=self._children))
        else:
            self.info = AudioInfo(
                container=self._sound.format,
                encoding=self._sound.subtype,
                rate=self._sound.samplerate,
                channels=self._sound.channels,
                duration_s=self._sound.duration_s,
            )
        # The writer of such a WAV never came back to fill in the size (it was killed, or wrote to
        # a pipe): libsndfile sees no sound where there may be hours of it.
        self._is_open_wav = kind == WAV and self.info.duration_s == 0
        if self._is_open_wav:
            self.info = replace(self.info, duration_s=None)

    def blocks(self, *, block_s: float = BLOCK_S) -> Iterator[Samples]:
        """Yield the sound as (n,) float32 blocks, mono, 16 kHz, of about `block_s` seconds; (n, channels) if split.

        No block is empty; a file with a header and no samples yields none. Of a damaged file the
        good part is yielded before the error.

        Raises:
            AudioError: the file is damaged, has no audio track, or has channels that cannot be kept apart.
        """
        if self._blocks is not None:
            raise RuntimeError("blocks() reads a file once")
        if block_s <= 0:
            raise ValueError(f"block_s must be positive, not {block_s}")
        if self._split:
            self._check_can_be_split()
        if self._is_open_wav:
            self._blocks = self._read_open_wav()
        elif self._sound is not None:
            self._blocks = sndfile.decode(self._sound, name=self._name, block_s=block_s, split=self._split)
        else:
            channels = self.info.channels if self._split else None
            self._blocks = ffmpeg.decode(
                self.path, name=self._name, block_s=block_s, channels=channels, children=self._children
            )
        return self._blocks

    def close(self) -> None:
        """Release the file and end ffmpeg, if it runs."""
        if isinstance(self._blocks, Generator):
            self._blocks.close()
        if self._sound is not None:
            self._sound.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_can_be_split(self) -> None:
        reason = None
        if self._is_open_wav:
            reason = "its header was never completed (`ffmpeg -i FILE -c copy NEW.wav` mends it)"
        elif self.info.channels is None:
            if not ffmpeg.can_probe():
                raise UnavailableError(
                    f"{self._name}: finding out how many channels it has takes ffprobe, which is not on PATH; install "
                    "it with `apt install ffmpeg` or `brew install ffmpeg`, or use `--channels mix`"
                )
            return  # ffprobe found no sound; ffmpeg says why
        elif self.info.channels > MAX_SPLIT_CHANNELS:
            reason = f"it has {self.info.channels} of them, and {MAX_SPLIT_CHANNELS} are the most"
        if reason is not None:
            raise AudioError(f"{self._name}: its channels cannot be kept apart: {reason}; or use `--channels mix`")

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise InputError(f"{self._name}: {_system_reason(exc)}") from exc

    def _sniff(self) -> str:
        with open(self._open(), "rb") as file:
            try:
                head = file.read(MAX_HEAD_BYTES)
            except OSError as exc:
                raise InputError(f"{self._name}: {_system_reason(exc)}") from exc
        kind = sniff(head, at_end=True)
        assert kind is not None  # at the end it always decides
        return kind

    def _kind_name(self, kind: str) -> str:
        return PurePath(self.path).suffix.lower() or "unknown" if kind == RAW else kind

    def _check_ffmpeg_helps(self, kind: str, *, reason: str) -> None:
        """Raise the error of a file that libsndfile cannot open, unless ffmpeg may open it."""
        suffix = PurePath(self.path).suffix.lower()
        if kind == TEXT:
            raise AudioError(f"{self._name}: is text, not audio")
        if kind == RAW and suffix in HEADERLESS_SUFFIXES:
            raise AudioError(
                f"{self._name}: has no header that says what it holds; say it, for example "
                "`voxpipe listen --format s16le --rate 16000 --channels 1 - < FILE`"
            )
        if ffmpeg.is_installed():
            return
        if kind in SNDFILE_CONTAINERS:
            raise AudioError(
                f"{self._name}: damaged, or {kind} with a codec that only ffmpeg reads "
                f"(libsndfile: {reason}; ffmpeg is not on PATH)"
            )
        raise UnavailableError(
            f"{self._name}: reading it ({self._kind_name(kind)}) takes ffmpeg, which is not on "
            "PATH; install it with `apt install ffmpeg` or `brew install ffmpeg`"
        )

    def _read_open_wav(self) -> Iterator[Samples]:
        """Read a WAV file as the stream that it is: until its end, whatever its header says."""
        decoder = WavDecoder()
        try:
            with open(self._open(), "rb") as file:
                while data := file.read(N_WAV_BYTES):
                    block = decoder.push(data)
                    if len(block):
                        yield block
            tail = decoder.finish()
        except AudioError as exc:
            raise AudioError(f"{self._name}: {exc}") from exc
        except OSError as exc:  # of a disc or a network share
            raise InputError(f"{self._name}: {_system_reason(exc)}") from exc
        if len(tail):
            yield tail


def _system_reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
