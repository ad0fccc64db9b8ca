"""`voxpipe watch` as real processes: killed, stopped, two at once, on a terminal, with what it says when it cannot."""

import ctypes
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, said, samples, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, parse, run, wait_until
from tests.random_checkpoints import write_checkpoint
from tests.runtime.models import SMALL
from tests.watch.bench import files, left_over, short, speech, watching
from voxpipe import Transcriber
from voxpipe.cli import main
from voxpipe.cli.progress import Estimate, ProgressBar
from voxpipe.cli.recordings import Awake
from voxpipe.cli.watch import WatchDisplay
from voxpipe.errors import EX_CANTCREAT, EX_DATAERR, EX_NOINPUT, EX_OK, EX_USAGE

FAST = ("--settle", "0.1", "-f", "txt,json")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fastest random weights, as a directory."""
    return write_checkpoint(tmp_path_factory.mktemp("watched") / "model", sizes=SMALL, seed=5)


def watch(*arguments: str | Path, **options: Any) -> Any:
    return live("watch", *arguments, stdin=subprocess.DEVNULL, **options)


def recordings(folder: Path, n: int) -> list[str]:
    """Many different recordings of parts of words, at once."""
    folder.mkdir(parents=True)
    sound = np.concatenate([samples(FUTURE), samples(BEACH)])
    for number in range(n):
        first = 16 * number % (len(sound) - 8_000)
        soundfile.write(folder / f"{number:04}.wav", sound[first : first + 4_800 + number % 100], 16_000)
    return [f"{number:04}" for number in range(n)]


def kill_often(folder: Path, out: Path, model: str | Path, stems: list[str], *, n_kills: int, seed: int) -> None:
    """Drop recordings, kill the watcher at random moments while it works, and see that in the end all is there once."""
    dice = random.Random(seed)
    options = ("--model", model, *FAST, "-o", out, folder)
    for kill in range(n_kills):
        goal = len(stems) * (kill + dice.random()) / (n_kills + 1)
        with watch(*options) as process:
            wait_for_outputs(out, goal)
            time.sleep(dice.random() * 0.05)
            process.signal(signal.SIGKILL)
            process.end()
        for path in out.glob("*.json"):
            assert path.read_text().endswith("]\n}\n"), path
    done = run("watch", "--once", *options)
    assert done.status == EX_OK
    assert files(out) == sorted(f"{stem}.{one}" for stem in stems for one in ("json", "txt"))
    alone = folder.parent / "alone"  # each is what it is without a watcher
    chosen = dice.sample(stems, min(20, len(stems)))
    names = [folder / f"{stem}.wav" for stem in chosen]
    assert run("transcribe", "--model", model, "-f", "txt", "-o", alone, *names).status == EX_OK
    for stem in chosen:
        assert (out / f"{stem}.txt").read_text() == (alone / f"{stem}.txt").read_text()
    assert [event["type"] for event in run("watch", "--once", *options).events] == ["ready", "watching"]
    assert [name for name in left_over(out) if name.endswith(".claim")] == []


def wait_for_outputs(out: Path, n: float) -> None:
    wait_until(lambda: len(list(out.glob("*.json"))) >= n, lambda: f"{n:.0f} outputs")


def test_killed_five_times_while_many_files_are_transcribed(tmp_path: Path, small_model: Path) -> None:
    stems = recordings(tmp_path / "in", 60)
    (tmp_path / "out").mkdir()
    kill_often(tmp_path / "in", tmp_path / "out", small_model, stems, n_kills=5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_five_times_while_1000_files_are_transcribed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cli.process.PATIENCE_S", 900.0)
    stems = recordings(tmp_path / "in", 1000)
    (tmp_path / "out").mkdir()
    kill_often(tmp_path / "in", tmp_path / "out", "tiny", stems, n_kills=5, seed=2)


def test_killed_at_every_single_step(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # where an fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        command = [sys.executable, "-m", "tests.watch.killed", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_file_that_grows_for_a_minute_in_bursts_longer_than_the_settle_time(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = speech(tmp_path / "whole.wav", repeats=8).read_bytes()
    with watch("--settle", "3", tmp_path / "in") as process:
        process.wait_for("watching")
        with open(tmp_path / "in/a.wav", "wb", buffering=0) as file:
            for first in range(0, len(data), len(data) // 12):
                file.write(data[first : first + len(data) // 12])
                time.sleep(5)
        process.wait_for("done")
    assert process.count("done") == 1
    assert words((tmp_path / "in/a.txt").read_text()) == said(FUTURE) * 8


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_hours_take_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    sound = samples(BEACH)
    peaks = {}
    for name, seconds in (("minute", 60), ("hours", 3 * 3600)):
        path = tmp_path / f"{name}.flac"
        with soundfile.SoundFile(path, "w", 16_000, 1) as file:
            for _ in range(round(seconds / (len(sound) / 16_000))):
                file.write(sound)
        out = tmp_path / name
        command = [*COMMAND, "transcribe", "--model", "tiny", "-f", "txt,srt,jsonl", "-o", out, path]
        process = subprocess.Popen([*map(str, command)], env=environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == EX_OK
        peaks[name] = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # bytes or KiB
        events = parse((out / f"{name}.jsonl").read_bytes())
        deltas = [event for event in events if event["type"] == "delta"]
        assert (events[-1]["type"], events[-1]["truncated"]) == ("done", False)
        assert events[-1]["audio_s"] == pytest.approx(seconds, abs=6)
        print(f"{name}: peak {peaks[name]:.0f} MiB, {len(deltas)} deltas, the last at {deltas[-1]['end']:.0f} s")
        assert deltas[-1]["end"] > seconds - 60
    assert peaks["hours"] < peaks["minute"] + 100


def test_two_watchers_share_a_folder(tmp_path: Path, small_model: Path) -> None:
    stems = recordings(tmp_path / "in", 60)
    options = ("--once", "--model", small_model, *FAST, "-o", tmp_path / "out", tmp_path / "in")
    with watch(*options) as one, watch(*options) as two:
        assert (one.end(), two.end()) == (EX_OK, EX_OK)
    done = Counter(event["file"] for process in (one, two) for event in process.events if event["type"] == "done")
    assert done == Counter(str(tmp_path / f"in/{stem}.wav") for stem in stems)
    assert min(one.count("done"), two.count("done")) > 0
    assert files(tmp_path / "out") == sorted(f"{stem}.{kind}" for stem in stems for kind in ("json", "txt"))
    assert left_over(tmp_path / "out") == []


def test_a_dead_watchers_work_is_taken_over(tmp_path: Path, tiny: Transcriber) -> None:
    folder = tmp_path / "in"
    speech(folder / "a.wav", repeats=6)
    with watch("--settle", "0", folder) as first:
        first.wait_for("started")
        first.signal(signal.SIGSTOP)  # alive, so what it has in hand stays its own
        with watching(tiny, folder, settle_s=0.0) as second:
            second.until_event("queued")
            until = time.monotonic() + 0.5
            second.until(lambda: time.monotonic() > until)
            assert second.of("started") == []
            first.signal(signal.SIGKILL)
            second.until_event("done")
        assert first.count("done") == 0
    assert words((folder / "a.txt").read_text()) == said(FUTURE) * 6
    assert left_over(folder) == []


def test_a_signal_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    short(folder / "a.wav")
    speech(folder / "long.wav", repeats=100)
    with watch(*FAST, folder) as process:
        process.wait_for("done")
        process.signal(signal.SIGTERM)
        assert process.end() == EX_OK
    assert process.stderr == ""
    assert files(folder) == ["a.json", "a.txt", "a.wav", "long.wav"]
    assert left_over(folder) == []


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with watch(tmp_path / "in") as process:
        process.wait_for("watching")
        os.kill(process.process.pid, signal.SIGSTOP)  # so that both are there before either is obeyed
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGINT)
        os.kill(process.process.pid, signal.SIGCONT)
        assert process.end() in (130, 143)


def test_a_signal_has_everything_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with watch("--settle", "0", "--rescan", "3600", "-o", tmp_path / "out", folder) as process:
        process.wait_for("watching")
        short(folder / "a.wav")
        process.wait_for("done")
        shutil.rmtree(tmp_path / "out")
        process.signal(signal.SIGHUP)
        process.wait_for("done", n=2)
    assert files(tmp_path / "out") == ["a.txt"]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny: Transcriber) -> None:
    """The embedded model, already loaded, for what runs in this process."""
    monkeypatch.setattr("voxpipe.cli.watch.load_model", lambda model, dtype: tiny)


def test_an_idle_mac_stays_awake_while_recordings_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "caffeinate"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setattr("voxpipe.cli.recordings.CAFFEINATE", str(program))
    pids = tmp_path / "pids"
    awake = Awake()
    display = WatchDisplay(ProgressBar(None, Estimate([]), None), awake)
    for n in (1, 2):
        display.queue("a.wav", 100)
        display.draw()
        wait_until(lambda n=n: pids.exists() and len(pids.read_text().split()) == n)
        os.kill(int(pids.read_text().split()[-1]), 0)
        display.end("a.wav")
        display.draw()
        with pytest.raises(ProcessLookupError):
            os.kill(int(pids.read_text().split()[-1]), 0)


@pytest.mark.usefixtures("loaded")
def test_the_status_of_once_is_that_of_the_first_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    short(folder / "good.wav")
    (folder / "bad.wav").write_bytes(b"no sound at all, this is\n" * 50)
    assert main.run(["watch", "--once", "--settle", "0", str(folder)]) == EX_DATAERR
    events = parse(capfd.readouterr().out.encode())
    assert [event["type"] for event in events[:2]] == ["ready", "watching"]
    assert next(event for event in events if event["type"] == "failed") == {
        "type": "failed",
        "file": f"{folder}/bad.wav",
        "code": "audio",
        "message": f"{folder}/bad.wav: is text, not audio",
        "attempts": 1,
    }


def test_a_command_line_that_cannot_be_obeyed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "in").mkdir()
    cases = [
        ([tmp_path / "gone"], EX_NOINPUT, f"{tmp_path}/gone: No such file or directory"),
        ([tmp_path / "file"], EX_NOINPUT, f"{tmp_path}/file: is no folder; `voxpipe transcribe` takes files"),
        ([tmp_path / "in", tmp_path / "in/."], EX_USAGE, f"{tmp_path}/in is named twice; a folder is watched once"),
        (
            ["-o", tmp_path / "file/out", tmp_path / "in"],
            EX_CANTCREAT,
            f"cannot make the folder {tmp_path}/file/out: Not a directory",
        ),
        (
            ["--on-done", "delete", tmp_path / "in"],
            EX_USAGE,
            "Invalid value for '--on-done': 'delete' is neither keep nor move:DIR (see voxpipe watch --help)",
        ),
    ]
    for arguments, status, message in cases:
        assert main.run(["watch", "--once", *map(str, arguments)]) == status
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", f"voxpipe: {message}\n")


def test_the_reader_of_events_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    command = f'"{sys.executable}" -m voxpipe watch --settle 0 {folder} | head -n 3'
    for name in ("a", "b"):
        short(folder / f"{name}.wav")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment(), timeout=PATIENCE_S)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux'")
def test_without_inotify_it_polls_and_names_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    taken: list[int] = []
    is_watching = threading.Event()

    def take_all() -> None:  # and those that others give back meanwhile
        while not is_watching.wait(0.001) and len(taken) < 4096:
            while (descriptor := libc.inotify_init1(os.O_CLOEXEC)) >= 0 and len(taken) < 4096:
                taken.append(descriptor)

    taker = threading.Thread(target=take_all)
    taker.start()
    try:
        with watch("--settle", "0", folder) as process:
            process.wait_for("watching")
            is_watching.set()
            short(folder / "a.wav")
            process.wait_for("done")
    finally:
        is_watching.set()
        taker.join()
        for descriptor in taken:
            os.close(descriptor)
    if len(taken) >= 4096:
        pytest.skip("this system has no limit that can be reached")
    remedy = "raise it with `sysctl fs.inotify.max_user_instances=1024`"
    assert process.stderr.startswith(
        f"voxpipe: {folder}: is looked through all the time: the system's limit of inotify"
    )
    assert remedy in process.stderr
    assert remedy in process.events[1]["polling"]


def test_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(3):
        speech(folder / f"{number}.wav", repeats=3)
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [*COMMAND, "watch", "--once", "--settle", "0", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment())
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(controller, 1 << 16):
            shown += data
    except OSError:  # how Linux says that the other side has closed it
        pass
    os.close(controller)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EX_OK
    assert re.search(r"\d+% \|.*\| [0-2] of 3 files, rtf \d+\.\d\d, \d+:\d\d left", shown.decode())
