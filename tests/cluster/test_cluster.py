"""`--cluster`: a scheduler and workers in processes of their own, and what a local run would have made of the same files."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, HALL, TEXT, said, samples, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, run, wait_until
from tests.cluster.processes import DaskCluster, dask_cluster
from voxpipe.checkpoints.hub import TINY
from voxpipe.cli import main
from voxpipe.errors import EX_CANTCREAT, EX_CONFIG, EX_DATAERR, EX_NOINPUT, EX_OK, EX_UNAVAILABLE, EX_USAGE

OWN = Path("/proc/self/cwd")  # another folder for each process: so machines see different files under one path
needs_own = pytest.mark.skipif(not OWN.exists(), reason="needs a path that leads each process elsewhere")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two workers; only the first one has a model, and a recording that is not ours, in its own folder."""
    folder = tmp_path_factory.mktemp("cluster")
    with dask_cluster(folder) as cluster:
        first = cluster.add_worker("first")
        (first / "model").symlink_to(TINY)
        shutil.copy(HALL, first / "beach.wav")
        cluster.add_worker("second")
        cluster.wait_for_workers(2)
        yield cluster


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, str]:
    """All files in a folder, without how long it took to make them."""
    found = {path.name: path.read_text() for path in folder.iterdir()}
    return {name: re.sub(r',"wall_s":[\d.]+', "", text) for name, text in found.items()}


def two_channels(path: Path) -> Path:
    sound = samples(FUTURE)
    soundfile.write(path, [[sample, sample / 2] for sample in sound], 16_000)
    return path


# the same as here


def test_what_comes_out_is_what_a_local_run_gives(cluster: DaskCluster, tmp_path: Path) -> None:
    letter, cut = tmp_path / "letter.wav", tmp_path / "cut.flac"
    odd = tmp_path / os.fsdecode(b"\nx.flac" if sys.platform == "darwin" else b"\xff\nx.flac")  # APFS wants UTF-8
    shutil.copy(FUTURE, odd)
    letter.write_text(TEXT * 20)
    cut.write_bytes(FUTURE.read_bytes()[:25_000])
    files = [HALL, BEACH, odd, tmp_path / "gone.wav", letter, cut, two_channels(tmp_path / "two.wav"), tmp_path]
    runs: list[tuple[int, list[str], dict[str, str]]] = []
    for how in ([], ["--cluster", cluster.address], ["--cluster", cluster.address, "--send"]):
        out = tmp_path / f"out{len(runs)}"
        out.mkdir()
        (out / "hall.ch1.txt").write_text("mine\n")
        arguments = ["transcribe", "--channels", "split", "-f", "txt,srt,vtt,json,jsonl", "-o", out]
        result = run(*arguments, *how, *files)
        runs.append((result.status, sorted(result.stderr.replace(str(out), "out").splitlines()), contents(out)))
    here, seen, sent = runs
    assert here[0] == EX_CANTCREAT  # what is there already comes first
    assert len(here[1]) == 5  # that, and what is missing, text, cut off, a folder
    assert len(here[2]) == 1 + 5 * (1 + 1 + 2)  # that, beach, the odd name, two channels
    assert seen == here
    assert sent == here


def test_stdout_keeps_the_order(cluster: DaskCluster, capfd: pytest.CaptureFixture[str]) -> None:
    files = [HALL, FUTURE, BEACH, FUTURE]
    assert main.run(["transcribe", "--model", "tiny", "--cluster", cluster.address, *map(str, files)]) == EX_OK
    printed = capfd.readouterr()
    assert [words(line) for line in printed.out.splitlines()] == [said(clip) for clip in files]
    assert printed.err == ""


# machines that differ


@needs_own
def test_a_file_that_a_worker_does_not_see_is_sent(cluster: DaskCluster, tmp_path: Path, out: Path) -> None:
    """The first worker has another file under its name, the second one none."""
    for clip in (BEACH, FUTURE):
        shutil.copy(clip, tmp_path)
    os.utime(tmp_path / "beach.wav", (1e9, 1e9))
    arguments = ["transcribe", "-f", "json", "-o", out, OWN / "beach.wav", OWN / "future.flac"]
    result = run(*arguments, "--cluster", cluster.address, cwd=tmp_path)
    assert (result.status, result.stderr) == (EX_OK, "")
    whole = json.loads((out / "beach.json").read_text())
    assert words(whole["text"]) == said(BEACH)
    assert (whole["audio"]["path"], whole["audio"]["mtime"]) == (str(OWN / "beach.wav"), 1e9)
    assert words(json.loads((out / "future.json").read_text())["text"]) == said(FUTURE)


@needs_own
def test_a_worker_without_the_model_takes_no_part(cluster: DaskCluster, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(TINY)
    arguments = ["transcribe", "--cluster", cluster.address, "--model", OWN / "model", *[FUTURE] * 4]
    result = run(*arguments, cwd=tmp_path)
    assert result.status == EX_OK
    assert [words(line) for line in result.stdout.decode().splitlines()] == [said(FUTURE)] * 4
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(rf"voxpipe: the worker \S+ takes no part: there is no model '{OWN}/model': .*", line)


def test_no_worker_with_the_model(cluster: DaskCluster, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["transcribe", "--cluster", cluster.address, "--model", "nobody/nothing", "-o", str(out), str(FUTURE)]
    assert main.run(command) == EX_CONFIG
    reason = "the model 'nobody/nothing' is not in the local cache; fetch it with: voxpipe pull nobody/nothing"
    assert capfd.readouterr().err == f"voxpipe: no worker at {cluster.address} can load the model: {reason}\n"
    assert list(out.iterdir()) == []


# an end before the end


def test_an_interrupt_keeps_what_is_finished_and_frees_the_workers(
    cluster: DaskCluster, tmp_path: Path, out: Path
) -> None:
    # 1. a short file and a very long one
    long = tmp_path / "long.flac"
    soundfile.write(long, np.tile(samples(FUTURE), 600), 16_000)
    command = [*COMMAND, "transcribe", "--cluster", cluster.address, "-o", out, FUTURE, long]
    with subprocess.Popen(map(str, command), stderr=subprocess.PIPE, env=environment()) as process:
        try:
            # 2. when the short one is finished and a worker is busy with the long one, a signal
            wait_until(lambda: (out / "future.txt").exists() and any(cluster.ask(n_busy).values()))
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    # 3. nothing of the long one is left, here or there
    assert process.returncode == 130
    assert stderr.decode() == "voxpipe: interrupted; 1 of 2 files are finished\n"
    assert [path.name for path in out.iterdir()] == ["future.txt"]
    wait_until(lambda: not any(cluster.ask(n_busy).values()))


def n_busy(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


def test_a_worker_dies_and_another_comes(tmp_path: Path, out: Path) -> None:
    n_files = 12
    files = [Path(shutil.copy(FUTURE, tmp_path / f"{n}.flac")) for n in range(n_files)]
    with dask_cluster(tmp_path) as cluster:
        cluster.add_worker("one")
        cluster.add_worker("two")
        cluster.wait_for_workers(2)
        command = [*COMMAND, "transcribe", "--cluster", cluster.address, "-f", "txt,json", "-o", out, *files]
        with subprocess.Popen(map(str, command), stderr=subprocess.PIPE, env=environment()) as process:
            try:
                # 1. some files are finished; both workers are killed, and all that they have is lost
                wait_until(lambda: len(list(out.glob("*.json"))) >= 3)
                cluster.kill("one")
                cluster.kill("two")
                # 2. another one comes
                cluster.add_worker("late")
                _, stderr = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
    assert process.returncode == EX_OK
    assert stderr.decode() in ("", f"voxpipe: there is no worker at {cluster.address}; waiting for one\n")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{n}.{name}" for n in range(n_files) for name in ("json", "txt")
    )
    for n, file in enumerate(files):
        assert words((out / f"{n}.txt").read_text()) == said(FUTURE)
        assert json.loads((out / f"{n}.json").read_text())["audio"]["path"] == str(file)


# what a user may get wrong


def test_no_scheduler_there(out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Something listens, and never answers."""
    monkeypatch.setattr("voxpipe.cluster.client.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        status = main.run(["transcribe", "--model", "tiny", "--cluster", address, "-o", str(out), str(FUTURE)])
    assert status == EX_UNAVAILABLE
    start = f"start one with `dask scheduler`, and workers with `dask worker {address}`"
    assert capfd.readouterr().err == f"voxpipe: no scheduler answers at {address}; {start}\n"
    assert list(out.iterdir()) == []


def test_a_file_that_is_too_large_to_be_sent(
    cluster: DaskCluster, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voxpipe.cluster.files.MAX_FILE_BYTES", FUTURE.stat().st_size)
    command = ["transcribe", "--model", "tiny", "--cluster", cluster.address, "--send", "-o", str(out)]
    assert main.run([*command, str(BEACH), str(FUTURE)]) == EX_NOINPUT
    remedy = "put it where the workers see it under the same path"
    assert caplog.messages == [f"{BEACH}: is too large to be sent; {remedy}"]
    assert [path.name for path in out.iterdir()] == ["future.txt"]


def test_without_the_package(tmp_path: Path) -> None:
    code = "import sys; sys.modules['distributed'] = None; from voxpipe.cli.main import main; main()"
    command = [sys.executable, "-c", code, "transcribe", "--cluster", "tcp://127.0.0.1:9", str(FUTURE)]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=PATIENCE_S)
    assert done.returncode == EX_UNAVAILABLE
    assert done.stderr.decode() == (
        "voxpipe: a cluster takes the package distributed: pip install 'voxpipe[cluster]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--send"], EX_USAGE, "--send says how files get to a cluster, and there is none; name it with --cluster"),
        (
            ["--cluster", "nonesuch.json"],
            EX_NOINPUT,
            "nonesuch.json: is no address (tcp://HOST:8786), and as a scheduler file: No such file or directory",
        ),
        (["--cluster", "gopher://here"], EX_USAGE, None),
    ],
)
def test_a_command_line_that_cannot_be_obeyed(
    capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str | None
) -> None:
    for command in ("transcribe", "watch"):
        assert main.run([command, "--model", "tiny", *arguments, str(FUTURE.parent)]) == status
        stderr = capfd.readouterr().err
        assert stderr.count("\n") == 1
        assert message is None or stderr == f"voxpipe: {message}\n"


# a watched folder


def test_a_watched_folder(cluster: DaskCluster, tmp_path: Path) -> None:
    """What is there is made; what cannot be read is said; the same again finds nothing to do."""
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(BEACH, folder)
    two_channels(folder / "sub" / "two.wav")
    (folder / "letter.wav").write_text(TEXT * 20)
    options = ["--once", "--settle", "0", "--channels", "split", "-f", "txt,json", "-o", out]
    command = ["watch", *options, "--cluster", cluster.address, folder]
    first, again = run(*command), run(*command)
    assert first.status == EX_DATAERR
    assert [event["type"] for event in first.events].count("done") == 2
    assert words((out / "beach.ch1.txt").read_text()) == said(BEACH)
    for channel in (1, 2):
        assert words((out / "sub" / f"two.ch{channel}.txt").read_text()) == said(FUTURE)
    assert json.loads((out / "beach.ch1.json").read_text())["audio"]["path"] == str(folder / "beach.wav")
    assert len(list(out.glob("letter*.error.json"))) == 1
    assert "done" not in [event["type"] for event in again.events]
