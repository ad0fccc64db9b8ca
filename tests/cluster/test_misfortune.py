"""What dies, and when: workers while they load, over a file, with a result; the scheduler under a client."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, said, samples, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, wait_until
from tests.cluster.processes import DaskCluster, dask_cluster
from tests.cluster.test_cluster import n_busy
from voxpipe.cli import main
from voxpipe.cluster.client import Cluster
from voxpipe.cluster.files import ClusterFiles
from voxpipe.cluster.model import ModelChoice
from voxpipe.cluster.task import Outcome, Request, Unfit
from voxpipe.errors import EX_SOFTWARE, EX_UNAVAILABLE, ModelError, UnavailableError
from voxpipe.runtime.files import Progress
from voxpipe.runtime.jobs import FileJob
from voxpipe.runtime.wakeup import Wakeup

TINY = ModelChoice("tiny")
GONE = "the scheduler at {} has gone; the files that are finished are kept"
DEAD = r"workers have died {}, 1 of them, the last one at tcp://\S+; see its log, and if memory has run out, .*"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """One worker; whatever it dies over is given up at once."""
    with dask_cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as cluster:
        cluster.add_worker("one")
        cluster.wait_for_workers(1)
        yield cluster


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(samples(FUTURE), 300), 16_000)
    return path


@contextmanager
def transcribing(cluster: DaskCluster, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    command = [*COMMAND, "transcribe", "--cluster", cluster.address, *arguments]
    with subprocess.Popen(
        map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stderr


def is_busy(cluster: DaskCluster) -> bool:
    return any(cluster.ask(n_busy).values())


# workers


def test_a_worker_dies_while_it_loads_the_model(cluster: DaskCluster, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")  # nobody writes, so it takes long
    with transcribing(cluster, "--model", tmp_path / "model", FUTURE) as process:
        wait_until(lambda: is_busy(cluster))
        cluster.kill("one")
        status, stderr = end(process)
    assert status == EX_UNAVAILABLE
    assert re.fullmatch("voxpipe: " + DEAD.format("while they loaded the model") + "\n", stderr)


def test_a_worker_dies_over_a_file(cluster: DaskCluster, long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with transcribing(cluster, "-o", out, long, FUTURE) as process:
        wait_until(lambda: (out / "future.txt").exists() and is_busy(cluster))
        cluster.kill("one")
        status, stderr = end(process)
    assert status == EX_UNAVAILABLE
    assert re.fullmatch(f"voxpipe: {long}: " + DEAD.format("over it") + "\n", stderr)
    assert [path.name for path in out.iterdir()] == ["future.txt"]


def test_a_worker_dies_with_a_result(tmp_path: Path) -> None:
    """The others' are not held up by it, and it is made again."""
    wakeup = Wakeup()
    with dask_cluster(tmp_path) as cluster:
        cluster.add_worker("one")
        cluster.wait_for_workers(1)
        with Cluster(cluster.address, TINY) as connection:
            files = ClusterFiles(connection, n_at_once=1, tell=wakeup.set)
            files.begin(7, FileJob(str(FUTURE)))
            assert list(files.take()) == []
            wait_until(lambda: any(cluster.ask(has_result).values()))
            cluster.kill("one")
            cluster.wait_for_workers(0)
            time.sleep(0.1)  # for the client to hear of it
            began_at = time.monotonic()
            assert not any(progress.is_last for progress in files.take())
            assert time.monotonic() - began_at < 5
            cluster.add_worker("two")
            came: list[Progress] = []
            wait_until(lambda: came.extend(files.take()) or 7 not in files)
            (last,) = (progress for progress in came if progress.is_last)
            assert words("".join(last.deltas)) == said(FUTURE)
            files.close()


def has_result(dask_worker: "object") -> bool:
    return any(key.startswith("transcribe_file") for key in dask_worker.data)  # type: ignore[attr-defined]


def test_who_can_load_the_model(cluster: DaskCluster, caplog: pytest.LogCaptureFixture) -> None:
    with Cluster(cluster.address, TINY) as connection:
        (one,) = connection.client.nthreads()
        # 1. the only one cannot any more, but then it can
        with pytest.raises(ModelError, match=f"^no worker at {cluster.address} can load the model: why$"):
            connection.note(Unfit(one, "why"))
        connection.note_fit(one)
        connection.note(Unfit("tcp://127.0.0.1:1", "why"))
        # 2. there is none: one will come
        cluster.kill("one")
        cluster.wait_for_workers(0)
        connection.note(Unfit(one, "why"))
    assert caplog.messages[-1] == f"there is no worker at {cluster.address}; waiting for one"


def failing(request: Request) -> Outcome:
    if request.name == str(BEACH):
        raise OSError(24, "Too many open files")
    return Outcome("tcp://worker", None, [Progress(0, n_channels=1, is_last=True)])


def test_a_defect_ends_one_file(
    cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voxpipe.cluster.files.transcribe_file", failing)
    command = ["transcribe", "--model", "tiny", "--cluster", cluster.address, "-o", str(tmp_path / "out")]
    assert main.run([*command, str(BEACH), str(FUTURE)]) == EX_SOFTWARE
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["future.txt"]
    assert caplog.messages[-1] == f"{BEACH}: voxpipe failed: this is a defect; its log, on stderr, has the details"
    assert "Too many open files" in caplog.text


# the scheduler


def test_the_scheduler_dies(cluster: DaskCluster, long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with transcribing(cluster, "-o", out, FUTURE, long) as process:
        wait_until(lambda: (out / "future.txt").exists() and is_busy(cluster))
        cluster.kill("scheduler")
        assert end(process) == (EX_UNAVAILABLE, f"voxpipe: {GONE.format(cluster.address)}\n")
    assert [path.name for path in out.iterdir()] == ["future.txt"]


def test_the_scheduler_dies_while_there_is_nothing_to_do(cluster: DaskCluster, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(FUTURE, folder)
    with live("watch", "--settle", "0", "--cluster", cluster.address, folder) as process:
        process.wait_for("done")
        cluster.kill("scheduler")
        assert process.end() == EX_UNAVAILABLE
        assert process.stderr == f"voxpipe: {GONE.format(cluster.address)}\n"


def test_the_scheduler_dies_while_a_result_comes_over(cluster: DaskCluster) -> None:
    with Cluster(cluster.address, TINY) as connection:
        future = connection.submit(sorted, [2, 1])
        wait_until(future.done)
        cluster.signal("scheduler", signal.SIGSTOP)
        threading.Timer(0.3, cluster.kill, ("scheduler",)).start()
        with pytest.raises(UnavailableError, match=re.escape(GONE.format(cluster.address))):
            connection.result(future)


def test_a_client_that_has_given_up(cluster: DaskCluster) -> None:
    with Cluster(cluster.address, TINY) as connection:
        files = ClusterFiles(connection, n_at_once=1, tell=lambda: None)
        files.begin(0, FileJob(str(FUTURE)))
        cluster.kill("scheduler")
        connection.client.close()
        asked: list[Callable[[], object]] = [lambda: connection.note(Unfit("", "")), lambda: list(files.take())]
        for ask in asked:
            with pytest.raises(UnavailableError, match=re.escape(GONE.format(cluster.address))):
                ask()
        files.close()


# the client


def test_an_interrupt_while_the_scheduler_hangs(cluster: DaskCluster, long: Path) -> None:
    with transcribing(cluster, long) as process:
        wait_until(lambda: is_busy(cluster))
        cluster.signal("scheduler", signal.SIGSTOP)
        time.sleep(1.5)  # so that it waits for an answer
        process.send_signal(signal.SIGINT)
        assert end(process) == (130, "voxpipe: interrupted; 0 of 1 files are finished\n")
