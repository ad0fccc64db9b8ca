"""A live stream between the thread that reads its bytes and the loop that decodes it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from voxpipe.audio.resample import Samples
from voxpipe.errors import VoxpipeError
from voxpipe.output.events import JsonLines
from voxpipe.runtime.source import StreamingAudioSource
from voxpipe.service.symptoms import Complaint, SilenceWatch

BUFFER_S = 30.0  # audio queued per stream before its writer has to wait,
REALTIME_BUFFER_S = 300.0  # and where he had better not: 19 MB


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is decoded and reported.

    Attributes:
        delay_ms: transcription delay; None is the model's own.
        segment_pause_s: a pause of so many seconds ends a segment, which is reported; None reports none.
        heartbeat_s: seconds between two signs of life; None gives none.
        realtime: the audio is live: its writer waits as late as can be, and the events say when the model lags.
        max_lag_s: the model may lag by so many seconds before audio is dropped; its writer never waits. None drops none.
        logprobs: whether each delta says how sure the model was of it.
        n_alternatives: how many texts each delta says that it might have been instead.
    """

    delay_ms: int | None = None
    segment_pause_s: float | None = None
    heartbeat_s: float | None = None
    realtime: bool = False
    max_lag_s: float | None = None
    logprobs: bool = False
    n_alternatives: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the source was declared one that must not be blocked."""
        return self.realtime or self.max_lag_s is not None

    @property
    def buffer_s(self) -> float:
        """Seconds of audio that may wait to be decoded."""
        return self.max_lag_s or (REALTIME_BUFFER_S if self.realtime else BUFFER_S)


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
        complaints: what is amiss with its audio, to be reported at once.
        odd_ends: what was odd about the end of its bytes, to be reported before `done`.
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
        self.audio = StreamingAudioSource(
            max_buffer_s=options.buffer_s, lossy=options.max_lag_s is not None, on_change=on_audio
        )
        self.error: VoxpipeError | None = None
        self.complaints: deque[Complaint] = deque()
        self.odd_ends: list[Complaint] = []
        self._silence = SilenceWatch()

    def push(self, samples: Samples) -> None:
        """Queue (n,) samples at 16 kHz; waits while the queue is full, unless the stream may lose audio."""
        complaint = self._silence.look(samples)
        if complaint is not None:
            self.complaints.append(complaint)
        self.audio.append(samples)
