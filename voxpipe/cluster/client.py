"""A connection to a Dask scheduler whose workers have a model. What they do with it is said elsewhere."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from voxpipe.cluster.model import ModelChoice, ModelFacts
from voxpipe.cluster.task import Unfit, describe
from voxpipe.errors import InputError, ModelError, UnavailableError, UsageError

try:
    from distributed import Client, Future, KilledWorker, Security, as_completed
    from distributed.client import ClosedClientError
    from distributed.comm.core import connect
except ImportError as exc:
    raise UnavailableError("a cluster takes the package distributed: pip install 'voxpipe[cluster]'") from exc

log = logging.getLogger(__name__)

CONNECT_S = 5.0
POLL_S = 1.0  # between two looks at how many workers there are
RESULT_S = 30.0  # for the result of a task to come over; after that, its worker may be gone


class Remade(Exception):
    """A worker has died with a result, or is about to have; the task is done again by another one."""


class Cluster:
    """Workers with a model.

    Args:
        address: of the scheduler, such as `tcp://host:8786`, or the path of a scheduler file.
        choice: the model; the workers have it already, nothing is fetched.

    Attributes:
        client: for those who hand out work.
        facts: of the model.

    Raises:
        UsageError, InputError: this is no address, no scheduler file.
        UnavailableError: no scheduler answers there, it goes away, or cannot run our code, or workers die while they load
            the model; from every method.
        ModelError: no worker can load the model; from every method.
    """

    def __init__(self, address: str, choice: ModelChoice) -> None:
        self.choice = choice
        self._address = address
        self._unfit: set[str] = set()  # workers that cannot load the model
        self._n_threads = 0  # of all workers
        self._counted_at: float | None = None
        self.client = _connect(address)
        try:
            self.facts = self._meet_workers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave it; the workers stay, with the model loaded."""
        with suppress(OSError, TimeoutError):
            self.client.close(timeout=CONNECT_S)

    def n_threads(self) -> int:
        """How many tasks the workers can run at a time, as of a moment ago."""
        if self._counted_at is None or time.monotonic() - self._counted_at >= POLL_S:
            self._count_workers()
        return self._n_threads

    def note(self, unfit: Unfit) -> None:
        """Say of a worker, once, that it cannot load the model; give up if there are workers and none can."""
        if unfit.worker not in self._unfit:
            self._unfit.add(unfit.worker)
            log.warning("the worker %s takes no part: %s", unfit.worker, unfit.reason)
        workers = self._count_workers()
        if workers and self._unfit.issuperset(workers):
            raise ModelError(f"no worker at {self._address} can load the model: {unfit.reason}")

    def note_fit(self, worker: str) -> None:
        """A worker has loaded the model, maybe since it could not."""
        self._unfit.discard(worker)

    def submit(self, function: Callable[..., Any], *arguments: Any, **how: Any) -> "Future[Any]":
        """Hand out a task, even if it is the same as another one."""
        try:
            return self.client.submit(function, *arguments, pure=False, **how)
        except ClosedClientError as exc:
            raise self._lost() from exc

    def result(self, future: "Future[Any]") -> Any:
        """What a finished task has returned or raised.

        Raises:
            Remade: the result cannot be had yet.
        """
        if not future.done():
            raise Remade
        try:
            return future.result(timeout=RESULT_S)
        except CancelledError as exc:
            raise self._lost() from exc
        except OSError as exc:
            if future.status == "error":  # the task's own
                raise
            raise (Remade() if isinstance(exc, TimeoutError) else self._lost()) from exc
        except (ImportError, RuntimeError) as exc:
            if isinstance(exc, RuntimeError) and "deserialization" not in str(exc):
                raise
            reason = exc.__cause__ or exc
            raise UnavailableError(
                f"the cluster cannot run it ({reason}); install the same voxpipe on all of its machines, the scheduler's too"
            ) from exc

    def _meet_workers(self) -> ModelFacts:
        """Have all workers load the model, and return what the first one says of it."""
        while True:
            hellos = [
                self.submit(describe, self.choice, workers=[worker], allow_other_workers=True)
                for worker in self._count_workers().keys() - self._unfit
            ]
            for hello in as_completed(hellos, loop=self.client.loop):
                try:
                    facts = self.result(hello)
                except Remade:
                    continue
                except KilledWorker as exc:
                    raise killed(exc, over="while they loaded the model") from exc
                if isinstance(facts, ModelFacts):
                    return facts
                self.note(facts)
            time.sleep(POLL_S)

    def _count_workers(self) -> dict[str, int]:
        """How many threads each of them has."""
        try:
            workers: dict[str, int] = self.client.nthreads()
        except (OSError, AttributeError) as exc:  # AttributeError: of a client that has given up
            raise self._lost() from exc
        self._unfit &= workers.keys()
        if not workers and (self._n_threads or self._counted_at is None):
            log.warning("there is no worker at %s; waiting for one", self._address)
        self._n_threads = sum(workers.values())
        self._counted_at = time.monotonic()
        return workers

    def _lost(self) -> UnavailableError:
        return UnavailableError(f"the scheduler at {self._address} has gone; the files that are finished are kept")


def killed(error: KilledWorker, *, over: str) -> UnavailableError:
    """What to tell of workers that have died."""
    return UnavailableError(
        f"workers have died {over}, {error.allowed_failures + 1} of them, the last one at {error.last_worker.address}; see its "
        "log, and if memory has run out, give the workers more, or name a smaller model"
    )


def _connect(address: str) -> Client:
    for name in ("distributed", "distributed.client"):  # what matters of it, we say ourselves
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = address if "://" in address else _read_scheduler_file(address)
    try:
        asyncio.run(_try(found))
        return Client(found, timeout=CONNECT_S, set_as_default=False, name="voxpipe")
    except (OSError, TimeoutError, MemoryError) as exc:  # the memory that another protocol's greeting seems to announce
        raise UnavailableError(
            f"no scheduler answers at {found}; start one with `dask scheduler`, and workers with `dask worker {found}`"
        ) from exc
    except ValueError as exc:
        raise UsageError(f"{address!r} is not the address of a scheduler: {exc}") from exc


async def _try(address: str) -> None:
    """Connect and leave: a Client would wait without end for the answer of what is no scheduler."""
    security = Security().get_connection_args("client")
    async with asyncio.timeout(CONNECT_S):
        comm = await connect(address, timeout=CONNECT_S, **security)
        await comm.close()


def _read_scheduler_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return str(json.load(file)["address"])
    except OSError as exc:
        raise InputError(f"{path}: is no address (tcp://HOST:8786), and as a scheduler file: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: is neither an address (tcp://HOST:8786) nor a scheduler file") from exc
