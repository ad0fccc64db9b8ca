"""A watched folder under test: its own thread, a real folder, and the model on the test's thread."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.cli.clips import FUTURE, resampled
from tests.cli.process import PATIENCE_S, Event
from voxpipe import Transcriber
from voxpipe.output.events import JsonLines
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.watch.folder import WatchOptions
from voxpipe.watch.reports import Reports
from voxpipe.watch.watcher import FolderWatcher
from voxpipe.watch.work import FolderWork

SETTLE_S = 0.2
ANY_BYTES = sys.platform != "darwin"  # whose names are text


class Collected(io.RawIOBase):
    """Lines of JSON as they are written."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, line: Any) -> int:
        self.events.append(json.loads(bytes(line)))
        return len(line)


class Watching:
    """Folders that are watched while the test waits for something."""

    def __init__(self, model: Transcriber, folders: list[WatchOptions], *, jobs: int = 4) -> None:
        self._lines = Collected()
        self._model = model
        self._wakeup = Wakeup()
        self._engine = model.create_engine(n_expected=jobs)
        self.work = FolderWork(jobs=jobs, tell=self._wakeup.set)
        self.reports = Reports(JsonLines(self._lines))  # type: ignore[arg-type]
        for options in folders:
            self.work.add(FolderWatcher(options, self.reports, model=model.name, delay_ms=480, tell=self._wakeup.set))

    @property
    def events(self) -> list[Event]:
        return list(self._lines.events)

    def of(self, type: str, path: Path | None = None) -> list[Event]:
        """Events of a type, of one file."""
        return [one for one in self.events if one["type"] == type and path in (None, Path(one.get("file", "")))]

    def until(self, condition: Callable[[], Any]) -> None:
        """Transcribe until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s, having {self.events}"
            self.work.prepare(self._model, self._engine)
            worked = self._engine.turn()
            self.work.take(worked)
            if not worked:
                self._wakeup.wait(0.02)

    def until_event(self, type: str, path: Path | None = None, *, n: int = 1) -> list[Event]:
        self.until(lambda: len(self.of(type, path)) >= n)
        return self.of(type, path)


@contextmanager
def watching(model: Transcriber, folder: Path, *, jobs: int = 4, **options: Any) -> Iterator[Watching]:
    """Watch a folder while the block lasts; `output_dir` and the like as for WatchOptions."""
    options = {"settle_s": SETTLE_S, **options}
    watched = Watching(model, [WatchOptions(str(folder), **options)], jobs=jobs)
    try:
        yield watched
    finally:
        watched.work.stop()


def once(model: Transcriber, folder: Path, **options: Any) -> Watching:
    """Transcribe what is there, and return what was told."""
    with watching(model, folder, once=True, **options) as watched:
        watched.until(lambda: watched.work.is_over)
    return watched


def speech(path: Path, rate: int = 16_000, *, channels: int = 1, subtype: str | None = None, repeats: int = 1) -> Path:
    """A recording with the clip FUTURE in it; written elsewhere and renamed, so that it is whole at once."""
    sound = np.tile(resampled(FUTURE, rate, channels=channels), (repeats, 1))
    return put(path, lambda part: soundfile.write(part, sound, rate, subtype, format=path.suffix[1:].upper() or "WAV"))


def short(path: Path, seconds: float = 0.3) -> Path:
    """A recording of a part of a word."""
    sound = resampled(FUTURE, 16_000)[: round(16_000 * seconds)]
    return put(path, lambda part: soundfile.write(part, sound, 16_000, format="WAV"))


def put(path: Path, write: Callable[[Path], Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{os.getpid()}-{threading.get_ident()}.part"
    write(part)
    part.rename(path)
    return path


def files(folder: Path) -> list[str]:
    """Names of all files below a folder, but for voxpipe's own."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if ".voxpipe/" not in name)


def left_over(folder: Path) -> list[str]:
    """What of voxpipe's own should not be there when nothing is being done."""
    return [path.name for path in folder.rglob(".voxpipe/*") if not path.name.endswith(".json")]
