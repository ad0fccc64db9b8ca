"""A model of one process on a thread of its own: what is asked for on any thread is decoded there, as one batch.

MLX wants a model to be used on the thread that loaded it, and tasks of a cluster run on whichever is free. Knows nothing
of clusters.
"""

import atexit
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from voxpipe.audio.resample import Samples
from voxpipe.errors import ModelError, VoxpipeError
from voxpipe.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress
    from voxpipe.runtime.transcriber import Transcriber


@dataclass(frozen=True)
class ModelChoice:
    """Which model: a name or a directory as `resolve` takes them, and its precision."""

    model: str
    dtype: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a loaded model is called, and its own delay."""

    name: str
    delay_ms: int


class _Recording:
    """A recording that waits for the model or is being decoded, and what has come of it."""

    def __init__(self, recording: Iterable[Samples], delay_ms: int | None, n_at_once: int) -> None:
        self.recording = recording
        self.delay_ms = delay_ms
        self.n_at_once = n_at_once
        self.results: SimpleQueue[Progress | Exception | None] = SimpleQueue()  # None behind the last
        self._n_ended = 0

    def put(self, progress: "Progress") -> bool:
        """Take what has come; return whether that was all."""
        self.results.put(progress)
        self._n_ended += progress.is_last
        has_ended = progress.is_last and self._n_ended >= progress.n_channels
        if has_ended:
            self.results.put(None)
        return has_ended


class ModelThread:
    """Loads a model and decodes recordings on it until the process ends.

    Raises:
        ModelError: from every method: the model cannot be loaded.
    """

    def __init__(self, choice: ModelChoice) -> None:
        self._choice = choice
        self._facts: ModelFacts | None = None
        self._failure = ""  # in words: the exception would keep what was loaded of the model
        self._loaded = threading.Event()
        self._waiting: deque[_Recording] = deque()
        self._wakeup = Wakeup()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="voxpipe-model", daemon=True)
        self._thread.start()

    def facts(self) -> ModelFacts:
        """Wait until the model is loaded."""
        self._loaded.wait()
        if self._facts is None:
            raise ModelError(self._failure)
        return self._facts

    def transcribe(
        self, recording: Iterable[Samples], *, n_at_once: int, delay_ms: int | None = None
    ) -> Iterator["Progress"]:
        """Have a recording (as for `FileStreams.begin`) decoded, and yield its progress. Safe from any thread.

        Args:
            n_at_once: how many are decoded as one batch, if so many are asked for.
        """
        self.facts()
        own = _Recording(recording, delay_ms, n_at_once)
        self._waiting.append(own)
        self._wakeup.set()
        while (progress := own.results.get()) is not None:
            if isinstance(progress, Exception):
                raise progress
            yield progress

    def _run(self) -> None:
        try:
            transcriber = self._load()
        except VoxpipeError as exc:
            self._failure = str(exc)
            return
        except BaseException as exc:
            self._failure = " ".join(f"{type(exc).__name__}: {exc}".split())
            return
        finally:
            self._loaded.set()
        while not self._stopping:
            if self._waiting:
                self._decode(transcriber)
            else:
                self._wakeup.wait()

    def _load(self) -> "Transcriber":
        from voxpipe.checkpoints.hub import resolve
        from voxpipe.runtime.transcriber import load_choice

        transcriber = load_choice(resolve(self._choice.model, fetch=False), dtype=self._choice.dtype)
        self._facts = ModelFacts(transcriber.name, transcriber.config.transcription_delay_ms)
        return transcriber

    def _decode(self, transcriber: "Transcriber") -> None:
        """Decode what waits, and what comes meanwhile."""
        from voxpipe.runtime.files import LOOK_S, FileStreams

        n_at_once = self._waiting[0].n_at_once
        begun: dict[int, _Recording] = {}
        numbers = itertools.count()
        try:
            engine = transcriber.create_engine(n_expected=n_at_once)
            with closing(FileStreams(transcriber, engine, jobs=n_at_once, tell=self._wakeup.set)) as streams:
                while (self._waiting or len(streams)) and not self._stopping:
                    while self._waiting and self._waiting[0].n_at_once == n_at_once and streams.has_room:
                        recording, number = self._waiting.popleft(), next(numbers)
                        begun[number] = recording
                        streams.begin(number, recording.recording, delay_ms=recording.delay_ms)
                    failed = streams.open()
                    worked = engine.turn()
                    for progress in [*failed, *streams.take(worked)]:
                        if begun[progress.index].put(progress):
                            del begun[progress.index]
                    if not worked and not failed:
                        self._wakeup.wait(LOOK_S)
        except Exception as exc:  # a defect, of which those who have asked are told; the next ones may have more luck
            for recording in list(begun.values()) or [self._waiting.popleft()]:
                recording.results.put(exc)

    def stop(self) -> None:
        """Give up what is being decoded, and end."""
        self._stopping = True
        self._wakeup.set()
        self._thread.join(timeout=5.0)


_threads: dict[ModelChoice, ModelThread] = {}
_lock = threading.Lock()


def model_thread(choice: ModelChoice) -> ModelThread:
    """The thread of a model, of which each process has one. One that could not be loaded is tried again."""
    with _lock:
        thread = _threads.get(choice)
        if thread is None:
            thread = _threads[choice] = ModelThread(choice)
    try:
        thread.facts()
    except ModelError:
        with _lock:
            if _threads.get(choice) is thread:
                del _threads[choice]
        raise
    return thread


@atexit.register
def _stop_threads() -> None:
    """A process that ends with MLX's streams of another thread left open is aborted."""
    for thread in list(_threads.values()):
        thread.stop()
