"""`voxpipe doctor` on a sound machine, and on one with each thing broken."""

import hashlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.cli.process import Result, environment, live, run
from voxpipe import doctor as module
from voxpipe.checkpoints.hub import TINY, Choice
from voxpipe.checkpoints.probe import probe
from voxpipe.doctor import WORKING_BYTES, memory, model_files, usable_memory
from voxpipe.errors import EX_OK, EX_UNAVAILABLE
from voxpipe.service.place import default_socket


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's; the name is short, as the daemon's socket is far below on a Mac."""
    return tmp_path_factory.mktemp("h")


def variables(home: Path, **changes: str | None) -> dict[str, str]:
    return environment(HOME=str(home), XDG_RUNTIME_DIR=str(home), VOXPIPE_SOCKET=None, **changes)


def doctor(home: Path, *arguments: str, **changes: str | None) -> Result:
    return run("doctor", *arguments, env=variables(home, **changes))


def socket_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon of the user listens."""
    for name, value in (("HOME", str(home)), ("XDG_RUNTIME_DIR", str(home))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VOXPIPE_SOCKET", raising=False)
    return default_socket()


def checks(result: Result) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(result.stdout)["checks"]}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_all_is_well(home: Path) -> None:
    done = doctor(home)
    assert (done.status, done.stderr) == (EX_OK, "")
    lines = done.stdout.decode().splitlines()
    assert all(line.startswith("ok ") for line in lines)
    names = [line.split()[1] for line in lines]
    assert names[-5:] == ["cache", "sockets", "daemon", "ffmpeg", "speed"]
    assert {"voxpipe", "backend", "model", "memory"} <= set(names)
    assert "s for a second of audio" in lines[-1]


def test_each_problem_comes_with_what_mends_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = socket_of(home, monkeypatch)
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    (home / "bin").mkdir()
    # 1. everything that can be broken from outside is
    done = doctor(home, "--json", "--model", "4bit", PATH=str(home / "bin"), HF_HOME=str(home / "hf"))
    assert done.status == EX_UNAVAILABLE
    found = checks(done)
    assert json.loads(done.stdout)["ok"] is False
    assert found["model"]["remedy"] == "voxpipe pull 4bit"
    assert "memory" not in found
    assert found["sockets"]["remedy"] == f"chmod go-w {path.parent}"
    assert found["daemon"]["remedy"] == f"rm {path}"
    assert "ffmpeg" in found["ffmpeg"]["remedy"]
    assert found["speed"]["ok"]
    # 2. the commands mend it
    path.parent.chmod(0o700)
    path.unlink()
    found = checks(doctor(home, "--json"))
    assert [name for name, one in found.items() if not one["ok"] and name != "ffmpeg"] == []


def test_a_running_daemon_is_seen(home: Path) -> None:
    with live("serve", env=variables(home)) as voxpipe:
        voxpipe.wait_for("ready")
        found = checks(doctor(home, "--json"))
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
    assert "hashes of 3 files agree" in model_files(choice).value
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


def test_a_model_that_is_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what it takes once loaded: a CPU's weights are plain, whatever the files hold."""
    facts = probe(TINY)
    if mx.default_device() == mx.cpu:
        assert facts.memory_bytes > 3 * facts.file_bytes
    needed = facts.memory_bytes + facts.stream_bytes + WORKING_BYTES
    monkeypatch.setattr(module, "usable_memory", lambda: (needed, 1 << 33))
    assert memory(Choice("tiny", TINY)).ok
    monkeypatch.setattr(module, "usable_memory", lambda: (needed - 1, 1 << 33))
    finding = memory(Choice("tiny", TINY))
    assert finding.remedy == "voxpipe --model tiny"
    assert finding.value == f"{needed / 2**30:.1f} of 8.0 GiB free; tiny wants {needed / 2**30:.1f}"


def test_memory_is_there() -> None:
    usable, total = usable_memory()
    assert 100e6 < usable <= total
