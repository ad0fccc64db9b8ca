"""A watched folder: what in it is a recording, and where the outputs of each go."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from voxpipe.errors import InputError, OutputError, UsageError
from voxpipe.output.formats import FORMATS
from voxpipe.watch.filesystems import real_path
from voxpipe.watch.records import STATE_FOLDER, owner_of, prune
from voxpipe.watch.selection import RECORDINGS, Selection


@dataclass(frozen=True)
class WatchOptions:
    """One watched folder.

    Attributes:
        output_dir: mirrors its sub-folders; None puts outputs beside the recordings.
        settle_s: seconds without a change after which a file is complete.
        rescan_s: seconds between two looks at everything, whatever was reported.
        poll: look all the time instead of waiting for reports.
        pattern, ignore: as for Selection.
        on_done: keep recordings when their outputs are there, or move:DIR.
        channels: "mix" or "split".
        delay_ms: None is the model's own.
        once: end when everything is done.
    """

    path: str
    output_dir: str | None = None
    formats: tuple[str, ...] = ("txt",)
    recursive: bool = True
    settle_s: float = 5.0
    rescan_s: float = 300.0
    poll: bool = False
    pattern: tuple[str, ...] = RECORDINGS
    ignore: tuple[str, ...] = ()
    on_done: str = "keep"
    channels: str = "mix"
    delay_ms: int | None = None
    once: bool = False

    @property
    def done_dir(self) -> str | None:
        """Where recordings are moved; None keeps them."""
        return parse_on_done(self.on_done)


def parse_on_done(value: str) -> str | None:
    """The folder in `move:DIR`; None for `keep`.

    Raises:
        UsageError: it is neither.
    """
    action, _, folder = value.partition(":")
    if value == "keep" or (action == "move" and folder):
        return folder or None
    raise UsageError(f"{value!r} is neither keep nor move:DIR")


class Folder:
    """The files of a watched folder, by real paths, which are looked up when they are first needed: the disc may be dead.

    Attributes:
        n_folders: that the last scan has looked into.
    """

    def __init__(self, options: WatchOptions) -> None:
        self._options = options
        self.n_folders = 0
        self._selection = Selection(options.pattern, options.ignore)

    @cached_property
    def root(self) -> str:
        return real_path(self._options.path)

    @cached_property
    def output_root(self) -> str:
        return real_path(self._options.output_dir or self._options.path)

    @cached_property
    def done_root(self) -> str | None:
        return None if self._options.done_dir is None else real_path(self._options.done_dir)

    @property
    def observed(self) -> list[str]:
        """Folders in which changes matter; the outputs' too, unless that could be half the disc."""
        is_around = self.root.startswith(self.output_root.rstrip("/") + "/")
        return [self.root] if is_around else [self.root, self.output_root]

    def check(self) -> None:
        """Look whether it can be watched at all.

        Raises:
            InputError: it cannot be read.
            OutputError: nothing can be written where its outputs go.
        """
        try:
            os.listdir(self.root)
        except NotADirectoryError as exc:
            raise InputError(f"{self.root}: is no folder; `voxpipe transcribe` takes files") from exc
        except OSError as exc:
            raise InputError(f"{self.root}: {explain(exc)}") from exc
        for folder in (self.output_root, self.done_root):
            if folder is None:
                continue
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as exc:
                raise OutputError(f"cannot make the folder {folder}: {explain(exc)}") from exc
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OutputError(f"cannot write in {folder}; name another folder for it")

    def outputs_of(self, path: str) -> str:
        """The folder in which the outputs of a recording go."""
        return os.path.dirname(os.path.join(self.output_root, os.path.relpath(path, self.root)))

    def mirror(self, folder: str) -> str:
        """The watched folder that a folder of outputs stands for."""
        return os.path.normpath(os.path.join(self.root, os.path.relpath(folder, self.output_root)))

    def has_output(self, path: str) -> bool:
        """Whether a path lies where outputs go."""
        return path.startswith(self.output_root + "/") and f"/{STATE_FOLDER}/" not in path

    def is_recording(self, path: str) -> bool:
        """Whether a path that was reported is a recording's: by its name, its folders, and where a link leads."""
        if not path.startswith(self.root + "/"):
            return False
        return self.is_looked_into(os.path.dirname(path)) and self._takes(path[len(self.root) + 1 :])

    def is_looked_into(self, folder: str) -> bool:
        """Whether a folder may hold recordings."""
        if folder == self.root:
            return True
        if not self._options.recursive or not folder.startswith(self.root + "/"):
            return False
        parts = folder[len(self.root) + 1 :].split("/")
        return all(self._enters("/".join(parts[:number])) for number in range(1, len(parts) + 1))

    def scan(self, *, tidy: bool = True) -> Iterator[tuple[str, os.stat_result] | None]:
        """Yield every recording with its status, a folder at a time, in the order of their names; None now and then.

        Args:
            tidy: remove what nothing is left of beside the outputs; it takes a look at every record.

        Raises:
            OSError: the folder itself cannot be read; one in it that cannot is passed over.
        """
        waiting = [""]
        n_folders = 0
        while waiting:
            n_folders += 1
            below = waiting.pop()
            try:
                entries = sorted(os.scandir(os.path.join(self.root, below)), key=lambda entry: entry.name)
            except OSError:
                if not below:
                    raise
                continue
            for entry in entries:
                path = os.path.join(below, entry.name)
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if self._options.recursive and self._enters(path):
                            waiting.append(path)
                    elif self._takes(path):
                        status = entry.stat()
                        if stat.S_ISREG(status.st_mode):
                            yield entry.path, status
                            continue
                except OSError:  # gone, or a link that leads nowhere
                    continue
                yield None
            if tidy:
                yield from (None for _ in prune(os.path.join(self.output_root, below)))
        self.n_folders = n_folders

    def _enters(self, below: str) -> bool:
        folder = os.path.join(self.root, below)
        return self._selection.enters(below) and folder not in (self.output_root, self.done_root)

    def _takes(self, below: str) -> bool:
        if not self._selection.takes(below):
            return False
        folder, name = os.path.split(os.path.join(self.root, below))
        is_own = name.rpartition(".")[2] in FORMATS and owner_of(folder, name) is not None
        return not is_own and self._is_inside(os.path.join(folder, name))

    def _is_inside(self, path: str) -> bool:
        """Whether a file lies in the tree: a link out of it could make anything that we may read into text."""
        if not os.path.islink(path):
            return True
        return real_path(path).startswith(self.root + "/")


def explain(error: OSError) -> str:
    """A system's reason, with macOS's own one where it may be that."""
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError) and os.uname().sysname == "Darwin":
        return (
            f"{reason}; macOS may want voxpipe allowed under Privacy & Security, Files and Folders or Full Disk Access"
        )
    return reason
