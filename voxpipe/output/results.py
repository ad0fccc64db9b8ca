"""Result files: where they go, and that each is there whole or not at all.

The outputs of a transcript grow under hidden temporary names in their own folder and take their real ones, after an
fsync, when all of them are complete. This module knows nothing of audio and models.
"""

import errno
import fcntl
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

from voxpipe.errors import OutputError, UsageError
from voxpipe.output.formats import FORMATS, AudioFacts, Format, Heading
from voxpipe.output.transcript import Delta

# what file systems without hard links answer; macOS has two numbers for "not supported"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
PART_SUFFIX = ".part"  # with a leading dot: what everybody's folder watchers pass over

_counter = itertools.count()
_naming = threading.Lock()  # where there are no links, two threads could find the same name free


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be transcribed.

    Attributes:
        path: to open it.
        name: relative to the folder whose tree the outputs mirror.
    """

    path: str
    name: str

    @classmethod
    def alone(cls, path: str) -> "Source":
        """One that was named by itself: its outputs go straight into the output folder."""
        return cls(path, os.path.basename(path))


def size_of(path: str) -> int:
    """Bytes of a file to be transcribed; 0 if that cannot be seen, which is said when its turn comes."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def output_stems(sources: Sequence[Source], directory: str) -> list[str]:
    """Return the path of each source's outputs in `directory`, less `.txt` and the like.

    `talk.wav` gives `talk`; `talk.wav` beside `talk.mp3` gives `talk.wav` and `talk.mp3`.

    Raises:
        UsageError: two sources of the same name.
    """
    short = [os.path.splitext(source.name)[0] for source in sources]
    n_short: dict[str, int] = {}
    for stem in short:
        n_short[_folded(stem)] = n_short.get(_folded(stem), 0) + 1
    stems = [stem if n_short[_folded(stem)] == 1 else source.name for stem, source in zip(short, sources, strict=True)]
    owners: dict[str, Source] = {}
    for stem, source in zip(stems, sources, strict=True):
        other = owners.setdefault(_folded(stem), source)
        if other is not source:
            raise UsageError(
                f"{other.path!r} and {source.path!r} would both be written to {os.path.join(directory, stem)!r}; "
                "give them an output folder each, or quote a pattern ('*/*.wav'), which keeps their folders"
            )
    return [os.path.join(directory, stem) for stem in stems]


def output_paths(stem: str, formats: Iterable[str], *, channel: int | None = None) -> dict[str, str]:
    """Return the output of each format: `talk.srt`, or `talk.ch1.srt` for the first channel alone."""
    middle = "" if channel is None else f".ch{channel}"
    return {name: f"{stem}{middle}.{name}" for name in formats}


class ResultFiles:
    """The outputs of one transcript, on their way.

    Args:
        paths: of each format (`FORMATS`); their folders are made.
        replace: whether what is there already may be replaced.
        part_stem: begins the temporary names, on the same file system; what is there under them is replaced. By default they
            are in the outputs' own folder.

    Raises:
        OutputError: something is there, or the folder cannot be made or written. From every method; nothing of the
            outputs is left then.
    """

    def __init__(
        self, paths: Mapping[str, str], heading: Heading, *, replace: bool = False, part_stem: str | None = None
    ) -> None:
        self._paths = dict(paths)
        self._part_stem = part_stem
        self._replace = replace
        self._parts: dict[str, str] = {}
        self._files: dict[str, BinaryIO] = {}
        self._formats: list[Format] = []
        try:
            for name, path in self._paths.items():
                check_free(path, replace=replace)
                self._files[name] = self._open_part(name, path)
                self._formats.append(FORMATS[name](self._files[name], heading))
        except OSError as exc:
            self._give_up(exc)
        except BaseException:
            self.discard()
            raise

    def add(self, deltas: Sequence[Delta]) -> None:
        """Write what has come."""
        try:
            for format in self._formats:
                format.add(deltas)
        except OSError as exc:
            self._give_up(exc)

    def finish(self, audio: AudioFacts, *, truncated: bool = False) -> None:
        """Complete the outputs, still under their temporary names."""
        try:
            for format in self._formats:
                format.finish(audio, truncated=truncated)
            for file in self._files.values():
                file.flush()
                sync(file.fileno())
                file.close()
        except OSError as exc:
            self._give_up(exc)

    @property
    def complete(self) -> dict[str, str]:
        """The temporary name of each output, by the one that it will get."""
        return {self._paths[name]: part for name, part in self._parts.items()}

    def publish(self, may_replace: Callable[[str], bool] | None = None) -> None:
        """Give complete outputs their names.

        Args:
            may_replace: whether what lies at a path may be replaced, instead of the constructor's word for all.
        """
        try:
            for name, path in self._paths.items():
                give_name(self._parts[name], path, replace=self._replace if may_replace is None else may_replace(path))
                del self._parts[name]
            for directory in {os.path.dirname(path) or "." for path in self._paths.values()}:
                sync_directory(directory)
        except OSError as exc:
            self._give_up(exc)

    def discard(self) -> None:
        """Remove what has been written; nothing after `publish`."""
        for file in self._files.values():
            with suppress(OSError):  # it may have been full
                file.close()
        for part in self._parts.values():
            with suppress(OSError):
                os.unlink(part)
        self._files.clear()
        self._parts.clear()

    def _open_part(self, format_name: str, path: str) -> BinaryIO:
        directory = os.path.dirname(path)
        os.makedirs(directory or ".", exist_ok=True)
        if self._part_stem is not None:
            part = f"{self._part_stem}.{format_name}{PART_SUFFIX}"
            os.makedirs(os.path.dirname(part), exist_ok=True)
        else:  # no part of the output's name: that may be as long as names can be
            part = os.path.join(directory, f".voxpipe-{os.getpid()}-{next(_counter)}{PART_SUFFIX}")
        self._parts[format_name] = part  # before it exists: an interrupt may come in between
        return open(part, "xb" if self._part_stem is None else "wb")

    def _give_up(self, error: OSError) -> None:
        self.discard()
        if isinstance(error, OutputError):
            raise error
        path = next(iter(self._paths.values()))
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def give_name(part: str, path: str, *, replace: bool) -> None:
    """Give a complete file its name; what is there stays unless it may be replaced.

    Raises:
        OutputError: something is there that may not be replaced.
        OSError: it cannot be done.
    """
    if not replace:
        try:
            os.link(part, path)  # in one step: fails if there is something
        except FileExistsError:
            check_free(path, replace=False)
        except OSError as exc:
            if exc.errno not in NO_LINKS:
                raise
        else:
            os.unlink(part)
            return
    with _naming:
        check_free(path, replace=replace)
        os.replace(part, path)


def check_free(path: str, *, replace: bool) -> None:
    """Raise OutputError if nothing can be put at `path`, or something is there that may not be replaced."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:  # a name that is too long, a folder that may not be entered
        raise OutputError(f"cannot write {path}: {exc.strerror}") from exc
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path} is a folder; move it away")
    if not replace:
        raise OutputError(f"{path} is there already; --force replaces it, --skip-existing leaves it")


def make_directory(path: str) -> None:
    """Make an output folder, or raise OutputError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"cannot make the folder {path}: {exc.strerror}") from exc


def check_directory(path: str) -> None:
    """Raise UsageError if `path` cannot be an output folder."""
    suffix = PurePath(path).suffix[1:].lower()
    if os.path.isdir(path):
        return
    if os.path.lexists(path) or suffix in FORMATS:
        raise UsageError(f"-o takes a folder, and {path!r} is a file's name; for one file write `-f FORMAT > FILE`")


def sync(descriptor: int) -> None:
    """Make what was written survive a power cut, or raise OSError."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS' fsync leaves it in the drive's own memory
        with suppress(OSError):  # some file systems only know the other
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_directory(path: str) -> None:
    """Make renames in a folder survive a power cut, where the file system can."""
    with suppress(OSError):  # some network file systems cannot, and a folder may be one to write into only
        descriptor = os.open(path, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _folded(name: str) -> str:
    """What is one name where a file system ignores case."""
    return name.casefold()
