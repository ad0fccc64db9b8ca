"""`voxpipe doctor` on a sound machine, and on one with each thing broken."""

import hashlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Result, environment, live, run
from voxpipe.checkpoints.hub import TINY, Choice
from voxpipe.doctor import memory, model_files
from voxpipe.errors import EX_OK, EX_UNAVAILABLE


def doctor(runtime: Path, *arguments: str, **changes: str | None) -> Result:
    return run("doctor", *arguments, env=environment(XDG_RUNTIME_DIR=str(runtime), VOXPIPE_SOCKET=None, **changes))


def checks(result: Result) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(result.stdout)["checks"]}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_all_is_well(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert (done.status, done.stderr) == (EX_OK, "")
    lines = done.stdout.decode().splitlines()
    assert all(line.startswith("ok ") for line in lines)
    names = [line.split()[1] for line in lines]
    assert names[-5:] == ["cache", "sockets", "daemon", "ffmpeg", "speed"]
    assert {"voxpipe", "backend", "model", "memory"} <= set(names)
    assert "s for a second of audio" in lines[-1]


def test_each_problem_comes_with_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "voxpipe").mkdir()
    (tmp_path / "voxpipe").chmod(0o777)
    path = tmp_path / "voxpipe" / "voxpipe.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    (tmp_path / "bin").mkdir()
    # 1. everything that can be broken from outside is
    done = doctor(tmp_path, "--json", "--model", "4bit", PATH=str(tmp_path / "bin"), HF_HOME=str(tmp_path / "hf"))
    assert done.status == EX_UNAVAILABLE
    found = checks(done)
    assert json.loads(done.stdout)["ok"] is False
    assert found["model"]["remedy"] == "voxpipe pull 4bit"
    assert found["sockets"]["remedy"] == f"chmod go-w {path.parent}"
    assert found["daemon"]["remedy"] == f"rm {path}"
    assert "ffmpeg" in found["ffmpeg"]["remedy"]
    assert found["speed"]["ok"]
    # 2. the commands mend it
    path.parent.chmod(0o700)
    path.unlink()
    found = checks(doctor(tmp_path, "--json"))
    assert [name for name, one in found.items() if not one["ok"] and name != "ffmpeg"] == []


def test_a_running_daemon_is_seen(tmp_path: Path) -> None:
    with live("serve", env=environment(XDG_RUNTIME_DIR=str(tmp_path), VOXPIPE_SOCKET=None)) as voxpipe:
        voxpipe.wait_for("ready")
        found = checks(doctor(tmp_path, "--json"))
        assert found["daemon"]["value"] == f"process {voxpipe.process.pid}, model tiny, 0 stream(s)"
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model as the hub's cache stores one: links to files named by their hashes."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for source in TINY.iterdir():
        data = source.read_bytes()
        is_big = source.suffix == ".safetensors"
        name = hashlib.sha256(data) if is_big else hashlib.sha1(b"blob %d\0" % len(data) + data)
        (blobs / name.hexdigest()).write_bytes(data)
        (snapshot / source.name).symlink_to(blobs / name.hexdigest())
    return snapshot


def test_hashes_are_compared(copy: Path) -> None:
    choice = Choice("4bit", copy)
    assert "hashes of 3 of 3 files agree" in model_files(choice).value
    weights = next(copy.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    finding = model_files(choice)
    assert not finding.ok
    assert f"{weights} is damaged" in finding.value
    assert finding.remedy == "voxpipe pull 4bit"


def test_a_broken_download_is_seen(copy: Path) -> None:
    weights = next(copy.glob("*.safetensors"))
    os.truncate(weights, 1000)
    assert model_files(Choice("4bit", copy)).remedy == "voxpipe pull 4bit"
    weights.unlink()
    assert model_files(Choice("4bit", copy)).remedy == "voxpipe pull 4bit"


def test_a_model_that_is_too_big(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)  # a hole
    finding = memory(Choice("huge", tmp_path))
    assert not finding.ok
    assert "huge wants 8192.5" in finding.value
