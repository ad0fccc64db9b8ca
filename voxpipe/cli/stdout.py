"""Transcripts on stdout: in the order of the files, or as events at once."""

import io
import sys
from typing import TYPE_CHECKING, Any

from voxpipe.errors import VoxpipeError
from voxpipe.output.formats import FORMATS, Events, Format

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress
    from voxpipe.runtime.jobs import FileJob


class Turns:
    """Lets several files write to stdout in their order; those whose turn it is not are held back."""

    def __init__(self, n_files: int) -> None:
        self._held: list[bytearray] = [bytearray() for _ in range(n_files)]
        self._ended = [False] * n_files
        self._current = 0

    def write(self, index: int, data: bytes, *, is_last: bool) -> None:
        """Take what file `index` has to say and write what may be written."""
        self._held[index] += data
        self._ended[index] |= is_last
        while self._current < len(self._held):
            held = self._held[self._current]
            if held:
                sys.stdout.buffer.write(held)
                sys.stdout.buffer.flush()
                held.clear()
            if not self._ended[self._current]:
                return
            self._current += 1


class StdoutResults:
    """The transcripts of one file for stdout, one channel after the other."""

    def __init__(self, job: "FileJob", turns: Turns, index: int, format: str, **how: Any) -> None:
        self._job = job
        self._turns = turns
        self._index = index
        self._format = format
        self._how = how
        self._channels: list[io.BytesIO] = []
        self._formats: list[Format] = []
        self._n_ended = 0

    def add(self, progress: "Progress") -> VoxpipeError | None:
        """Write what is known of the first channel, and the others when all have ended."""
        for channel in range(len(self._formats), progress.n_channels):
            self._channels.append(io.BytesIO())
            self._formats.append(FORMATS[self._format](self._channels[-1], self._job.heading(channel, **self._how)))
        if progress.n_channels:
            _put(progress, self._formats[progress.channel], self._job)
        self._n_ended += progress.is_last
        has_ended = self._n_ended >= max(1, progress.n_channels)
        written = b"".join(map(_drain, self._channels if has_ended else self._channels[:1]))
        self._turns.write(self._index, written, is_last=has_ended)
        return progress.error

    def discard(self) -> None:
        """What was written is written."""


class EventResults:
    """The events of one file for stdout, written at once: they say which file they are about."""

    def __init__(self, job: "FileJob", **how: Any) -> None:
        self._job = job
        self._how = how
        self._open: dict[int, Events] = {}
        self._audio_s = 0.0

    def add(self, progress: "Progress") -> VoxpipeError | None:
        channel = progress.channel
        if channel not in self._open:
            heading = self._job.heading(channel, **self._how)
            self._open[channel] = Events(sys.stdout.buffer, heading, is_alone=False)
        self._audio_s = progress.audio_s
        _put(progress, self._open[channel], self._job)
        if progress.is_last:
            del self._open[channel]
        return progress.error

    def discard(self) -> None:
        for events in self._open.values():
            events.stop(audio_s=self._audio_s)
        self._open.clear()


def _put(progress: "Progress", format: Format, job: "FileJob") -> None:
    format.add(progress.deltas)
    if progress.error is not None:
        format.fail(progress.error.code, job.explain(progress.error), audio_s=progress.audio_s)
    elif progress.is_last:
        format.finish(job.facts(progress.audio_s), truncated=progress.truncated)


def _drain(buffer: io.BytesIO) -> bytes:
    """Take what has been written to a buffer."""
    data = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return data
