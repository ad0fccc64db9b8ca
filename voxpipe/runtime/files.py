"""Several recordings at once, as rows of one batch.

Each is a stream like any other: a thread of its own reads it into a bounded queue, and the model takes from that. So a slow
disc or a stuck ffmpeg holds up its own recording alone. A recording whose channels are kept apart is a stream per channel.
Knows nothing of what becomes of the text.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voxpipe.errors import AudioError, VoxpipeError, defect
from voxpipe.output.transcript import Delta
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.source import StreamingAudioSource
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.runtime.wakeup import Wakeup

Floats = NDArray[np.float32]
log = logging.getLogger(__name__)

READ_AHEAD_S = 10.0  # of audio, beyond the block that is being decoded
STALL_S = 1.0  # without a sample, after which a recording no longer counts as one that is being decoded
MAX_STALLED = 16  # that are waited for beside those
JOIN_S = 5.0  # for a reader to end; one that waits for a dead disc never does
LOOK_S = 0.5  # a signal that comes just before a wait is noticed so much later at most


@dataclass(frozen=True)
class Progress:
    """What came of one transcript in one turn.

    Attributes:
        index: which of the recordings.
        channel: which of its channels, from 0; always 0 if they were mixed.
        n_channels: how many transcripts the recording has; 0 if it could not be opened.
        audio_s: seconds of it that have been read.
        is_last: nothing more will come of this transcript.
        error: what ended it early, when `is_last`. What was heard before that has been decoded.
    """

    index: int
    channel: int = 0
    n_channels: int = 0
    deltas: list[Delta] = field(default_factory=list)
    audio_s: float = 0.0
    is_last: bool = False
    truncated: bool = False
    error: VoxpipeError | None = None


class _Reader(threading.Thread):
    """Reads one recording into a source per channel.

    Attributes:
        sources: none until the first block has come, which tells how many channels there are.
        sessions: the streams that take from them, once there are any.
        error: what ended it early.
        ended: nothing more will come.
    """

    def __init__(
        self, index: int, recording: Iterable[Floats], *, delay_ms: int | None, tell: Callable[[], None]
    ) -> None:
        super().__init__(name=f"recording-{index}", daemon=True)  # it may wait for a disc for ever
        self.index = index
        self.delay_ms = delay_ms
        self.sources: list[StreamingAudioSource] = []
        self.sessions: list[StreamingSession] = []
        self.error: VoxpipeError | None = None
        self.ended = False
        self._recording = recording
        self._tell = tell
        self._stopping = False
        self._came_at = time.monotonic()

    @property
    def is_stalled(self) -> bool:
        """Whether the model waits for it, and has for a while."""
        waits = not self.ended and all(session.starved for session in self.sessions)
        return waits and time.monotonic() - self._came_at > STALL_S

    def run(self) -> None:
        try:
            for block in self._recording:
                self._came_at = time.monotonic()
                if self._stopping:
                    break
                self._put(block)
                self._came_at = time.monotonic()
        except VoxpipeError as exc:
            self.error = exc
        except Exception:
            log.exception("a defect of voxpipe")
            self.error = defect()
        finally:
            if isinstance(self._recording, Generator):
                self._recording.close()
            for source in self.sources:
                source.close()
            self.ended = True
            self._tell()

    def stop(self) -> None:
        """Read no further; `join` may follow."""
        self._stopping = True
        cancel = getattr(self._recording, "cancel", None)
        if cancel is not None:
            cancel()
        for source in self.sources:  # it may be waiting for room
            source.close()

    def _put(self, block: Floats) -> None:
        columns = [block] if block.ndim == 1 else list(block.T)
        if not self.sources:
            self.sources = [
                StreamingAudioSource(max_buffer_s=READ_AHEAD_S, on_change=self._tell) for _ in range(len(columns))
            ]
        for source, column in zip(self.sources, columns, strict=True):
            source.append(column)


class FileStreams:
    """Recordings on an engine that may carry live streams as well. Belongs to the engine's thread.

    Args:
        jobs: how many channels are decoded at once, or one recording of more; one that is still being opened counts as one,
            and those that the disc holds up come on top.
        tell: called, from other threads, when there is something to do.
    """

    def __init__(self, transcriber: Transcriber, engine: Engine, *, jobs: int, tell: Callable[[], None]) -> None:
        self._transcriber = transcriber
        self._engine = engine
        self._jobs = jobs
        self._tell = tell
        self._readers: dict[int, _Reader] = {}
        self._open: dict[StreamingSession, _Reader] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, index: object) -> bool:
        return index in self._readers

    @property
    def has_room(self) -> bool:
        """Whether another recording may `begin`."""
        stalled = [reader for reader in self._readers.values() if reader.is_stalled]
        n_busy = sum(max(1, len(reader.sources)) for reader in self._readers.values() if reader not in stalled)
        return n_busy < self._jobs and len(stalled) < MAX_STALLED

    @property
    def look_in_s(self) -> float | None:
        """Seconds after which there may be room though nothing has been told."""
        waits = any(not reader.ended and not reader.is_stalled for reader in self._readers.values())
        return STALL_S if waits else None

    def begin(self, index: int, recording: Iterable[Floats], *, delay_ms: int | None = None) -> None:
        """Have a recording read and decoded.

        Args:
            index: what its progress is known by.
            recording: its blocks, (n,) or (n, channels); reading them may raise VoxpipeError. A method `cancel`, if it has
                one, must have the reading end soon; it is called from another thread.
        """
        self._readers[index] = reader = _Reader(index, recording, delay_ms=delay_ms, tell=self._tell)
        reader.start()

    def open(self) -> list[Progress]:
        """Let those that have been begun take part; return what became of those that cannot."""
        failed = []
        for reader in list(self._readers.values()):
            if reader.sessions:
                continue
            if reader.sources:
                reader.sessions = [
                    self._transcriber.create_streaming_session(transcription_delay_ms=reader.delay_ms, source=source)
                    for source in reader.sources
                ]
                for session in reader.sessions:
                    self._engine.add(session, live=False)
                    self._open[session] = reader
            elif reader.ended:
                del self._readers[reader.index]
                error = reader.error or AudioError("there is no audio in it")
                failed.append(Progress(reader.index, is_last=True, error=error))
        return failed

    def take(self, worked: Sequence[tuple[StreamingSession, list[Delta]]]) -> Iterator[Progress]:
        """What came of those streams of a turn that are ours."""
        for session, deltas in worked:
            if session in self._open:
                yield self._progress(session, deltas)

    def close(self) -> None:
        """Give up all that is unfinished."""
        for session in self._open:
            self._engine.remove(session)
        self._open.clear()
        for reader in self._readers.values():
            reader.stop()
        give_up_at = time.monotonic() + JOIN_S
        for reader in self._readers.values():
            reader.join(max(0.0, give_up_at - time.monotonic()))
        self._readers.clear()

    def _progress(self, session: StreamingSession, deltas: list[Delta]) -> Progress:
        reader = self._open[session]
        if session.done:
            del self._open[session]
            if not any(one in self._open for one in reader.sessions):
                self._readers.pop(reader.index, None)  # gone already where two channels end in one turn
        return Progress(
            reader.index,
            channel=reader.sessions.index(session),
            n_channels=len(reader.sessions),
            deltas=deltas,
            audio_s=session.audio_s,
            is_last=session.done,
            truncated=session.truncated,
            error=reader.error if session.done else None,
        )


def transcribe_together(
    recordings: Iterable[Iterable[Floats]], transcriber: Transcriber, *, jobs: int, delay_ms: int | None = None
) -> Generator[Progress, None, None]:
    """Transcribe recordings, up to `jobs` channels at once or one recording of more; each is begun when there is a place.

    Closing the iterator closes the recordings.

    Args:
        recordings: as for `FileStreams.begin`; an error ends that one alone.
    """
    engine = transcriber.create_engine(n_expected=jobs)
    wakeup = Wakeup()
    streams = FileStreams(transcriber, engine, jobs=jobs, tell=wakeup.set)
    waiting = enumerate(recordings)
    following = next(waiting, None)
    try:
        while following is not None or len(streams):
            while following is not None and streams.has_room:
                index, recording = following
                streams.begin(index, recording, delay_ms=delay_ms)
                following = next(waiting, None)
            yield from streams.open()
            worked = engine.turn()
            yield from streams.take(worked)
            if not worked and len(streams):
                wakeup.wait(LOOK_S)
    finally:
        streams.close()
