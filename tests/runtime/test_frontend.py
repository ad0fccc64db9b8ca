"""Padding, mel frames and the stream's clock, without a model."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.random_checkpoints import Floats, chunks, random_audio
from voxpipe.model.mel import frames_to_log_mel, log_mel, silent_frames
from voxpipe.runtime.frontend import AUDIBLE_LOG_MEL, FrontEnd, audible, right_pad_tokens
from voxpipe.runtime.source import StreamingAudioSource

TOKEN = 1_280
N_CONSTANT = 31  # tokens of the left padding that no audio sways: they are in a stream's first state


def make(n_delay_tokens: int = 6) -> tuple[StreamingAudioSource, FrontEnd]:
    source = StreamingAudioSource()
    return source, FrontEnd(source, n_left_pad_tokens=32, n_delay_tokens=n_delay_tokens)


def drain(front_end: FrontEnd, max_tokens: int = 16) -> Floats:
    """(8 T, n_mels) of all tokens that are ready."""
    taken = [np.zeros((0, 128), np.float32)]
    while (frames := front_end.take(max_tokens)) is not None:
        assert len(frames) % 8 == 0
        assert len(frames) <= 8 * max_tokens
        taken.append(frames_to_log_mel(frames))
    return np.concatenate(taken)


def n_tokens(frames: Floats) -> int:
    return len(frames) // 8


def whole_mel(*parts: Floats | int) -> Floats:
    """log-mel of samples and silences (given as numbers of samples) in one piece, behind all of the left padding; of
    which the last token's is returned."""
    arrays = [np.zeros(part, np.float32) if isinstance(part, int) else part for part in (32 * TOKEN, *parts)]
    return log_mel(np.concatenate(arrays))[8 * N_CONSTANT :]


def cut(samples: Floats, sizes: Iterable[int]) -> Iterator[Floats]:
    """Pieces of the given sizes, then the rest."""
    start = 0
    for size in sizes:
        yield samples[start : start + size]
        start += size
    yield samples[start:]


# --- padding (specification 5.2 and 12) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_samples", "n_delay_tokens", "expected"),
    [
        (48_777, 6, 88),  # the specification's example: 112,640 samples, 704 mel frames
        (48_777, 1, 32 + 39 + 12),
        (48_777, 30, 32 + 39 + 41),
        (1, 6, 32 + 1 + 17),
        (1_279, 6, 32 + 1 + 17),
        (1_280, 6, 32 + 1 + 17),
        (1_281, 6, 32 + 2 + 17),
        (0, 6, 31),  # no padding behind nothing: the last token of the left padding is never whole
    ],
)
def test_a_stream_has_32_tokens_before_it_and_is_aligned_and_padded_behind(
    n_samples: int, n_delay_tokens: int, expected: int
) -> None:
    source, front_end = make(n_delay_tokens)
    source.append(random_audio(n_samples))
    assert front_end.end_token is None
    source.close()
    assert N_CONSTANT + n_tokens(drain(front_end)) == expected
    assert front_end.ended
    assert not front_end.ready()
    assert front_end.n_samples == n_samples
    assert front_end.end_token == 32 + -(-n_samples // TOKEN)


def test_right_padding_is_the_delay_the_shift_and_ten() -> None:
    assert [right_pad_tokens(n) for n in (1, 6, 15, 30)] == [12, 17, 26, 41]


def test_the_constant_part_of_the_left_padding_is_digital_silence_to_the_last_bit() -> None:
    """Whatever is said behind it; the token after it is not."""
    loud = np.ones(5 * TOKEN, np.float32)
    mel = log_mel(np.concatenate([np.zeros(32 * TOKEN, np.float32), loud]))
    np.testing.assert_array_equal(mel[: 8 * N_CONSTANT], silent_frames(8 * N_CONSTANT))
    assert (mel[8 * N_CONSTANT : 8 * N_CONSTANT + 8] != silent_frames(8)).any()


# --- when tokens come ------------------------------------------------------------------------------------------------


def test_a_token_is_ready_exactly_40_samples_after_its_slot() -> None:
    source, front_end = make()
    assert front_end.take(16) is None  # the last token of the left padding looks 40 samples into the audio
    for t in range(20):
        until = TOKEN * t + 40  # token 31 + t ends where the audio's slot t begins
        source.append(np.zeros(until - 1 - front_end.n_samples, np.float32))
        assert not front_end.ready()
        assert front_end.take(16) is None
        source.append(np.zeros(1, np.float32))
        assert front_end.ready()
        frames = front_end.take(16)
        assert frames is not None
        assert n_tokens(frames) == 1


def test_nothing_more_than_a_token_is_read_ahead() -> None:
    source, front_end = make()
    source.append(np.zeros(100 * TOKEN, np.float32))
    for _ in range(60):
        assert front_end.take(1) is not None
    assert front_end.n_samples <= (60 - 1 + 1) * TOKEN
    assert len(front_end._frames) < 8


# --- mel -------------------------------------------------------------------------------------------------------------

AUDIO = random_audio(7 * TOKEN + 333)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 3_000), max_size=30), max_tokens=st.integers(1, 16), n_delay=st.integers(1, 15))
@example(sizes=[1] * 500, max_tokens=1, n_delay=6)
@example(sizes=[], max_tokens=16, n_delay=1)
@example(sizes=[39, 1, 1, 1_279, 160, 160], max_tokens=3, n_delay=6)
def test_mel_equals_that_of_the_padded_recording_for_any_chunks(
    sizes: list[int], max_tokens: int, n_delay: int
) -> None:
    source, front_end = make(n_delay)
    taken = []
    for part in cut(AUDIO, sizes):
        source.append(part)
        taken.append(drain(front_end, max_tokens))
    source.close()
    taken.append(drain(front_end, max_tokens))
    padding = TOKEN - 333 + (n_delay + 11) * TOKEN
    np.testing.assert_array_equal(np.concatenate(taken), whole_mel(AUDIO, padding))


def test_a_flush_puts_silence_in_and_makes_the_tokens_of_its_padding_ready_at_once() -> None:
    source, front_end = make()
    first, second = AUDIO[:5_000], AUDIO[5_000:9_001]
    for part in chunks(first, 700):
        source.append(part)
    source.flush()
    before = drain(front_end)
    # 4 tokens of audio, 17 of padding, complete although nothing follows
    assert n_tokens(before) == 1 + 4 + 17
    inserted = 4 * TOKEN - 5_000 + 18 * TOKEN
    source.append(second)
    source.close()
    after = drain(front_end)
    whole = whole_mel(first, inserted, second, -(5_000 + inserted + 4_001) % TOKEN + 17 * TOKEN)
    np.testing.assert_array_equal(np.concatenate([before, after]), whole)
    assert front_end.n_samples == 9_001


def test_a_flush_with_nothing_new_does_nothing() -> None:
    source, front_end = make()
    source.flush()
    assert front_end.take(16) is None
    source.append(AUDIO)
    source.flush()
    source.flush()
    n_flushed = n_tokens(drain(front_end))
    source.flush()
    source.append(np.zeros(0, np.float32))
    source.flush()
    assert front_end.take(16) is None
    source.close()
    assert n_flushed + n_tokens(drain(front_end)) == 1 + 8 + 18 + 17


def test_flushes_between_chunks_of_any_size_leave_the_audio_whole() -> None:
    source, front_end = make()
    taken, expected = [], []
    for part in (AUDIO[:1], AUDIO[1:1_281], AUDIO[1_281:2_561], AUDIO[2_561:5_000]):
        source.append(part)
        source.flush()
        taken.append(drain(front_end, 5))
        expected += [part, np.zeros(-len(part) % TOKEN + 18 * TOKEN, np.float32)]
    expected.append(np.zeros(40, np.float32))
    whole = whole_mel(*expected)
    mel = np.concatenate(taken)
    np.testing.assert_array_equal(mel, whole[: len(mel)])
    assert n_tokens(mel) == 1 + 1 + 1 + 1 + 2 + 4 * 18 - 1  # the last token of the last padding is not complete


# --- clock -----------------------------------------------------------------------------------------------------------


def test_the_clock_counts_real_samples_only() -> None:
    source, front_end = make()
    source.append(AUDIO[:5_120])  # 4 tokens
    source.flush()  # 18 tokens of silence
    source.append(AUDIO[:2_560])
    source.flush()
    source.append(AUDIO[:5_120])
    drain(front_end)
    slots = [-2.0, 0.0, 0.5, 3.5, 4.0, 4.5, 12.0, 22.0, 22.5, 24.0, 30.0, 42.0, 43.0, 46.0, 50.0]
    seconds = [front_end.time_at(slot) for slot in slots]
    expected = [0.0, 0.0, 0.04, 0.28, 0.32, 0.32, 0.32, 0.32, 0.36, 0.48, 0.48, 0.48, 0.56, 0.80, 0.80]
    assert seconds == pytest.approx(expected)


def test_the_clock_of_a_flush_within_a_slot_loses_no_sample() -> None:
    source, front_end = make()
    source.append(AUDIO[:100])
    source.flush()
    source.append(AUDIO[:2_560])
    drain(front_end)
    slots = [0.05, 0.5, 1.0, 18.9, 19.0, 20.0]
    seconds = [front_end.time_at(slot) for slot in slots]
    assert seconds == pytest.approx([64 / 16_000, 0.00625, 0.00625, 0.00625, 0.00625, 0.08625])


def test_nothing_is_remembered_of_flushes_that_lie_behind() -> None:
    source, front_end = make()
    for n in range(50):
        source.append(np.zeros(TOKEN, np.float32))
        source.flush()
        drain(front_end)
        front_end.time_at(19.0 * n)
    assert len(front_end._inserts) <= 2


def test_no_time_lies_behind_the_audio() -> None:
    source, front_end = make()
    source.append(AUDIO[:3_200])
    source.close()
    drain(front_end)
    assert front_end.time_at(2.0) == pytest.approx(0.16)
    assert front_end.time_at(12.0) == pytest.approx(0.2)


# --- what counts as sound --------------------------------------------------------------------------------------------


def test_silence_and_a_rooms_noise_are_not_audible_and_a_soft_tone_is() -> None:
    seconds = np.arange(8_000) / 16_000
    tone = np.sin(2 * np.pi * 1_000 * seconds).astype(np.float32)
    noise = (np.random.default_rng(0).standard_normal(8_000) * 10 ** (-70 / 20)).astype(np.float32)
    for samples, expected in ((np.zeros(8_000, np.float32), False), (noise, False), (tone * 0.01, True), (AUDIO, True)):
        mel = log_mel(samples)[: 8 * (len(samples) // TOKEN)]
        heard = audible(mel)
        assert heard.shape == (len(mel) // 8,)
        assert heard[1:-1].mean() > 0.5 if expected else not heard.any()
    one_loud_band = np.full((16, 128), -0.625, np.float32)
    one_loud_band[9, 77] = AUDIBLE_LOG_MEL + 0.01
    assert audible(one_loud_band).tolist() == [False, True]
