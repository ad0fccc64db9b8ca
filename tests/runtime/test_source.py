"""The queue between producers and a session."""

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from tests.random_checkpoints import Floats, chunks, random_audio
from voxpipe.audio.resample import Resampler
from voxpipe.errors import AudioError
from voxpipe.runtime.source import BLOCK_SAMPLES, Mark, StreamingAudioSource, as_samples

RAMP = (np.arange(1_000) / 1_000).astype(np.float32)


def drain(source: StreamingAudioSource, size: int = 10**9) -> tuple[Floats, list[tuple[int, Mark]]]:
    """All that is there: the samples, and each mark with the number of samples before it."""
    taken: list[Floats] = []
    marks: list[tuple[int, Mark]] = []
    while True:
        samples, mark = source.take(size)
        assert len(samples) <= size
        taken.append(samples)
        if mark is not None:
            marks.append((sum(map(len, taken)), mark))
        if mark is Mark.CLOSE or (mark is None and not len(samples)):
            return np.concatenate(taken), marks


def in_thread(*actions: Callable[[], object]) -> threading.Thread:
    """Do one after another."""

    def work() -> None:
        for action in actions:
            action()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_samples_and_marks_come_out_in_the_order_in_which_they_went_in() -> None:
    for size in (1_000, 499, 3, 1):
        source = StreamingAudioSource()
        source.append(RAMP[:7])
        source.flush()
        source.append(RAMP[7:7])
        source.append(RAMP[7:500])
        source.append(RAMP[500:])
        source.flush()
        source.flush()
        source.close()
        samples, marks = drain(source, size)
        np.testing.assert_array_equal(samples, RAMP)
        assert marks == [(7, Mark.FLUSH), (1_000, Mark.FLUSH), (1_000, Mark.FLUSH), (1_000, Mark.CLOSE)]


def test_take_reports_the_mark_directly_behind_the_last_sample_it_could_take() -> None:
    source = StreamingAudioSource()
    source.append(RAMP[:10])
    source.flush()
    samples, mark = source.take(10)
    assert (len(samples), mark) == (10, Mark.FLUSH)
    samples, mark = source.take(10)
    assert (len(samples), mark) == (0, None)


def test_a_reader_is_told_when_there_is_what_it_wants() -> None:
    n_told = 0

    def tell() -> None:
        nonlocal n_told
        n_told += 1

    source = StreamingAudioSource(on_change=tell)
    source.append(RAMP[:10])
    assert n_told == 1  # nobody has said yet how much it wants
    assert len(source.take(100, at_least=40)[0]) == 0
    for first in range(10, 39):
        source.append(RAMP[first : first + 1])
    assert n_told == 1
    source.append(RAMP[39:60])
    assert n_told == 2
    samples, _ = source.take(50, at_least=40)
    np.testing.assert_array_equal(samples, RAMP[:50])
    # a mark is news, whatever stands before it
    assert source.take(50, at_least=40) == (pytest.approx([]), None)
    source.flush()
    assert n_told == 3
    assert source.take(50, at_least=40) == (pytest.approx(RAMP[50:60]), Mark.FLUSH)
    source.append(RAMP[60:70])
    assert source.take(50, at_least=40) == (pytest.approx([]), None)
    source.close()
    assert n_told == 4
    assert source.take(50, at_least=40) == (pytest.approx(RAMP[60:70]), Mark.CLOSE)


@pytest.mark.parametrize("lossy", [False, True])
def test_a_reader_that_wants_more_than_there_is_room_for_gets_half_of_it(lossy: bool) -> None:
    source = StreamingAudioSource(max_buffer_s=0.005, lossy=lossy)  # 80 samples
    heard = []
    for first in range(0, 1_000, 10):
        source.append(RAMP[first : first + 10])
        samples, mark = source.take(1_000, at_least=500)
        assert mark is None
        heard.append(samples)
    np.testing.assert_array_equal(np.concatenate(heard), RAMP)


def test_a_closed_source_stays_closed_and_ignores_what_comes_after() -> None:
    source = StreamingAudioSource()
    source.append(RAMP)
    source.close()
    assert source.closed
    source.append(RAMP)
    source.flush()
    source.close()
    samples, marks = drain(source)
    assert len(samples) == len(RAMP)
    assert marks == [(1_000, Mark.CLOSE)]
    assert source.take(5)[1] is Mark.CLOSE
    assert source.wait(0)


def test_read_waits_for_samples_and_says_when_the_stream_has_ended() -> None:
    source = StreamingAudioSource()
    samples, ended = source.read(timeout=0)
    assert (len(samples), ended) == (0, False)
    source.append(RAMP[:3])
    source.flush()  # marks are for sessions; `read` passes over them
    source.append(RAMP[3:5])
    samples, ended = source.read()
    np.testing.assert_array_equal(samples, RAMP[:5])
    assert not ended
    assert source.buffered_s == 0.0

    producer = in_thread(lambda: time.sleep(0.05), lambda: source.append(RAMP[:4]))
    samples, ended = source.read(timeout=10)
    producer.join()
    assert (len(samples), ended) == (4, False)
    source.append(RAMP[:2])
    source.close()
    samples, ended = source.read()
    assert (len(samples), ended) == (2, True)
    samples, ended = source.read()
    assert (len(samples), ended) == (0, True)


def test_wait_is_woken_by_an_append_and_by_the_close_and_gives_up_in_time() -> None:
    source = StreamingAudioSource()
    started_at = time.monotonic()
    assert not source.wait(0.05)
    assert time.monotonic() - started_at >= 0.05
    for action in (lambda: source.append(RAMP), source.flush, source.close):
        thread = in_thread(lambda: time.sleep(0.02), action)
        assert source.wait(10)
        thread.join()
        drain(source)


def test_on_change_is_called_after_each_change_in_the_thread_that_made_it() -> None:
    seen: list[tuple[float, bool, int]] = []
    is_locked: list[bool] = []
    source: StreamingAudioSource

    def on_change() -> None:
        seen.append((source.buffered_s, source.closed, threading.get_ident()))
        other = in_thread(lambda: source.take(0))
        other.join(10)
        is_locked.append(other.is_alive())

    source = StreamingAudioSource(on_change=on_change)
    source.append(np.zeros(16_000, np.float32))
    source.flush()
    thread = in_thread(source.close)
    thread.join()
    source.close()
    source.append(RAMP)
    me = threading.get_ident()
    assert seen == [(1.0, False, me), (1.0, False, me), (1.0, True, seen[2][2])]
    assert seen[2][2] != me
    assert is_locked == [False, False, False]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_append_waits_while_the_buffer_is_full_and_goes_on_when_it_was_read() -> None:
    source = StreamingAudioSource(max_buffer_s=0.01)  # 160 samples
    source.append(RAMP[:160])
    finished = threading.Event()
    thread = in_thread(lambda: source.append(RAMP[160:200]), finished.set)
    assert not finished.wait(0.1)
    assert source.buffered_s == pytest.approx(0.01)
    samples, _ = source.take(1)
    assert finished.wait(10)
    thread.join()
    rest, _ = drain(source)
    np.testing.assert_array_equal(np.concatenate([samples, rest]), RAMP[:200])


def test_an_unbounded_source_never_waits() -> None:
    source = StreamingAudioSource()
    for _ in range(20):
        source.append(np.zeros(BLOCK_SAMPLES, np.float32))
    assert source.buffered_s == 200.0


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_close_and_flush_do_not_wait_for_room_and_free_a_blocked_append(sample_rate: int) -> None:
    source = StreamingAudioSource(sample_rate, max_buffer_s=0.01)
    source.append(np.zeros(sample_rate, np.float32))
    thread = in_thread(lambda: source.append(np.ones(sample_rate, np.float32)))
    time.sleep(0.05)
    assert thread.is_alive()
    closer = in_thread(source.flush, source.close)
    closer.join(10)
    thread.join(10)
    assert not closer.is_alive()
    assert not thread.is_alive()
    samples, marks = drain(source)
    assert not samples.any()
    assert len(samples) == 16_000
    assert marks == [(16_000, Mark.FLUSH), (16_000, Mark.CLOSE)]


def test_a_buffer_too_small_for_a_sample_takes_one_block_at_a_time() -> None:
    source = StreamingAudioSource(max_buffer_s=0.0)
    source.append(RAMP)
    assert len(source.take(10**6)[0]) == len(RAMP)


def test_a_long_array_is_queued_in_blocks_that_are_freed_one_by_one() -> None:
    source = StreamingAudioSource()
    source.append(np.zeros(2 * BLOCK_SAMPLES + 5, np.float32))
    blocks = [item for item in source._items if isinstance(item, np.ndarray)]
    assert [len(block) for block in blocks] == [BLOCK_SAMPLES, BLOCK_SAMPLES, 5]
    assert all(block.base is None for block in blocks)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_many_producers_and_one_reader_lose_nothing_and_keep_each_producers_order() -> None:
    source = StreamingAudioSource(max_buffer_s=0.02)
    n_producers, n_samples = 4, 3_000

    def produce(number: int) -> None:
        for part in chunks(np.arange(n_samples, dtype=np.float32) + 10_000 * number, 37):
            source.append(part)

    producers = [in_thread(partial(produce, number)) for number in range(n_producers)]
    in_thread(*(producer.join for producer in producers), source.close)
    taken: list[Floats] = []
    mark = None
    while mark is None:
        assert source.wait(10)
        samples, mark = source.take(101)
        taken.append(samples)
    everything = np.concatenate(taken)
    for number in range(n_producers):
        mine = everything[(everything >= 10_000 * number) & (everything < 10_000 * (number + 1))]
        np.testing.assert_array_equal(mine, np.arange(n_samples, dtype=np.float32) + 10_000 * number)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_the_caller_may_reuse_its_buffer() -> None:
    source = StreamingAudioSource()
    buffer = np.ones(100, np.float32)
    source.append(buffer)
    buffer[:] = 7.0
    np.testing.assert_array_equal(source.take(100)[0], np.ones(100))


def test_integers_are_scaled_and_floats_are_taken_as_they_are() -> None:
    expected = np.array([-1.0, -0.5, 0.0, 0.5], np.float32)
    for given in (
        np.array([-(2**15), -(2**14), 0, 2**14], np.int16),
        np.array([-(2**31), -(2**30), 0, 2**30], np.int32),
        np.array([-1.0, -0.5, 0.0, 0.5]),
        np.array([-1.0, -0.5, 0.0, 0.5], np.float16),
        np.array([-1.0, -0.5, 0.0, 0.5], ">f4"),
        np.array([-(2**15), -(2**14), 0, 2**14], ">i2"),
        [-1.0, -0.5, 0.0, 0.5],
    ):
        samples = as_samples(given)
        assert samples.dtype == np.dtype("=f4")
        np.testing.assert_array_equal(samples, expected)
    assert as_samples(np.array([2**15 - 1], np.int16)) < 1.0


def test_what_is_not_a_number_becomes_silence() -> None:
    given = np.array([0.5, np.nan, np.inf, -np.inf, 1e300, -0.5])
    np.testing.assert_array_equal(as_samples(given), np.array([0.5, 0, 0, 0, 0, -0.5], np.float32))
    assert np.isnan(given[1])  # the caller's array is left alone


def test_a_column_or_a_row_is_mono() -> None:
    for shape in ((1_000, 1), (1, 1_000)):
        np.testing.assert_array_equal(as_samples(RAMP.reshape(shape)), RAMP)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((100, 2), np.float32),
            "audio must be one-dimensional (mono), not of shape (100, 2); average the channels first",
        ),
        (
            np.zeros((2, 3, 4), np.float32),
            "audio must be one-dimensional (mono), not of shape (2, 3, 4); average the channels first",
        ),
        (np.float32(1.0), "audio must be one-dimensional (mono), not of shape (); average the channels first"),
        (np.zeros(4, np.uint8), "audio samples must be float, int16 or int32, not uint8"),
        ([1, 2, 3], "audio samples must be float, int16 or int32, not int64"),
        (np.zeros(4, np.complex64), "audio samples must be float, int16 or int32, not complex64"),
        (np.zeros(4, np.bool_), "audio samples must be float, int16 or int32, not bool"),
    ],
)
def test_what_is_no_mono_audio_is_refused_and_nothing_is_queued(given: object, message: str) -> None:
    source = StreamingAudioSource()
    with pytest.raises(AudioError) as caught:
        source.append(given)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert not source.wait(0)


# --- other sample rates ----------------------------------------------------------------------------------------------


def resampled(samples: Floats, rate: int) -> Floats:
    resampler = Resampler(rate)
    return np.concatenate([resampler.push(samples), resampler.finish()])


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled_as_one_signal_whatever_the_chunks(rate: int) -> None:
    audio = random_audio(rate)
    for size in (1_001, 160, rate):
        source = StreamingAudioSource(rate)
        for part in chunks(audio, size):
            source.append(part)
        source.close()
        samples, marks = drain(source)
        assert marks == [(16_000, Mark.CLOSE)]
        np.testing.assert_array_equal(samples, resampled(audio, rate))


def test_a_resampling_source_also_ignores_what_comes_after_the_close() -> None:
    source = StreamingAudioSource(44_100)
    source.append(random_audio(44_100))
    source.close()
    source.append(random_audio(44_100))
    source.close()
    assert drain(source)[1] == [(16_000, Mark.CLOSE)]


def test_a_flush_brings_out_what_the_resampling_filter_holds() -> None:
    audio = random_audio(44_100)
    source = StreamingAudioSource(44_100)
    source.append(audio[:22_050])
    source.flush()
    source.flush()
    source.append(audio[22_050:])
    source.close()
    samples, marks = drain(source)
    assert marks == [(8_000, Mark.FLUSH), (8_000, Mark.FLUSH), (16_000, Mark.CLOSE)]
    both = np.concatenate([resampled(audio[:22_050], 44_100), resampled(audio[22_050:], 44_100)])
    np.testing.assert_array_equal(samples, both)


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(AudioError, match="cannot use audio sampled at 16 Hz: the rate must be between 1000 and 768000"):
        StreamingAudioSource(16)
