"""A watcher that is killed at the n-th thing it does to the disc, for every n; run as `python -m tests.watch.killed FOLDER`.

No model: what would be said is made up from the recording's size. Each n has a folder of its own, with a recording whose
outputs are of an earlier version, a new one, and one whose output would replace a file of the user's. After the kill, what
is there must be whole; after one more run, all must be done.
"""

import builtins
import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from voxpipe.output.transcript import Delta
from voxpipe.watch import records
from voxpipe.watch.folder import WatchOptions
from voxpipe.watch.reports import Reports
from voxpipe.watch.watcher import FolderWatcher

FUNCTIONS = ("link", "replace", "rename", "unlink", "fsync", "open", "makedirs")
FORMATS = ("txt", "srt")


def text(size: int) -> str:
    return f"there are {size} bytes"


def watch(folder: Path) -> None:
    """Do all that there is to do."""
    options = WatchOptions(str(folder), output_dir=f"{folder}/out", formats=FORMATS, settle_s=0.0, once=True, poll=True)
    watcher = FolderWatcher(options, Reports(), model="none", delay_ms=480, tell=lambda: None)
    watcher.start()
    while not watcher.finished:
        job = watcher.take()
        if job is None:
            watcher.join(0.002)
            continue
        delta = Delta(text(job.version.size), start=0.0, end=1.0, tokens=(1,), logprob=0.0)
        spoken: Any = SimpleNamespace(
            channel=0, n_channels=1, deltas=[delta], audio_s=1.0, is_last=True, truncated=False, error=None
        )
        watcher.bring(job, spoken)
    assert watcher.failure is None, watcher.failure


def dying(function: Callable[..., Any], calls: list[int], n: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def is_killed(folder: Path, n: int) -> bool:
    """Watch in a child that dies at its n-th call; return whether it came to that."""
    child = os.fork()
    if child == 0:
        calls: list[int] = []
        for name in FUNCTIONS:
            setattr(os, name, dying(getattr(os, name), calls, n))
        builtins.open = dying(builtins.open, calls, n)
        watch(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0


def check(folder: Path, sizes: dict[str, set[int]], *, is_done: bool) -> None:
    """What is there is whole and is ours to write; with `is_done`, all is there."""
    out = folder / "out"
    assert (out / "mine.txt").read_text() == "my notes"
    for stem, allowed in sizes.items():
        for one in FORMATS:
            path = out / f"{stem}.{one}"
            assert path.exists() or not is_done, path
            if path.exists():
                written = path.read_text()
                assert any(text(size) in written for size in allowed), (path, written)
                assert written.endswith("\n"), written
    names = {path.name for path in out.iterdir()} - {".voxpipe", "mine.wav.error.json", "mine.txt"}
    assert names <= {f"{stem}.{one}" for stem in sizes for one in FORMATS}, names
    if is_done:
        assert (out / "mine.wav.error.json").exists()
        list(records.prune(str(out)))  # as every look at the folder does, a minute later
        left = {path.name for path in (out / ".voxpipe").iterdir()}
        assert left <= {"old.json", "new.json"}, left


def main(root: Path) -> int:
    records.LEFTOVER_S = -1.0
    first = root / "first"
    (first / "out").mkdir(parents=True)
    (first / "old.wav").write_bytes(bytes(10))
    (first / "out/mine.txt").write_text("my notes")
    watch(first)
    (first / "old.wav").write_bytes(bytes(20))
    (first / "new.wav").write_bytes(bytes(30))
    (first / "mine.wav").write_bytes(bytes(40))
    for n in count(1):
        folder = root / str(n)
        shutil.copytree(first, folder)
        if not is_killed(folder, n):
            check(folder, {"old": {20}, "new": {30}}, is_done=True)
            print(n - 1)
            return 0
        check(folder, {"old": {10, 20}, "new": {30}}, is_done=False)
        watch(folder)
        check(folder, {"old": {20}, "new": {30}}, is_done=True)
        shutil.rmtree(folder)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
