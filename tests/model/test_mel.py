"""Log-mel features: the specification's test vectors (section 12), and a stream that equals the whole."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_checkpoints import Floats, chunks, random_audio
from voxpipe.model.mel import FrameStream, _hz_to_mel, _mel_to_hz, frames_to_log_mel, log_mel, mel_filter_bank

LEFT_PAD = np.zeros(1_280, np.float32)


def test_mel_scale() -> None:
    top = _hz_to_mel(8_000.0)
    assert top == pytest.approx(45.245640471924965, abs=1e-12)
    edges_hz = _mel_to_hz(np.linspace(0.0, top, 130))
    assert edges_hz[[1, 64, 128]] == pytest.approx([23.382759933811, 1668.667481882, 7809.394617501], abs=1e-8)


def test_filter_bank() -> None:
    bank = mel_filter_bank()
    assert bank.shape == (201, 128)
    assert np.count_nonzero(bank) == 394
    assert bank.sum() == pytest.approx(3.1909855285, abs=1e-9)
    assert bank.max() == pytest.approx(0.0416817493, abs=1e-9)


def test_sine() -> None:
    sine = (0.5 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)).astype(np.float32)
    mel = log_mel(sine)
    assert mel.shape == (100, 128)
    assert mel.dtype == np.float32
    assert mel[50].argmax() == 42
    assert mel[50].max() == pytest.approx(1.474446, abs=2e-5)
    assert mel[50].mean() == pytest.approx(-0.548050, abs=2e-5)
    assert mel[0].argmax() == 40  # the edge is reflected
    assert mel[0].max() == pytest.approx(1.407123, abs=2e-5)


def test_silence_is_the_floor_in_every_bin() -> None:
    assert (log_mel(np.zeros(4_000, np.float32)) == np.float32(-0.625)).all()


def test_loud_input_is_not_clamped() -> None:
    """The maximum is a constant for the floor's sake; nothing is cut off above it."""
    assert log_mel(100.0 * random_audio(16_000)).max() > (1.5 + 4.0) / 4.0


@pytest.mark.parametrize("n_samples", [400, 1_279, 1_280, 1_281, 15_999])
def test_frame_count(n_samples: int) -> None:
    assert len(log_mel(random_audio(n_samples))) == n_samples // 160


def streamed(samples: Floats, size: int) -> Floats:
    stream = FrameStream()
    return np.concatenate([frames_to_log_mel(stream.push(chunk)) for chunk in chunks(samples, size)])


@pytest.mark.parametrize("size", [1, 7, 159, 160, 161, 401, 1_280, 9_973, 10**9])
def test_stream_equals_whole(size: int) -> None:
    n_samples = 1_500 if size == 1 else 20_011
    samples = np.concatenate([LEFT_PAD, random_audio(n_samples)])
    whole, mel = log_mel(samples), streamed(samples, size)
    assert len(mel) == (len(samples) - 200) // 160 + 1  # all frames that are final
    np.testing.assert_array_equal(mel, whole[: len(mel)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 900), max_size=30))
def test_stream_equals_whole_for_any_sizes(sizes: list[int]) -> None:
    samples = np.concatenate([LEFT_PAD, random_audio(4_000)])
    stream = FrameStream()
    cuts = np.minimum(np.cumsum([0, *sizes, 10_000]), len(samples))
    frames = np.concatenate([stream.push(samples[a:b]) for a, b in itertools.pairwise(cuts)])
    mel = frames_to_log_mel(frames)
    np.testing.assert_array_equal(mel, log_mel(samples)[: len(mel)])
    assert len(mel) == (len(samples) - 200) // 160 + 1


@pytest.mark.parametrize("n_together", [1, 7, 8, 63, 64, 65, 200])
def test_features_of_a_frame_do_not_depend_on_those_beside_it(n_together: int) -> None:
    frames = FrameStream().push(random_audio(200 * 160 + 400))
    alone = np.concatenate([frames_to_log_mel(frame[None]) for frame in frames])
    together = [frames_to_log_mel(frames[i : i + n_together]) for i in range(0, len(frames), n_together)]
    np.testing.assert_array_equal(np.concatenate(together), alone)


def test_a_frame_comes_with_its_last_sample_and_not_before() -> None:
    """Token t needs 1280 (t + 1) + 40 samples: 2.5 ms after its slot ends."""
    stream = FrameStream()
    assert len(stream.push(random_audio(1_280 + 39))) == 7
    assert len(stream.push(np.zeros(1, np.float32))) == 1


def test_stream_keeps_no_more_than_the_next_frame_needs() -> None:
    stream = FrameStream()
    for _ in range(50):
        stream.push(random_audio(1_283))
        assert len(stream._tail) < 400


def test_parameters_are_obeyed() -> None:
    samples = random_audio(4_000)
    assert log_mel(samples, n_mels=80).shape == (25, 80)
    assert log_mel(samples, log_mel_max=2.5).min() == np.float32((2.5 - 8.0 + 4.0) / 4.0)
    frames = FrameStream().push(np.concatenate([LEFT_PAD, samples]))
    mel = frames_to_log_mel(frames, n_mels=80, log_mel_max=2.5)
    assert mel.shape[1] == 80
    assert mel.min() == np.float32((2.5 - 8.0 + 4.0) / 4.0)
