"""Many files on three workers, also if one dies and another joins midway; what that takes beside one process, and of memory."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, HALL, said, samples, words
from tests.cli.process import COMMAND, environment, wait_until
from tests.cluster.processes import dask_cluster

N_FILES = 200
CLIPS = (BEACH, HALL, FUTURE)


def transcribe(out: Path, *arguments: str | Path, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Seconds that the whole command takes."""
    started_at = time.monotonic()
    command = [*COMMAND, "transcribe", "-f", "txt,json", "-o", out, *arguments]
    with subprocess.Popen(map(str, command), stderr=subprocess.PIPE, env=environment()) as process:
        try:
            meanwhile()
            _, stderr = process.communicate(timeout=3_000)
        finally:
            process.kill()
    assert (process.returncode, stderr.decode()) == (0, "")
    return time.monotonic() - started_at


@pytest.mark.long
@pytest.mark.timeout(9_000)
def test_two_hundred_files_on_three_workers(tmp_path: Path) -> None:
    clips = [CLIPS[n % len(CLIPS)] for n in range(N_FILES)]
    files = [Path(shutil.copy(clip, tmp_path / f"{n:03}{clip.suffix}")) for n, clip in enumerate(clips)]
    audio_s = sum(len(samples(clip)) for clip in clips) / 16_000
    local, disturbed, calm = tmp_path / "local", tmp_path / "disturbed", tmp_path / "calm"
    wall_s = {"one process": transcribe(local, *files)}
    with dask_cluster(tmp_path) as cluster:
        for name in ("one", "two", "three"):
            cluster.add_worker(name)
        cluster.wait_for_workers(3)

        def disturb() -> None:
            wait_until(lambda: len(list(disturbed.glob("*.json"))) >= N_FILES // 3)
            cluster.kill("two")
            cluster.add_worker("late")

        where = ("--cluster", cluster.address)
        wall_s["one of three killed, one late"] = transcribe(disturbed, *where, *files, meanwhile=disturb)
        assert set(cluster.ask(n_models)) == {"one", "three", "late"}
        assert all(cluster.ask(n_models).values())  # the late one has worked, too, and each has loaded the model once
        wall_s["three workers"] = transcribe(calm, *where, *files)
    for out in (disturbed, calm):
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in local.iterdir())
        for path in out.iterdir():
            assert path.read_bytes() == (local / path.name).read_bytes()
    for file, clip in zip(files, clips, strict=True):
        assert words((calm / f"{file.stem}.txt").read_text()) == said(clip)
        assert json.loads((calm / f"{file.stem}.json").read_text())["audio"]["path"] == str(file)
    for what, seconds in wall_s.items():
        print(
            f"\n{what}: {seconds:.1f} s for {N_FILES} files, {audio_s:.0f} s of audio ({audio_s / seconds:.1f} x)",
            end="",
        )


def n_models(dask_worker: object) -> int:
    from voxpipe.cluster import model

    return len(model._threads)


@pytest.mark.long
@pytest.mark.timeout(3_000)
def test_the_client_keeps_nothing_of_files_that_are_finished(tmp_path: Path) -> None:
    """But their names, and some numbers about each."""
    n_files = 2_000
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    soundfile.write(folder / "0000.wav", np.zeros(3_200), 16_000)
    for n in range(1, n_files):
        os.link(folder / "0000.wav", folder / f"{n:04}.wav")
    resident: dict[int, int] = {}  # bytes, when so many were finished
    with dask_cluster(tmp_path) as cluster:
        for name in ("one", "two", "three"):
            cluster.add_worker(name)
        cluster.wait_for_workers(3)
        command = [*COMMAND, "transcribe", "--cluster", cluster.address, "-o", out, *sorted(folder.iterdir())]
        with subprocess.Popen(map(str, command), stderr=subprocess.PIPE, env=environment()) as process:
            try:
                while process.poll() is None:
                    n_finished = len(list(out.glob("*"))) if out.exists() else 0
                    if n_finished // 100 * 100 not in resident:
                        resident[n_finished // 100 * 100] = resident_bytes(process.pid)
                    time.sleep(0.1)
            finally:
                process.kill()
    assert (process.returncode, len(list(out.iterdir()))) == (0, n_files)
    last = max(n for n in resident if n < n_files)
    print(
        f"\nthe client's memory: {resident[1_000] / 1e6:.1f} MB after 1000, {resident[last] / 1e6:.1f} after {last}",
        end="",
    )
    assert resident[last] - resident[1_000] < 5_000 * (last - 1_000)


def resident_bytes(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) * 1_024
