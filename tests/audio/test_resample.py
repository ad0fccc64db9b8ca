"""The stream equals the whole, whatever the pieces; lengths and limits are as documented."""

import math

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.audio.resample import MAX_RATE, MIN_RATE, SAMPLE_RATE, Resampler, Samples
from voxpipe.errors import AudioError

RATES = (1000, 7999, 8000, 11025, 22050, 24000, 44100, 48000, 96000, 192000, 768000)


def noise(n_samples: int) -> Samples:
    return np.random.default_rng(7).standard_normal(n_samples).astype(np.float32) * 0.1


def resample_in_pieces(samples: Samples, *, rate: int, sizes: list[int]) -> Samples:
    resampler = Resampler(rate)
    pieces, position, n_pieces = [], 0, 0
    while position < len(samples):
        size = sizes[n_pieces % len(sizes)]
        pieces.append(resampler.push(samples[position : position + size]))
        position, n_pieces = position + size, n_pieces + 1
    return np.concatenate([*pieces, resampler.finish()])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("sizes", [[1, 7, 1000, 13], [160], [100_000]])
def test_any_chunking_equals_one_shot(rate: int, sizes: list[int]) -> None:
    samples = noise(max(50, rate // 10) + 3)
    whole = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    assert np.array_equal(resample_in_pieces(samples, rate=rate, sizes=sizes), whole)


@given(
    rate=st.integers(MIN_RATE, 200_000),
    n_samples=st.integers(0, 3000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_length_is_the_rounded_ratio(rate: int, n_samples: int, sizes: list[int]) -> None:
    resampled = resample_in_pieces(noise(n_samples), rate=rate, sizes=sizes)
    assert len(resampled) == math.floor(n_samples * SAMPLE_RATE / rate + 0.5)
    assert resampled.dtype == np.float32


def test_a_tone_keeps_its_pitch_time_and_loudness() -> None:
    t_in, t_out = np.arange(48000) / 48000, np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 440 * t_in).astype(np.float32)
    resampled = resample_in_pieces(tone, rate=48000, sizes=[480])
    expected = np.sin(2 * np.pi * 440 * t_out)
    inner = slice(400, -400)  # the ends ring: the tone starts and stops there
    assert np.abs(resampled - expected)[inner].max() < 1e-4


def test_identity_at_16_khz() -> None:
    samples = noise(1000)
    resampler = Resampler(SAMPLE_RATE)
    assert resampler.push(samples) is samples
    assert len(resampler.finish()) == 0


@pytest.mark.parametrize(("rate", "limit_ms"), [(8000, 116), (22050, 80), (44100, 80), (48000, 80), (96000, 80)])
def test_lag_stays_below_what_is_documented(rate: int, limit_ms: float) -> None:
    resampler = Resampler(rate)
    n_in = n_out = 0
    worst_ms = 0.0
    for _ in range(300):
        n_in += rate // 100
        n_out += len(resampler.push(np.zeros(rate // 100, np.float32)))
        worst_ms = max(worst_ms, 1000 * (n_in / rate - n_out / SAMPLE_RATE))
    assert worst_ms < limit_ms


@pytest.mark.parametrize("rate", [-1, 0, 16, MIN_RATE - 1, MAX_RATE + 1])
def test_impossible_rates(rate: int) -> None:
    with pytest.raises(AudioError) as caught:
        Resampler(rate)
    assert str(caught.value) == (f"cannot use audio sampled at {rate} Hz: the rate must be between 1000 and 768000 Hz")


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44100])
def test_after_finish(rate: int) -> None:
    resampler = Resampler(rate)
    resampler.push(noise(100))
    resampler.finish()
    assert len(resampler.finish()) == 0
    with pytest.raises(RuntimeError, match="push after finish"):
        resampler.push(noise(1))
