"""The decoder: step equals whole equals the float64 reference; the delay; batches of streams that stand apart."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.model.offline import greedy_tokens, load_network, logits
from tests.model.reference import Reference
from tests.random_checkpoints import AWKWARD, Floats, Tensors, Uniform, random_audio, write_checkpoint
from voxpipe.model.decoder import time_embedding
from voxpipe.model.voxtral import VoxtralRealtime

TOLERANCE = 2e-4  # float32 against float64 of logits up to 30; 3e-5 is usual
LENGTH = 75  # 2.5 windows


def inputs(seed: int, length: int = LENGTH) -> tuple[mx.array, NDArray[np.int64]]:
    """Audio embeddings (T, dim) and the token before each."""
    uniform = Uniform(seed)
    embeds = mx.array(uniform(length, AWKWARD.decoder_dim, std=1.5))
    tokens = (np.abs(uniform(length)) * 1e6).astype(np.int64) % AWKWARD.vocab_size
    return embeds, tokens


@pytest.fixture(scope="module")
def expected(tensors: Tensors) -> Floats:
    embeds, tokens = inputs(1)
    return Reference(tensors, AWKWARD).logits(np.array(embeds), tokens, 6).astype(np.float32)


TIME_INDICES = [0, 1, 768, 1535, 1536, 1537, 2304, 3071]


@pytest.mark.parametrize(
    ("n_delay_tokens", "values", "total"),
    [
        (6, [0.960170, 0.949532, 0.998201, 1.000000, -0.279415, -0.313670, 0.059964, 0.000604], 1366.915931),
        (30, [0.154251, -0.024479, 0.955336, 0.999995, -0.988032, -0.999700, 0.295520, 0.003018], 1126.900286),
    ],
)
def test_time_embedding(n_delay_tokens: int, values: list[float], total: float) -> None:
    t = np.array(time_embedding(n_delay_tokens, 3_072))
    assert t.dtype == np.float32
    assert t[TIME_INDICES] == pytest.approx(values, abs=1e-6)
    assert t.astype(np.float64).sum() == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("n_delay_tokens", [1, 6, 30])
def test_delay_scales(network: VoxtralRealtime, tensors: Tensors, n_delay_tokens: int) -> None:
    scales = np.array(network.delay_scales(n_delay_tokens))
    assert scales.shape == (AWKWARD.decoder_layers, AWKWARD.decoder_dim)
    reference = Reference(tensors, AWKWARD)
    for layer in range(AWKWARD.decoder_layers):
        expected = reference.delay_scale(layer, n_delay_tokens)
        np.testing.assert_allclose(scales[layer], expected, atol=2e-6)


@pytest.mark.parametrize("chunk", range(1, 17))
def test_step_equals_whole(network: VoxtralRealtime, expected: Floats, chunk: int) -> None:
    embeds, tokens = inputs(1)
    np.testing.assert_allclose(logits(network, embeds, tokens, 6, chunk=chunk), expected, atol=TOLERANCE)


@pytest.mark.parametrize("n_delay_tokens", [1, 7, 30])
def test_delay_is_obeyed(network: VoxtralRealtime, tensors: Tensors, expected: Floats, n_delay_tokens: int) -> None:
    embeds, tokens = inputs(1)
    got = logits(network, embeds, tokens, n_delay_tokens)
    reference = Reference(tensors, AWKWARD).logits(np.array(embeds), tokens, n_delay_tokens)
    np.testing.assert_allclose(got, reference, atol=TOLERANCE)
    assert np.abs(got - expected).max() > 1.0  # so the test would see it


@pytest.mark.parametrize("window", [1, 2, 29, 31])
def test_window_is_obeyed(tensors: Tensors, expected: Floats, window: int, tmp_path: Path) -> None:
    sizes = replace(AWKWARD, decoder_window=window)
    other = load_network(write_checkpoint(tmp_path / "model", "mistral", sizes=sizes, tensors=tensors))
    embeds, tokens = inputs(1)
    got = logits(other, embeds, tokens, 6, chunk=7)
    reference = Reference(tensors, sizes).logits(np.array(embeds), tokens, 6)
    np.testing.assert_allclose(got, reference, atol=TOLERANCE)
    assert np.abs(got - expected).max() > 0.1


@pytest.mark.parametrize("first_token", [8_192, 10_000_000])
def test_position_changes_nothing(network: VoxtralRealtime, expected: Floats, first_token: int) -> None:
    embeds, tokens = inputs(1)
    got = logits(network, embeds, tokens, 6, first_token=first_token)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_decode_returns_every_position(network: VoxtralRealtime, expected: Floats) -> None:
    embeds, tokens = inputs(1)
    state = network.make_state(6)
    for start, stop in ((0, 32), (32, 39), (39, 40), (40, 41)):
        got = network.decode([embeds[start:stop]], [tokens[start:stop].tolist()], [state])
        assert got.shape == (stop - start, AWKWARD.vocab_size)
        np.testing.assert_allclose(np.array(got), expected[start:stop], atol=TOLERANCE)


@pytest.mark.parametrize("sizes", [(5, 5, 5), (1, 4, 2), (3, 1, 1)])
def test_batch_of_different_delays_equals_each_alone(network: VoxtralRealtime, sizes: tuple[int, ...]) -> None:
    delays = (1, 6, 30)
    streams = [inputs(seed) for seed in (1, 2, 3)]
    states = [network.make_state(delay) for delay in delays]
    alone = [logits(network, *stream, delay) for stream, delay in zip(streams, delays, strict=True)]
    for call in range(LENGTH // max(sizes)):
        spans = [slice(n * call, n * (call + 1)) for n in sizes]
        embeds = [embeds[span] for (embeds, _), span in zip(streams, spans, strict=True)]
        tokens = [tokens[span].tolist() for (_, tokens), span in zip(streams, spans, strict=True)]
        got = np.array(network.decode(embeds, tokens, states))
        expected = np.concatenate([part[span] for part, span in zip(alone, spans, strict=True)])
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_batch_of_unequal_lengths_equals_each_alone(network: VoxtralRealtime) -> None:
    """The second stream begins 37 steps after the first, past the first one's window."""
    first, second = inputs(4), inputs(5)
    expected = [logits(network, *stream, 6) for stream in (first, second)]
    states, late = [network.make_state(6), network.make_state(6)], 37
    for step in range(LENGTH):
        at = [step] if step < late else [step, step - late]
        streams = list(zip((first, second), at, strict=False))
        got = network.decode(
            [embeds[i : i + 1] for (embeds, _), i in streams],
            [[int(tokens[i])] for (_, tokens), i in streams],
            states[: len(at)],
        )
        np.testing.assert_allclose(np.array(got), [expected[row][i] for row, i in enumerate(at)], atol=TOLERANCE)
    assert [state.decoder.length for state in states] == [LENGTH, LENGTH - late]


def test_every_tensor_matters(tensors: Tensors, expected: Floats) -> None:
    embeds, tokens = inputs(1)
    for name in tensors:
        if name.startswith(("layers.", "norm.")) or "tok_embeddings" in name:
            changed = Reference({**tensors, name: tensors[name] * np.float32(1.1)}, AWKWARD)
            assert np.abs(changed.logits(np.array(embeds), tokens, 6) - expected).max() > 100 * TOLERANCE, name


def test_tokens_depend_on_audio_delay_and_windows(network: VoxtralRealtime, tensors: Tensors, tmp_path: Path) -> None:
    """A random checkpoint that repeats itself whatever it hears would prove nothing anywhere."""
    samples = random_audio(20_011)
    plain = greedy_tokens(network, samples, 480)
    assert len(plain) == 16 + 17 - 7 + 1
    assert len(set(plain)) > 8
    assert greedy_tokens(network, random_audio(20_011, seed=1), 480) != plain
    assert greedy_tokens(network, samples, 560)[: len(plain)] != plain
    for number, change in enumerate(({"encoder_window": 21}, {"decoder_window": 29})):
        sizes = replace(AWKWARD, **change)
        other = load_network(write_checkpoint(tmp_path / str(number), "mistral", sizes=sizes, tensors=tensors))
        assert greedy_tokens(other, samples, 480) != plain


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_low_precision_is_near(tensors: Tensors, expected: Floats, dtype: mx.Dtype, tmp_path: Path) -> None:
    low = load_network(write_checkpoint(tmp_path / "model", "mistral", tensors=tensors), dtype=dtype)
    embeds, tokens = inputs(1)
    got = logits(low, embeds.astype(dtype), tokens, 6)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < (0.1 if dtype == mx.bfloat16 else 0.01)
