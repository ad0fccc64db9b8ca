"""A Dask cluster of real processes on this machine, started as the README says."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from tests.cli.process import environment, wait_until

DASK = (sys.executable, "-m", "dask")


class DaskCluster:
    """A scheduler, and workers that come and go.

    Attributes:
        client: to look at the cluster from outside.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder = folder
        self._variables = variables
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._file = folder / "scheduler.json"
        self._start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", cwd=folder)
        wait_until(self._file.exists)
        self.client = Client(scheduler_file=str(self._file), set_as_default=False)
        self.address = str(self.client.scheduler.address)

    def add_worker(self, name: str, *, n_threads: int = 2) -> Path:
        """Start a worker; return the folder it works in."""
        cwd = self._folder / name
        cwd.mkdir()
        options = ("--name", name, "--nthreads", str(n_threads), "--no-nanny", "--no-dashboard")
        self._start(name, "worker", self.address, *options, "--local-directory", str(cwd), cwd=cwd)
        return cwd

    def wait_for_workers(self, n: int) -> None:
        wait_until(lambda: len(self.client.nthreads()) == n)

    def kill(self, name: str) -> None:
        """As the system does when memory runs out."""
        self.signal(name, signal.SIGKILL)
        self._processes[name].wait()

    def signal(self, name: str, number: int) -> None:
        self._processes[name].send_signal(number)

    def ask(self, question: Any) -> dict[str, Any]:
        """What a function of a worker's `Worker` says on each of them, by their names."""

        def ask_one(dask_worker: Any) -> tuple[str, Any]:
            return str(dask_worker.name), question(dask_worker)

        return dict(self.client.run(ask_one).values())

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def close(self) -> None:
        self.client.close()
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _start(self, name: str, *arguments: str, cwd: Path) -> None:
        if name == "scheduler":
            arguments = (*arguments, "--scheduler-file", str(self._file))
        variables = environment(OPENBLAS_NUM_THREADS="1", **{"PYTHONPATH": os.getcwd(), **self._variables})
        with open(self._folder / f"{name}.log", "wb") as log:
            self._processes[name] = subprocess.Popen(
                [*DASK, *arguments], cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextmanager
def dask_cluster(folder: Path, **variables: str) -> Iterator[DaskCluster]:
    """A cluster without workers yet, with these variables of the environment, gone at the latest when the block is left."""
    cluster = DaskCluster(folder, **variables)
    try:
        yield cluster
    finally:
        cluster.close()
