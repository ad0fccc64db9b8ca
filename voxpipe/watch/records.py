"""What voxpipe knows of the outputs it made: a small record per recording, in a hidden folder beside them.

An output cannot say of which version of a recording, and by which model, it was made; the record does, with a digest of each
output, so that nothing is ever replaced that somebody else wrote or changed. It is written twice, whole each time: before the
outputs get their names, and after. Who is killed in between leaves outputs that are known as ours and are made again.

A recording is named by its path from the folder of its outputs, so a tree may be moved as a whole.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

from voxpipe.errors import OutputError
from voxpipe.output.results import PART_SUFFIX, give_name, sync, sync_directory
from voxpipe.watch.claims import Claim

STATE_FOLDER = ".voxpipe"
LEFTOVER_S = 60.0  # after which a temporary file without a claim is nobody's
MAX_NAME_BYTES = 200  # of a record; longer names are shortened to a digest


@dataclass(frozen=True)
class Version:
    """A recording as it is, and how a transcript of it is made: what an output belongs to."""

    size: int
    mtime_ns: int
    model: str
    delay_ms: int
    channels: str


@dataclass(frozen=True)
class Record:
    """Of one recording.

    Attributes:
        source: its path from the folder of the outputs.
        outputs: the digest of each, by name.
        replaces: of outputs before them that may still be there.
        is_done: the outputs have got their names.
        is_moved: the recording was put away when it was done; another one under its name is another recording.
    """

    source: str
    version: Version
    outputs: Mapping[str, str] = field(default_factory=dict)
    replaces: Mapping[str, str] = field(default_factory=dict)
    is_done: bool = False
    is_moved: bool = False

    def is_of(self, source: str, size: int, mtime_ns: int) -> bool:
        is_same = (self.version.size, self.version.mtime_ns) == (size, mtime_ns)
        return self.source == source and (is_same or not self.is_moved)


class Place:
    """Where the outputs of one recording go, and what is known of them.

    Args:
        source: the recording.
        folder: of its outputs.
        has_namesake: a recording beside it would give outputs of the same names.
    """

    def __init__(self, source: str, folder: str, *, has_namesake: bool = False) -> None:
        self.folder = folder
        self.name = os.path.basename(source)
        self.source = os.path.relpath(source, folder)
        self._has_namesake = has_namesake
        self._state = os.path.join(folder, STATE_FOLDER)
        self._key = hashlib.sha256(os.fsencode(self.source)).hexdigest()[:24]

    @property
    def claim_path(self) -> str:
        return os.path.join(self._state, f"{self._key}.claim")

    def part_stem(self, channel: int) -> str:
        """Begins the temporary names of outputs: the same every time, so that what a killed process left is replaced."""
        return os.path.join(self._state, f".{self._key}.{channel}")

    def make(self) -> None:
        """Make the folders, or raise OSError."""
        os.makedirs(self._state, exist_ok=True)

    def clean(self) -> None:
        """Remove what a killed process that had the claim may have left; outputs on their way are written over."""
        for part in (self._record_part, self.failure_part):
            with suppress(OSError):
                os.unlink(part)

    def find(self, size: int, mtime_ns: int) -> tuple[str, Record | None]:
        """The stem of its outputs, and what is known of them.

        `talk.wav` is `talk`. It is `talk.wav`, and then `talk.wav.2`, where a record or a recording beside it has that.
        """
        free = None
        for number, stem in enumerate(self._stems()):
            record = read_record(self._record_path(stem))
            if record is not None and record.is_of(self.source, size, mtime_ns):
                return stem, record
            if record is None and (number > 0 or not self._has_namesake):
                free = free or stem
            if free is not None and number >= 1:
                break
        assert free is not None
        return free, None

    def reserve(self, stem: str, version: Version) -> Record | None:
        """Make the first record under a stem; None if somebody else was faster.

        Raises:
            OSError: it cannot be written.
        """
        record = Record(self.source, version)
        part = self._write_part(record)
        try:
            give_name(part, self._record_path(stem), replace=False)
        except OutputError:
            if read_record(self._record_path(stem)) is not None:
                return None
            os.replace(part, self._record_path(stem))  # a power cut or somebody has left it unreadable
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
        return record

    def release(self, stem: str) -> None:
        """Remove the record if nothing has come of it."""
        record = read_record(self._record_path(stem))
        if record is not None and record.source == self.source and not record.outputs and not record.replaces:
            with suppress(OSError):
                os.unlink(self._record_path(stem))

    def write(self, stem: str, record: Record) -> None:
        """Put a record in the place of the one before, so that it survives a power cut."""
        os.replace(self._write_part(record), self._record_path(stem))
        sync_directory(self._state)

    def is_done(self, record: Record, version: Version, formats: Collection[str]) -> bool:
        """Whether all outputs are there and belong to this version."""
        if record.version != version:
            return False
        wanted = {name for name in record.outputs if name.rpartition(".")[2] in formats}
        if {name.rpartition(".")[2] for name in wanted} != set(formats):
            return False
        if record.is_done:  # those that somebody has improved by hand included
            return all(os.path.lexists(os.path.join(self.folder, name)) for name in wanted)
        return all(self._digest(name) == record.outputs[name] for name in wanted)

    def may_replace(self, name: str, record: Record | None) -> bool:
        """Whether there is nothing under an output's name, or just what voxpipe has put there."""
        if not os.path.lexists(os.path.join(self.folder, name)):
            return True
        ours = () if record is None else (record.outputs.get(name), record.replaces.get(name))
        digest = self._digest(name)
        return digest is not None and digest in ours

    def check_free(self, names: Iterable[str], record: Record | None) -> None:
        """Raise OutputError if an output would replace what voxpipe did not make."""
        for name in names:
            if not self.may_replace(name, record):
                path = os.path.join(self.folder, name)
                raise OutputError(f"{path} is there already and is not as voxpipe made it; move it away")

    def present(self, record: Record) -> dict[str, str]:
        """The digests of outputs of ours that are there: some of them may be older than the record's own."""
        there = {name: self._digest(name) for name in (*record.replaces, *record.outputs)}
        return {
            name: digest
            for name, digest in there.items()
            if digest is not None and digest in (record.outputs.get(name), record.replaces.get(name))
        }

    def remove_leftovers(self, before: Record, now: Record) -> dict[str, str]:
        """Remove what was made of another version and is not made any more; return the outputs that there are now.

        Outputs of the same version in other formats stay.
        """
        kept = dict(now.outputs)
        for name, digest in now.replaces.items():
            if name in kept:
                continue
            if before.version == now.version and before.is_done and before.outputs.get(name) == digest:
                kept[name] = digest
            else:
                with suppress(OSError):
                    os.unlink(os.path.join(self.folder, name))
        return kept

    def _digest(self, name: str) -> str | None:
        return digest_of(os.path.join(self.folder, name))

    def _stems(self) -> Iterator[str]:
        yield os.path.splitext(self.name)[0]
        yield self.name
        yield from (f"{self.name}.{number}" for number in count(2))

    def _record_path(self, stem: str) -> str:
        return os.path.join(self._state, f"{shortened(stem)}.json")

    def _write_part(self, record: Record) -> str:
        return write_part(self._record_part, asdict(record))

    @property
    def _record_part(self) -> str:
        return os.path.join(self._state, f".{self._key}.record{PART_SUFFIX}")

    @property
    def failure_part(self) -> str:
        return os.path.join(self._state, f".{self._key}.error{PART_SUFFIX}")


def read_record(path: str) -> Record | None:
    """None if there is none that can be read."""
    facts = read_object(path)
    try:
        return Record(**{**facts, "version": Version(**facts["version"])})
    except (TypeError, KeyError):
        return None


def prune(folder: str) -> Iterator[None]:
    """Remove records that nothing is left of, no recording and no output, and what a killed process has left; step by step."""
    state = os.path.join(folder, STATE_FOLDER)
    try:
        names = os.listdir(state)
    except OSError:
        return
    for name in names:
        path = os.path.join(state, name)
        if name.endswith(".claim"):
            Claim(path).remove_stale()
        elif name.endswith(PART_SUFFIX):
            has_owner = os.path.lexists(os.path.join(state, name.split(".")[1] + ".claim"))
            with suppress(OSError):
                if not has_owner and time.time() - os.stat(path).st_mtime > LEFTOVER_S:
                    os.unlink(path)
        elif (record := read_record(path)) is not None:
            left = (record.source, *record.outputs, *record.replaces)
            if not any(os.path.lexists(os.path.join(folder, one)) for one in left):
                with suppress(OSError):
                    os.unlink(path)
        yield


def owner_of(folder: str, name: str) -> str | None:
    """The recording that a file in a folder of outputs was made of, from its name alone; None if it was not."""
    stem = os.path.splitext(name)[0]
    for one in (stem, os.path.splitext(stem)[0]):  # that of a channel has one suffix more
        record = read_record(os.path.join(folder, STATE_FOLDER, f"{shortened(one)}.json"))
        if record is not None and (name in record.outputs or name in record.replaces):
            return os.path.normpath(os.path.join(folder, record.source))
    return None


def moved(record: Record) -> Record:
    return replace(record, is_moved=True)


def digest_of(path: str) -> str | None:
    """Of a regular file; None if it is none."""
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def shortened(name: str) -> str:
    """A name, or something in its place that leaves room for a suffix."""
    encoded = os.fsencode(name)
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    return encoded[: MAX_NAME_BYTES // 2].decode("utf-8", "ignore") + "~" + hashlib.sha256(encoded).hexdigest()[:24]


def write_part(part: str, facts: Mapping[str, Any]) -> str:
    """Write an object whole under a temporary name, and return that."""
    try:
        with open(part, "w", encoding="ascii") as file:
            json.dump(facts, file, indent=1)  # names that are no UTF-8 are escaped
            file.flush()
            sync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.unlink(part)
        raise
    return part


def read_object(path: str) -> dict[str, Any]:
    """What `write_part` has written; nothing if that cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
