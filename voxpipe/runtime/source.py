"""The queue between whoever has audio and whoever decodes it.

Safe between threads. It carries samples and two marks, flush and close, in the order in which they were given.
Knows nothing of models.
"""

import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxpipe.audio.resample import Resampler
from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import AudioError

BLOCK_SAMPLES = 10 * SAMPLE_RATE  # a long array is queued in pieces, each freed when it has been read
Floats = NDArray[np.float32]


class Mark(enum.Enum):
    FLUSH = "flush"
    CLOSE = "close"


@dataclass(frozen=True)
class Gap:
    """Samples that were dropped; the clock goes on over them."""

    n_samples: int


def as_samples(samples: ArrayLike) -> Floats:
    """Return mono float32 samples of any array of them.

    Integers of 16 and 32 bits are scaled to [-1, 1]; what is not a number becomes silence, since one NaN would stay in
    the model's caches for minutes.

    Raises:
        AudioError: the array is not one-dimensional, or of another type.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        raise AudioError(
            f"audio must be one-dimensional (mono), not of shape {array.shape}; average the channels first"
        )
    if array.dtype.type in (np.int16, np.int32):  # in either byte order
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"audio samples must be float, int16 or int32, not {array.dtype}")
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)  # always a copy: the caller may reuse the buffer
    if not np.isfinite(floats).all():
        floats[~np.isfinite(floats)] = 0.0
    return floats


class StreamingAudioSource:
    """Samples on their way to a session.

    Args:
        sample_rate: of what is appended, in Hz; resampled to 16 kHz on the way in.
        max_buffer_s: seconds of audio after which `append` waits for the reader; None never waits.
        lossy: never wait; where the buffer is full, drop the older half of it and leave a `Gap`.
        on_change: called after every change of which the reader wants to know, from the thread that made it.
    """

    def __init__(
        self,
        sample_rate: int = SAMPLE_RATE,
        *,
        max_buffer_s: float | None = None,
        lossy: bool = False,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self._resampler = Resampler(sample_rate) if sample_rate != SAMPLE_RATE else None
        self._max_samples = None if max_buffer_s is None else max(1, int(max_buffer_s * SAMPLE_RATE))
        self._lossy = lossy
        self._on_change = on_change
        self._items: deque[Floats | Mark | Gap] = deque()
        self._n_samples = 0
        self._n_marks = 0  # and gaps in the queue
        self._n_wanted = 0  # samples below which the last `take` returned none
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """Whether `close` was called; what was appended before can still be read."""
        return self._closed

    @property
    def buffered_s(self) -> float:
        """Seconds of audio that wait to be read."""
        return self._n_samples / SAMPLE_RATE

    def append(self, samples: ArrayLike) -> None:
        """Queue mono samples; what comes after `close` is ignored.

        Raises:
            AudioError: they are not mono samples.
        """
        self._queue(as_samples(samples))

    def flush(self) -> None:
        """Ask for the words still pending, without ending the stream."""
        self._put(Mark.FLUSH)

    def close(self) -> None:
        """End the stream; calling it again does nothing."""
        self._put(Mark.CLOSE)

    def read(self, timeout: float | None = None) -> tuple[Floats, bool]:
        """Wait for samples and return all there are, and whether the stream has ended behind them."""
        self.wait(timeout)
        samples = []
        with self._changed:
            while self._items and self._items[0] is not Mark.CLOSE:
                item = self._items.popleft()
                if isinstance(item, np.ndarray):
                    samples.append(item)
            self._n_samples = 0
            self._n_marks = len(self._items)
            ended = self._closed
            self._changed.notify_all()
        return np.concatenate(samples) if samples else np.zeros(0, np.float32), ended

    def take(self, max_samples: int, *, at_least: int = 0) -> tuple[Floats, Mark | Gap | None]:
        """Return up to `max_samples` that are here, and the mark or gap directly behind them if it was reached.

        Args:
            at_least: return nothing while fewer are here, unless there is a mark or a gap, or the buffer is half full.
        """
        taken: list[Floats] = []
        mark: Mark | Gap | None = None
        with self._changed:
            self._n_wanted = at_least if self._max_samples is None else min(at_least, self._max_samples // 2)
            if not self._is_enough():
                return np.zeros(0, np.float32), None
            while self._items:
                item = self._items[0]
                if not isinstance(item, np.ndarray):
                    mark = item
                    if mark is not Mark.CLOSE:  # a closed source stays closed
                        self._items.popleft()
                        self._n_marks -= 1
                    break
                if max_samples == 0:
                    break
                head, rest = item[:max_samples], item[max_samples:]
                taken.append(head)
                max_samples -= len(head)
                self._n_samples -= len(head)
                if len(rest):
                    self._items[0] = rest
                else:
                    self._items.popleft()
            self._changed.notify_all()
        return np.concatenate(taken) if taken else np.zeros(0, np.float32), mark

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something to read; return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items), timeout)

    def _queue(self, floats: Floats) -> None:
        for first in range(0, len(floats), BLOCK_SAMPLES):
            block = floats[first : first + BLOCK_SAMPLES]
            with self._changed:
                self._changed.wait_for(self._has_room)
                if self._closed:
                    return
                if self._resampler is not None:  # under the lock: its state follows the order of the queue
                    self._append(self._resampler.push(block))
                else:
                    self._append(block if len(floats) <= BLOCK_SAMPLES else block.copy())
            self._tell()

    def _append(self, block: Floats) -> None:
        if len(block):
            self._items.append(block)
            self._n_samples += len(block)
            if self._lossy and self._max_samples is not None and self._n_samples > self._max_samples:
                self._drop(self._n_samples - self._max_samples // 2)
            self._changed.notify_all()

    def _drop(self, n_samples: int) -> None:
        """Turn the oldest samples into a gap, behind the flush that was asked for among them."""
        self._n_samples -= n_samples
        n_lost = 0
        flush = False
        while n_samples:
            item = self._items.popleft()
            if isinstance(item, Gap):
                n_lost += item.n_samples
            elif isinstance(item, Mark):
                flush = True
            else:
                n = min(len(item), n_samples)
                n_lost += n
                n_samples -= n
                if n < len(item):
                    self._items.appendleft(item[n:])
        self._items.appendleft(Gap(n_lost))
        if flush:
            self._items.appendleft(Mark.FLUSH)
        self._n_marks = sum(not isinstance(item, np.ndarray) for item in self._items)

    def _has_room(self) -> bool:
        return self._max_samples is None or self._lossy or self._n_samples < self._max_samples or self._closed

    def _put(self, mark: Mark) -> None:
        with self._changed:
            if self._closed:
                return
            if self._resampler is not None:  # what its filter holds belongs before the mark; silence may follow it
                self._append(self._resampler.finish())
                self._resampler = Resampler(self.sample_rate)
            self._closed = mark is Mark.CLOSE
            self._items.append(mark)
            self._n_marks += 1
            self._changed.notify_all()
        self._tell()

    def _is_enough(self) -> bool:
        return self._n_samples >= self._n_wanted or self._n_marks > 0

    def _tell(self) -> None:
        if self._on_change is not None and self._is_enough():
            self._on_change()
