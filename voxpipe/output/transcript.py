"""What a stream turns into: deltas as they come, segments between pauses, and the whole as one result.

Times are seconds on the stream's own sample clock. They follow from the position at which the model chose to speak, so
they are good to about 0.2 s: the model marks where a word ends; where it begins is inferred from the word before.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SEGMENT_PAUSE_S = 0.8
MAX_SEGMENT_S = 300.0  # of talk without a pause, which would otherwise be kept until there is one
Alternatives = tuple[tuple[str, float], ...]


class Delta(str):
    """A piece of text that is final, a `str` that knows its place.

    Attributes:
        start, end: seconds; of the word that the piece belongs to.
        tokens: the ids whose bytes make the text.
        logprob: natural logarithm of their joint probability.
        alternatives: (text, logprob) of what else the last of them might have been, the likeliest first, if it was asked for.
    """

    __slots__ = ("alternatives", "end", "logprob", "start", "tokens")
    start: float
    end: float
    tokens: tuple[int, ...]
    logprob: float
    alternatives: Alternatives

    def __new__(
        cls,
        text: str,
        *,
        start: float,
        end: float,
        tokens: tuple[int, ...],
        logprob: float,
        alternatives: Alternatives = (),
    ) -> "Delta":
        delta = super().__new__(cls, text)
        delta.start, delta.end, delta.tokens, delta.logprob = start, end, tokens, logprob
        delta.alternatives = alternatives
        return delta

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:  # for copy and pickle
        return (str(self),), {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class Segment:
    """Deltas between two pauses; the texts of all segments joined are the texts of all deltas joined.

    Attributes:
        reason: why it ended: `pause`, `length` (it would have become longer than MAX_SEGMENT_S), `flush` or `end`.
    """

    text: str
    start: float
    end: float
    reason: str = "end"


class SegmentStream:
    """Splits deltas into segments while they come.

    Args:
        pause_s: a pause of at least so many seconds between words ends a segment.
    """

    def __init__(self, pause_s: float = SEGMENT_PAUSE_S) -> None:
        self._pause_s = pause_s
        self._deltas: list[Delta] = []

    def push(self, delta: Delta) -> Segment | None:
        """Take the next delta and return the segment that ended before it, if one did."""
        ended = self.settle(delta.start)
        if self._deltas and delta.end - self._deltas[0].start > MAX_SEGMENT_S:  # one end for all pieces of a word
            ended = self.finish("length")
        self._deltas.append(delta)
        return ended

    def settle(self, second: float) -> Segment | None:
        """Say before which second no further word will begin, and return the segment that has ended so."""
        if self._deltas and second - self._deltas[-1].end >= self._pause_s:
            return self.finish("pause")
        return None

    def finish(self, reason: str = "end") -> Segment | None:
        """Return what has come since the last segment, and begin anew."""
        if not self._deltas:
            return None
        deltas, self._deltas = self._deltas, []
        return Segment("".join(deltas), deltas[0].start, deltas[-1].end, reason)


def segments(deltas: Iterable[Delta], *, pause_s: float = SEGMENT_PAUSE_S) -> list[Segment]:
    """Split at every pause of at least `pause_s` seconds between words, and before MAX_SEGMENT_S without one."""
    stream = SegmentStream(pause_s)
    ended = [stream.push(delta) for delta in deltas]
    return [segment for segment in [*ended, stream.finish()] if segment is not None]


@dataclass(frozen=True)
class Transcript:
    """The result of `generate`.

    Attributes:
        text: the deltas joined, without the space that leads the first word.
        tokens: every id the model chose, blanks and word marks included, one per 80 ms.
        audio_s, wall_s: seconds of audio read and seconds it took.
        truncated: the caller's own `max_tokens` ended it before the audio did.
    """

    text: str
    segments: list[Segment]
    tokens: list[int] = field(repr=False)
    deltas: list[Delta] = field(repr=False)
    delay_ms: int
    audio_s: float
    wall_s: float
    truncated: bool
