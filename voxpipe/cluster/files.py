"""Files on a cluster: a few are handed out ahead of the workers, and what comes of them is carried on as progress.

Outputs are written here, by whoever takes the progress, so each is written once, however often a worker died over its file.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue
from typing import Any

import dask.config
from distributed import Future, KilledWorker
from distributed.client import ClosedClientError

from voxpipe.audio.files import AudioInfo
from voxpipe.cluster.client import POLL_S, Cluster, Remade, killed
from voxpipe.cluster.task import TOPIC, Outcome, Request, Unfit, transcribe_file
from voxpipe.errors import InputError, VoxpipeError, defect
from voxpipe.output.results import size_of
from voxpipe.runtime.files import Progress
from voxpipe.runtime.jobs import FileJob
from voxpipe.runtime.wakeup import Wakeup

log = logging.getLogger(__name__)

N_AHEAD = 2  # files for each thread of a worker: the one that it works on, and the next
MAX_FILE_BYTES = 1 << 30  # what is sent is held here, by the scheduler and by the worker
MAX_SENDING_BYTES = 1 << 28  # of all files on their way, unless it is a single one


@dataclass
class _File:
    """A file that has been begun.

    Attributes:
        future: of the task that it is, once it has been handed out.
        n_sent_bytes: in the hands of the cluster.
    """

    index: int
    job: FileJob
    delay_ms: int | None
    send: bool
    future: "Future[Outcome] | None" = None
    n_sent_bytes: int = 0


class ClusterFiles:
    """Takes the place of `FileStreams` where a cluster does the work: files are begun, and what came of them is taken.

    Args:
        n_at_once: files that a worker decodes as one batch, if it has that many threads.
        send: send every file; by default only those that a worker does not see.
        tell: called, from other threads, when there is something to `take`.
    """

    def __init__(self, cluster: Cluster, *, n_at_once: int, tell: Callable[[], None], send: bool = False) -> None:
        self._cluster = cluster
        self._n_at_once = n_at_once
        self._send = send
        self._tell = tell
        self._files: dict[int, _File] = {}
        self._waiting: deque[_File] = deque()  # to be handed out
        self._keys: dict[str, _File] = {}  # Dask's, of those that are
        self._messages: SimpleQueue[Future[Outcome] | dict[str, Any]] = SimpleQueue()
        cluster.client.subscribe_topic(TOPIC, lambda event: self._hear(event[1]))

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, index: object) -> bool:
        """Whether more will come of a file."""
        return index in self._files

    @property
    def has_room(self) -> bool:
        """Whether another file may `begin`."""
        return len(self._files) < max(1, N_AHEAD * self._cluster.n_threads())

    @property
    def look_in_s(self) -> float | None:
        """Seconds after which there may be room though nothing has been told: workers come and go."""
        return POLL_S

    def begin(self, index: int, job: FileJob, *, delay_ms: int | None = None) -> None:
        """Have a file transcribed, as soon as it can be handed out. A `job` that is cancelled is given up.

        Args:
            index: what its progress is known by.
        """
        self._files[index] = file = _File(index, job, delay_ms, self._send)
        self._waiting.append(file)
        self._tell()

    def take(self) -> Iterator[Progress]:
        """What has come, while what has been begun is handed out.

        All deltas of a transcript come with its last progress. A file over which workers have died ends with an error.

        Raises:
            VoxpipeError: as from `Cluster`.
        """
        for _ in range(self._messages.qsize()):
            message = self._messages.get()
            yield from self._land(message) if isinstance(message, Future) else self._heed(message)
        for file in [file for file in self._files.values() if file.job.error is not None]:
            yield self._fail(file, file.job.error)
        while self._waiting and self._may_hand_out(self._waiting[0]):
            file = self._waiting.popleft()
            try:
                request = self._request(file)
            except VoxpipeError as exc:
                yield self._fail(file, exc)
            else:
                self._hand_out(file, request)

    def close(self) -> None:
        """Take back all that is unfinished."""
        futures = [file.future for file in self._files.values() if file.future is not None]
        with suppress(ClosedClientError):  # the scheduler has gone, and with it all that it had
            self._cluster.client.unsubscribe_topic(TOPIC)
            self._cluster.client.cancel(futures)
        self._files.clear()
        self._waiting.clear()
        self._keys.clear()

    def _hear(self, message: "Future[Outcome] | dict[str, Any]") -> None:
        self._messages.put(message)
        self._tell()

    def _may_hand_out(self, file: _File) -> bool:
        n_bytes = sum(other.n_sent_bytes for other in self._files.values())
        return not (file.send and n_bytes) or n_bytes + size_of(file.job.path) <= MAX_SENDING_BYTES

    def _request(self, file: _File) -> Request:
        """What a worker is asked.

        Raises:
            VoxpipeError: as `FileJob.look`, or the file cannot be sent.
        """
        status = file.job.look()
        return Request(
            path=os.path.abspath(file.job.path),
            name=file.job.path,
            size=status.st_size,
            mtime=status.st_mtime,
            choice=self._cluster.choice,
            is_split=file.job.is_split,
            delay_ms=file.delay_ms,
            n_at_once=self._n_at_once,
            data=_read(file.job.path) if file.send else None,
        )

    def _hand_out(self, file: _File, request: Request) -> None:
        # Dask would advise against tasks as large as a file that is sent; but it can repeat them when a worker dies
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2 * MAX_FILE_BYTES}):
            file.future = self._cluster.submit(transcribe_file, request)
        file.n_sent_bytes = len(request.data or b"")
        self._keys[str(file.future.key)] = file
        file.future.add_done_callback(self._hear)

    def _land(self, future: "Future[Outcome]") -> Iterator[Progress]:
        """What came of a task."""
        file = self._keys.get(str(future.key))
        if file is None:  # it was given up
            return
        try:
            outcome: Outcome = self._cluster.result(future)
        except Remade:
            self._messages.put(future)  # until it is there again
            return
        except KilledWorker as exc:
            yield self._fail(file, killed(exc, over="over it"))
            return
        except VoxpipeError:
            raise
        except Exception:
            log.exception("a defect of voxpipe, on a worker")
            yield self._fail(file, defect())
            return
        del self._keys[str(future.key)]
        file.future, file.n_sent_bytes = None, 0
        self._cluster.note_fit(outcome.worker)
        if not outcome.ends:  # a worker that does not see it
            file.send = True
            self._waiting.append(file)
            return
        file.job.info = outcome.info
        for n_left, end in zip(reversed(range(len(outcome.ends))), outcome.ends, strict=True):
            if not n_left:
                del self._files[file.index]
            yield replace(end, index=file.index)

    def _heed(self, message: dict[str, Any]) -> Iterator[Progress]:
        """How far a worker has come with a file, if the message says so."""
        if "unfit" in message:
            if message["choice"] == asdict(self._cluster.choice):
                self._cluster.note(Unfit(**message["unfit"]))
            return
        file = self._keys.get(message["key"])
        if file is not None and message["info"] is not None:  # ours
            file.job.info = AudioInfo(**message["info"])
            yield Progress(file.index, n_channels=message["n_channels"], audio_s=message["audio_s"])

    def _fail(self, file: _File, error: VoxpipeError | None) -> Progress:
        """Give up a file."""
        del self._files[file.index]
        if file.future is not None:
            self._keys.pop(str(file.future.key), None)
            with suppress(ClosedClientError):
                self._cluster.client.cancel([file.future])
        elif file in self._waiting:
            self._waiting.remove(file)
        return Progress(file.index, is_last=True, error=error)


def transcribe_on(
    cluster: Cluster, jobs: Iterable[FileJob], *, n_at_once: int, delay_ms: int | None = None, send: bool = False
) -> Generator[Progress, None, None]:
    """Transcribe files, each begun when a worker will soon have a place; closing the iterator takes back the rest."""
    wakeup = Wakeup()
    files = ClusterFiles(cluster, n_at_once=n_at_once, send=send, tell=wakeup.set)
    waiting = enumerate(jobs)
    following = next(waiting, None)
    try:
        while following is not None or len(files):
            yield from files.take()
            while following is not None and files.has_room:
                files.begin(*following, delay_ms=delay_ms)
                following = next(waiting, None)
            if len(files):
                wakeup.wait(POLL_S)
    finally:
        files.close()


def _read(path: str) -> bytes:
    """All of a file.

    Raises:
        InputError: it cannot be read, or is too large to be sent.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InputError(exc.strerror or str(exc)) from exc
    if len(data) > MAX_FILE_BYTES:
        raise InputError("is too large to be sent; put it where the workers see it under the same path")
    return data
