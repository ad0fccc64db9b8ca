"""From a source to whole 80 ms groups of frames for mel features, with the silence that the model's schedule asks for.

Silence goes before the stream (the left padding), behind its end, and in at a flush, so that words still pending are
spoken out. The stream's clock counts real samples only, and all of them: `time_at` takes inserted silence out again, and
puts dropped audio in.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from voxpipe.config import (
    HOP_LENGTH,
    MEL_FRAMES_PER_TOKEN,
    SAMPLE_RATE,
    SAMPLES_PER_TOKEN,
)
from voxpipe.model.mel import N_FFT, FrameStream
from voxpipe.runtime.source import Gap, Mark, StreamingAudioSource

LOOK_AHEAD_SAMPLES = N_FFT // 2 - HOP_LENGTH  # 40: what the last frame of a token sees beyond it
AUDIBLE_LOG_MEL = 0.25  # a full-scale tone reaches 1.47, and 0.25 is 10 dB: -49 dBFS
WORD_TAIL_TOKENS = 10  # 0.8 s for a long last word to be written out
Floats = NDArray[np.float32]


def right_pad_tokens(n_delay_tokens: int) -> int:
    """Tokens of silence behind the audio: the delay, the shift by BOS, and room for the last word."""
    return n_delay_tokens + 1 + WORD_TAIL_TOKENS


class FrontEnd:
    """Reads a source, pads it, and divides it into the frames that mel features are computed of.

    Attributes:
        n_samples: real samples read so far, or dropped before they could be.
        gaps: (first sample, number) of those that were dropped.
        end_token: first position that lies in the right padding, known once the source is closed.
        ended: all frames there will ever be are there.
    """

    def __init__(self, source: StreamingAudioSource, *, n_left_pad_tokens: int, n_delay_tokens: int) -> None:
        self._source = source
        self._framing = FrameStream()
        self._n_left = n_left_pad_tokens
        self._n_right = right_pad_tokens(n_delay_tokens)
        self._frames: Floats = np.zeros((0, N_FFT), np.float32)
        self._n_inserted = 0  # samples of silence put in by flushes, less those that were dropped
        self._inserts: deque[tuple[int, int]] = deque()  # (sample it was put before, samples; of a gap, negative)
        self._removed = 0  # silence of inserts that lie behind us
        self._dirty = False  # audio has come since the last padding
        self.n_samples = 0
        self.gaps: list[tuple[int, int]] = []
        self.end_token: int | None = None
        self.ended = False
        # of the left padding only the last token sees any audio; what comes before is in the session's first state
        self._push(np.zeros(min(1, n_left_pad_tokens) * SAMPLES_PER_TOKEN, np.float32))

    def take(self, max_tokens: int) -> Floats | None:
        """Return the (8 T, 400) frames of up to `max_tokens` tokens, or None while there is not one whole token."""
        self._fill(max_tokens)
        n_frames = min(len(self._frames) // MEL_FRAMES_PER_TOKEN, max_tokens) * MEL_FRAMES_PER_TOKEN
        if n_frames == 0:
            return None
        taken, self._frames = self._frames[:n_frames], self._frames[n_frames:].copy()
        return taken

    def ready(self, n_tokens: int = 1) -> bool:
        """Whether `take` would return so many tokens."""
        self._fill(n_tokens)
        return len(self._frames) >= n_tokens * MEL_FRAMES_PER_TOKEN

    def time_at(self, slot: float) -> float:
        """Seconds on the stream's clock of a (fractional) 80 ms slot after the left padding; slots must not decrease."""
        sample = slot * SAMPLES_PER_TOKEN
        while self._inserts and sample >= self._inserts[0][0] + max(0, self._inserts[0][1]):
            self._removed += self._inserts.popleft()[1]
        if self._inserts and sample > self._inserts[0][0]:  # inside inserted silence: the moment of the flush
            sample = self._inserts[0][0]
        return min(max(0.0, sample - self._removed), self.n_samples) / SAMPLE_RATE

    def _fill(self, n_tokens: int) -> None:
        wanted = n_tokens * MEL_FRAMES_PER_TOKEN
        while len(self._frames) < wanted and not self.ended:
            # whole tokens: audio that comes in small pieces wakes nobody sooner
            needed = self._framing.n_samples_for(MEL_FRAMES_PER_TOKEN - len(self._frames) % MEL_FRAMES_PER_TOKEN)
            n_samples = max((wanted - len(self._frames)) * HOP_LENGTH, needed)
            samples, mark = self._source.take(n_samples, at_least=needed)
            if len(samples):
                self.n_samples += len(samples)
                self._dirty = True
                self._push(samples)
            if mark is Mark.FLUSH and self._dirty:
                self._flush()
            elif mark is Mark.CLOSE:
                self._end()
            elif isinstance(mark, Gap):
                self._skip(mark.n_samples)
            elif not len(samples) and mark is None:
                return

    def _flush(self) -> None:
        # one token more than the right padding: the last one stays incomplete until 2.5 ms of what follows are heard
        n_fed = self.n_samples + self._n_inserted
        n_silence = -n_fed % SAMPLES_PER_TOKEN + (self._n_right + 1) * SAMPLES_PER_TOKEN
        self._inserts.append((n_fed, n_silence))
        self._n_inserted += n_silence
        self._dirty = False
        self._push(np.zeros(n_silence, np.float32))

    def _skip(self, n_samples: int) -> None:
        self.gaps.append((self.n_samples, n_samples))
        self._inserts.append((self.n_samples + self._n_inserted, -n_samples))
        self.n_samples += n_samples
        self._n_inserted -= n_samples

    def _end(self) -> None:
        n_fed = self.n_samples + self._n_inserted
        n_tokens = -(-n_fed // SAMPLES_PER_TOKEN)
        self.end_token = self._n_left + n_tokens
        if self.n_samples:
            n_silence = (n_tokens + self._n_right) * SAMPLES_PER_TOKEN - n_fed
            self._push(np.zeros(n_silence + LOOK_AHEAD_SAMPLES, np.float32))
        self.ended = True

    def _push(self, samples: Floats) -> None:
        frames = self._framing.push(samples)
        self._frames = np.concatenate([self._frames, frames]) if len(self._frames) else frames


def audible(mel: Floats) -> NDArray[np.bool_]:
    """(8 T, n_mels) -> (T,) whether each token holds more than a room's noise (a band above about -50 dBFS)."""
    loudest: Floats = mel.reshape(-1, MEL_FRAMES_PER_TOKEN * mel.shape[1]).max(axis=1)
    return loudest > AUDIBLE_LOG_MEL
