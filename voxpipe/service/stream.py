"""A live stream between the thread that reads its bytes and the loop that decodes it."""

from collections.abc import Callable
from dataclasses import dataclass

from voxpipe.errors import VoxpipeError
from voxpipe.output.events import JsonLines
from voxpipe.runtime.source import StreamingAudioSource

BUFFER_S = 30.0  # audio queued per stream before its writer has to wait


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is decoded and reported.

    Attributes:
        delay_ms: transcription delay; None is the model's own.
        segment_pause_s: a pause of so many seconds ends a segment, which is reported; None reports none.
        heartbeat_s: seconds between two signs of life; None gives none.
    """

    delay_ms: int | None = None
    segment_pause_s: float | None = None
    heartbeat_s: float | None = None


def _nothing() -> None:
    pass


class Stream:
    """One producer's audio, from its first byte to `done`.

    Args:
        name: of its events.
        source: what its `start` event names.
        lines: where its events go.
        on_audio: called when there is more to decode, from the thread that read it.
        on_end: called when `done` has been written.

    Attributes:
        audio: where the reader puts samples and the loop takes them.
        error: what went wrong while its bytes were read, if anything.
        warnings: what was odd about them: (code, message), to be reported before `done`.
    """

    def __init__(
        self,
        name: str,
        source: str,
        lines: JsonLines,
        options: StreamOptions,
        *,
        on_audio: Callable[[], None],
        on_end: Callable[[], None] = _nothing,
    ) -> None:
        self.name = name
        self.source = source
        self.lines = lines
        self.options = options
        self.on_end = on_end
        self.audio = StreamingAudioSource(max_buffer_s=BUFFER_S, on_change=on_audio)
        self.error: VoxpipeError | None = None
        self.warnings: list[tuple[str, str]] = []
