"""Several recordings at once, as rows of one batch.

Each is a stream fed fast: it gets its next block when the one before has been decoded. A recording whose channels are kept
apart is a stream per channel. Knows nothing of what becomes of the text.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voxpipe.errors import AudioError, VoxpipeError
from voxpipe.output.transcript import Delta
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber

Floats = NDArray[np.float32]


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


class _Reading:
    """A recording that is being read: its blocks and its sessions."""

    def __init__(self, index: int, blocks: Iterator[Floats], sessions: list[StreamingSession]) -> None:
        self.index = index
        self.sessions = sessions
        self.error: VoxpipeError | None = None
        self._blocks = blocks
        self._closed = False

    def feed(self, block: Floats) -> None:
        columns = [block] if block.ndim == 1 else list(block.T)
        for session, column in zip(self.sessions, columns, strict=True):
            session.feed(column)

    def feed_if_starved(self) -> None:
        """Read on when all channels have been decoded as far as they were read."""
        while not self._closed and all(session.starved for session in self.sessions):
            try:
                block = next(self._blocks, None)
            except VoxpipeError as exc:
                self.error, block = exc, None
            if block is not None:
                self.feed(block)
                continue
            self._closed = True
            for session in self.sessions:
                session.close()

    def close(self) -> None:
        if isinstance(self._blocks, Generator):
            self._blocks.close()


def transcribe_together(
    recordings: Iterable[Iterable[Floats]], transcriber: Transcriber, *, jobs: int, delay_ms: int | None = None
) -> Generator[Progress, None, None]:
    """Transcribe recordings, up to `jobs` channels at once or one recording of more; each is begun when there is a place.

    Closing the iterator closes the recordings.

    Args:
        recordings: blocks of 16 kHz samples of each, (n,) or (n, channels); reading them may raise VoxpipeError, which ends
            that one alone.
    """
    engine = transcriber.create_engine(n_expected=jobs)
    waiting = enumerate(recordings)
    readings: dict[StreamingSession, _Reading] = {}
    try:
        while True:
            while len(engine) < jobs and (following := next(waiting, None)) is not None:
                opened = _open(*following, transcriber, engine, delay_ms=delay_ms)
                if isinstance(opened, Progress):
                    yield opened
                else:
                    readings |= dict.fromkeys(opened.sessions, opened)
            if not readings:
                return
            for reading in dict.fromkeys(readings.values()):
                reading.feed_if_starved()
            for session, deltas in engine.turn():
                reading = readings[session]
                if session.done:
                    del readings[session]
                yield Progress(
                    reading.index,
                    channel=reading.sessions.index(session),
                    n_channels=len(reading.sessions),
                    deltas=deltas,
                    audio_s=session.audio_s,
                    is_last=session.done,
                    truncated=session.truncated,
                    error=reading.error if session.done else None,
                )
    finally:
        for reading in dict.fromkeys(readings.values()):
            reading.close()


def _open(
    index: int, recording: Iterable[Floats], transcriber: Transcriber, engine: Engine, *, delay_ms: int | None
) -> _Reading | Progress:
    """Begin a recording, or say why it cannot be begun: its first block tells how many channels there are."""
    blocks = iter(recording)
    try:
        first = next(blocks, None)
    except VoxpipeError as exc:
        return Progress(index, is_last=True, error=exc)
    if first is None:
        return Progress(index, is_last=True, error=AudioError("there is no audio in it"))
    n_channels = 1 if first.ndim == 1 else first.shape[1]
    sessions = [transcriber.create_streaming_session(transcription_delay_ms=delay_ms) for _ in range(n_channels)]
    for session in sessions:
        engine.add(session, live=False)
    reading = _Reading(index, blocks, sessions)
    reading.feed(first)
    return reading
