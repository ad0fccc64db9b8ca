"""200 files on three workers, one of which dies midway while another joins; and what that takes beside one process."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
