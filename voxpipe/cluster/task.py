"""What a worker of a cluster does: it transcribes one file and returns what came of it. It writes no outputs."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from voxpipe.audio.files import AudioInfo, display_name
from voxpipe.cluster.model import ModelChoice, ModelFacts, ModelThread, model_thread
from voxpipe.errors import InputError, UnavailableError, VoxpipeError

if TYPE_CHECKING:
    from distributed import Worker

    from voxpipe.output.transcript import Delta
    from voxpipe.runtime.files import Progress

TOPIC = "voxpipe"  # of the events that workers send while they work
REPORT_S = 1.0
UNFIT_PAUSE_S = 1.0
MTIME_TOLERANCE_S = 2.0  # some file systems keep time no better


@dataclass(frozen=True)
class Request:
    """A file to be transcribed.

    Attributes:
        path: absolute; a worker that sees a file of this size and time there reads it.
        name: what messages call it.
        data: all of the file, if it is sent.
    """

    path: str
    name: str
    size: int
    mtime: float
    choice: ModelChoice
    is_split: bool
    delay_ms: int | None
    n_at_once: int
    data: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """All that came of a file.

    Attributes:
        worker: whose work it is.
        ends: of each channel, the last `Progress` with all of its deltas; none if the worker does not see the file.
    """

    worker: str
    info: AudioInfo | None
    ends: "list[Progress]"


class Abandoned(VoxpipeError):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Unfit:
    """A worker that cannot load the model, and why."""

    worker: str
    reason: str


def describe(choice: ModelChoice) -> ModelFacts | Unfit:
    """Load the model on this worker."""
    thread = _model(choice)
    return thread if isinstance(thread, Unfit) else thread.facts()


def transcribe_file(request: Request) -> Outcome:
    """Transcribe a file on this worker, with reports on the way."""
    from distributed import Reschedule, get_worker

    from voxpipe.runtime.files import Progress

    worker = get_worker()
    thread = _model(request.choice)
    if isinstance(thread, Unfit):
        worker.log_event(TOPIC, {"choice": asdict(request.choice), "unfit": asdict(thread)})
        time.sleep(UNFIT_PAUSE_S)  # or the idlest worker, which this one now is, would be asked again and again
        raise Reschedule
    try:
        with _file(request, worker) as path:
            return Outcome(worker.address, None, []) if path is None else _transcribe(request, path, worker, thread)
    except OSError as exc:  # its disk is full
        error = InputError(f"cannot be stored on {worker.address}: {exc.strerror or exc}")
        return Outcome(worker.address, None, [Progress(0, is_last=True, error=error)])


def _model(choice: ModelChoice) -> ModelThread | Unfit:
    from distributed import get_worker

    try:
        return model_thread(choice)
    except (VoxpipeError, OSError) as exc:  # OSError: not even the thread has found a place
        return Unfit(get_worker().address, str(exc))


def _transcribe(request: Request, path: str, worker: "Worker", thread: ModelThread) -> Outcome:
    from voxpipe.runtime.jobs import FileJob

    key = str(worker.get_current_task())
    job = FileJob(path, is_split=request.is_split)
    deltas: dict[int, list[Delta]] = {}
    ends: list[Progress] = []
    reported_at = 0.0
    for progress in thread.transcribe(job, n_at_once=request.n_at_once, delay_ms=request.delay_ms):
        deltas.setdefault(progress.channel, []).extend(progress.deltas)
        if progress.is_last:
            error = None if progress.error is None else _explained(progress.error, path, request, worker)
            ends.append(replace(progress, deltas=deltas.pop(progress.channel), error=error))
        elif time.monotonic() - reported_at >= REPORT_S:
            reported_at = time.monotonic()
            if not _is_wanted(worker, key):
                job.cancel(Abandoned("nobody waits for it"))
            info = None if job.info is None else asdict(job.info)
            report = {"key": key, "audio_s": progress.audio_s, "n_channels": progress.n_channels, "info": info}
            worker.log_event(TOPIC, report)
    return Outcome(worker.address, job.info, ends)


@contextmanager
def _file(request: Request, worker: "Worker") -> Iterator[str | None]:
    """Where the file lies on this machine, as long as the block lasts; None if it does not."""
    if request.data is None:
        try:
            status = os.stat(request.path)
            is_same = status.st_size == request.size and abs(status.st_mtime - request.mtime) <= MTIME_TOLERANCE_S
        except OSError:
            is_same = False
        yield request.path if is_same else None
        return
    suffix = os.path.splitext(request.path)[1]
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=worker.local_directory) as file:
        file.write(request.data)
        file.flush()
        yield file.name


def _explained(error: VoxpipeError, path: str, request: Request, worker: "Worker") -> VoxpipeError:
    """The error in the words of whoever asked: the path may be another here, and what is not installed is so here."""
    message = str(error).replace(display_name(path), display_name(request.name))
    if isinstance(error, UnavailableError):
        message += f" (on {worker.address})"
    return type(error)(message)


def _is_wanted(worker: "Worker", key: str) -> bool:
    """Whether anybody waits for the task; Dask stops none that runs."""
    task = worker.state.tasks.get(key)
    is_leaving = worker.status.name in ("closing", "closed", "failed")
    return task is not None and task.state != "cancelled" and not is_leaving
