"""Deltas to segments while they come: a segment ends where its speaker pauses, at a flush, or with the stream.

The texts of all segments joined are the texts of all deltas joined.
"""

from dataclasses import dataclass

from voxpipe.output.transcript import Delta


@dataclass(frozen=True)
class EndedSegment:
    """A segment and why it ended: `pause`, `flush` or `end`."""

    text: str
    start: float
    end: float
    reason: str


class SegmentStream:
    """Collects the deltas of one stream.

    Args:
        pause_s: silence behind a word that ends a segment.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._deltas: list[Delta] = []

    def push(self, delta: Delta) -> EndedSegment | None:
        """Take the next delta and return the segment that ended before it, if one did."""
        is_pause = bool(self._deltas) and delta.start - self._deltas[-1].end >= self._pause_s
        ended = self.finish("pause") if is_pause else None
        self._deltas.append(delta)
        return ended

    def settle(self, second: float) -> EndedSegment | None:
        """Say before which second of the stream no further word will begin; return the segment that has ended so."""
        if self._deltas and second - self._deltas[-1].end >= self._pause_s:
            return self.finish("pause")
        return None

    def finish(self, reason: str) -> EndedSegment | None:
        """Return what has been collected, and begin anew."""
        if not self._deltas:
            return None
        deltas, self._deltas = self._deltas, []
        return EndedSegment("".join(deltas), deltas[0].start, deltas[-1].end, reason)
