"""A lossy source drops its oldest audio, and says where; the stream's clock goes on over it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.config import SAMPLE_RATE, SAMPLES_PER_TOKEN
from voxpipe.runtime.frontend import FrontEnd
from voxpipe.runtime.source import Gap, Mark, StreamingAudioSource


def contents(source: StreamingAudioSource) -> list[tuple[int, Mark | Gap | None]]:
    """(samples, what came behind them) until nothing is left."""
    taken = []
    while True:
        samples, mark = source.take(1 << 30)
        if mark is None or mark is Mark.CLOSE:
            return [*taken, (len(samples), mark)]
        taken.append((len(samples), mark))


def test_the_older_half_of_a_full_queue_becomes_a_gap() -> None:
    source = StreamingAudioSource(max_buffer_s=2.0, lossy=True)
    audio = np.arange(5 * SAMPLE_RATE, dtype=np.float32) / 1e6
    for second in range(2):
        source.append(audio[second * SAMPLE_RATE :][:SAMPLE_RATE])
    assert source.buffered_s == 2.0
    source.append(audio[2 * SAMPLE_RATE :][:100])
    assert source.buffered_s == 1.0
    samples, gap = source.take(10)
    assert (len(samples), gap) == (0, Gap(SAMPLE_RATE + 100))
    samples, _ = source.take(1 << 30)
    assert np.array_equal(samples, audio[SAMPLE_RATE + 100 :][: len(samples)])


def test_gaps_that_meet_are_one_and_a_flush_among_them_is_kept() -> None:
    source = StreamingAudioSource(max_buffer_s=1.0, lossy=True)
    for _ in range(6):
        source.append(np.ones(SAMPLE_RATE // 2, np.float32))
        source.flush()
    source.close()
    taken = contents(source)
    gaps = [mark for _, mark in taken if isinstance(mark, Gap)]
    assert len(gaps) == 1
    assert sum(n for n, _ in taken) + gaps[0].n_samples == 3 * SAMPLE_RATE
    assert taken[0] == (0, Mark.FLUSH)
    assert taken[-1][1] is Mark.CLOSE


def test_a_source_that_is_not_lossy_drops_nothing() -> None:
    source = StreamingAudioSource(max_buffer_s=100.0)
    source.append(np.ones(SAMPLE_RATE * 50, np.float32))
    assert contents(source) == [(50 * SAMPLE_RATE, None)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 3 * SAMPLE_RATE), min_size=1, max_size=20), st.data())
def test_every_sample_is_heard_or_in_a_gap(sizes: list[int], data: st.DataObject) -> None:
    source = StreamingAudioSource(max_buffer_s=2.0, lossy=True)
    heard: list[np.ndarray] = []
    clock = 0

    def listen(n: int) -> None:
        nonlocal clock
        samples, mark = source.take(n)
        assert np.array_equal(samples, np.arange(clock, clock + len(samples), dtype=np.float32))
        heard.append(samples)
        clock += len(samples)
        if isinstance(mark, Gap):
            clock += mark.n_samples

    first = 0
    for n in sizes:
        source.append(np.arange(first, first + n, dtype=np.float32))
        first += n
        assert source.buffered_s <= 2.0
        for _ in range(data.draw(st.integers(0, 2))):
            listen(data.draw(st.integers(1, SAMPLE_RATE)))
    while source.buffered_s:
        listen(1 << 30)
    listen(1)
    assert clock == first


def test_the_clock_goes_on_over_gaps_and_not_over_flushes() -> None:
    source = StreamingAudioSource(max_buffer_s=0.64, lossy=True)
    front_end = FrontEnd(source, n_left_pad_tokens=0, n_delay_tokens=6)
    source.append(np.zeros(4 * SAMPLES_PER_TOKEN + 40, np.float32))  # what four tokens see, so that nothing is left
    while front_end.take(1) is not None:
        pass
    source.append(np.zeros(8 * SAMPLES_PER_TOKEN, np.float32))
    source.append(np.zeros(1 * SAMPLES_PER_TOKEN, np.float32))  # one too many: five are dropped, four stay
    source.flush()
    while front_end.take(1) is not None:
        pass
    assert front_end.gaps == [(4 * SAMPLES_PER_TOKEN + 40, 5 * SAMPLES_PER_TOKEN)]
    assert front_end.n_samples == 13 * SAMPLES_PER_TOKEN + 40
    slots = [0.0, 3.5, 4.1, 7.0, 8.0, 12.0, 26.0]
    seconds = [0.0, 0.28, 0.728, 0.96, 1.04, 1.042, 1.042]
    assert [round(front_end.time_at(slot), 3) for slot in slots] == seconds
