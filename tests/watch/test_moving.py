"""Recordings that are put away: onto another disc, several at a time, never onto each other."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.processes import small_disk
from tests.watch.bench import files
from voxpipe.watch.moving import put_away


@pytest.fixture
def disc(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "done", 256) as disc:
        yield disc


def recording(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))  # whole seconds, as recorders write them
    return path


def away(path: Path, target: Path) -> str | None:
    status = path.stat()
    return put_away(str(path), str(target), status.st_size, status.st_mtime_ns)


def test_two_folders_put_recordings_of_one_name_away_at_once(
    tmp_path: Path, disc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [recording(tmp_path / name / "x.wav", name.encode() * 1000) for name in ("talks", "calls")]
    copy, both = shutil.copy2, threading.Barrier(2)

    def copy_together(source: str, target: str) -> Any:
        copy(source, target)
        if source not in copied:  # a second try is alone
            copied.add(source)
            both.wait(5)

    copied: set[str] = set()
    monkeypatch.setattr(shutil, "copy2", copy_together)
    went: dict[str, str | None] = {}
    threads = [
        threading.Thread(target=lambda path=path: went.update({path.parent.name: away(path, disc / "x.wav")}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Path(one or "").read_bytes()[:5] for one in went.values()) == [b"calls", b"talks"]
    assert files(disc) == ["x.2.wav", "x.wav"]
    assert not any(path.exists() for path in paths)


def test_recordings_that_look_the_same(tmp_path: Path, disc: Path) -> None:
    """Two channels of a recorder are as long as each other and end in the same second."""
    left, right = (recording(tmp_path / name / "x.wav", name[:1].encode() * 1000) for name in ("left", "right"))
    assert away(left, disc / "x.wav") == str(disc / "x.wav")
    assert away(right, disc / "x.wav") == str(disc / "x.2.wav")
    assert ((disc / "x.wav").read_bytes()[:1], (disc / "x.2.wav").read_bytes()[:1]) == (b"l", b"r")


def test_what_a_killed_process_had_copied_already(tmp_path: Path, disc: Path) -> None:
    path = recording(tmp_path / "in/x.wav", b"x" * 1000)
    shutil.copy2(path, disc / "x.wav")
    assert away(path, disc / "x.wav") == str(disc / "x.wav")
    assert not path.exists()
    assert files(disc) == ["x.wav"]


def test_a_disc_without_room(tmp_path: Path, disc: Path) -> None:
    path = recording(tmp_path / "in/x.wav", bytes(300 * 1024))
    with pytest.raises(OSError, match="No space left on device"):
        away(path, disc / "x.wav")
    assert path.exists()
    assert files(disc) == []
