"""The encoder: step equals whole equals the float64 reference, with a window shorter than the sequence."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.offline import audio_embeds, load_network, padded_mel
from tests.model.reference import Reference
from tests.random_checkpoints import AWKWARD, Floats, Tensors, random_audio, random_tensors, write_checkpoint
from voxpipe.model.voxtral import VoxtralRealtime

TOLERANCE = 5e-5  # float32 against float64 through two layers and the adapter, of values up to 6; 5e-6 is usual


@pytest.fixture(scope="module")
def mel() -> Floats:
    """56 tokens, 10 times the window."""
    return padded_mel(random_audio(9_601), 5)


@pytest.fixture(scope="module")
def expected(tensors: Tensors, mel: Floats) -> Floats:
    return Reference(tensors, AWKWARD).audio_embeds(mel).astype(np.float32)


@pytest.mark.parametrize("group", range(1, 17))
def test_step_equals_whole(network: VoxtralRealtime, mel: Floats, expected: Floats, group: int) -> None:
    np.testing.assert_allclose(np.array(audio_embeds(network, mel, group=group)), expected, atol=TOLERANCE)


def test_groups_of_changing_size(network: VoxtralRealtime, mel: Floats, expected: Floats) -> None:
    state, start, parts = network.make_state(6), 0, []
    for n_tokens in (1, 16, 2, 3, 16, 1, 1, 9):
        parts += network.encode([(state, mel[8 * start : 8 * (start + n_tokens)])])
        start += n_tokens
    got = np.array(mx.concatenate(parts))
    np.testing.assert_allclose(got, expected[:start], atol=TOLERANCE)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 5, 2), (16, 1, 7)])
def test_batch_equals_each_alone(network: VoxtralRealtime, sizes: tuple[int, ...]) -> None:
    """Whatever number of tokens each stream brings to a call."""
    mels = [padded_mel(random_audio(5_000, seed=seed), 1) for seed in range(3)]
    states = [network.make_state(1) for _ in mels]
    parts: list[list[mx.array]] = [[] for _ in mels]
    for call in range(len(mels[0]) // (8 * max(sizes))):
        pieces = [
            (state, mel[8 * n * call : 8 * n * (call + 1)]) for state, mel, n in zip(states, mels, sizes, strict=True)
        ]
        for part, embeds in zip(parts, network.encode(pieces), strict=True):
            part.append(embeds)
    for part, mel in zip(parts, mels, strict=True):
        together = np.array(mx.concatenate(part))
        alone = np.array(audio_embeds(network, mel))[: len(together)]
        np.testing.assert_allclose(together, alone, atol=TOLERANCE)


@pytest.mark.parametrize("window", [1, 4, 5, 21, 23])
def test_window_is_obeyed(tensors: Tensors, mel: Floats, expected: Floats, window: int, tmp_path: Path) -> None:
    sizes = replace(AWKWARD, encoder_window=window)
    other = load_network(write_checkpoint(tmp_path / "model", "mistral", sizes=sizes, tensors=tensors))
    got = np.array(audio_embeds(other, mel))
    np.testing.assert_allclose(got, Reference(tensors, sizes).audio_embeds(mel), atol=TOLERANCE)
    assert np.abs(got - expected).max() > 0.01  # so the test would see it


def test_window_counts_the_query_itself(tmp_path: Path) -> None:
    """With one layer, a click in the last mel frame of a token is seen for exactly a window of encoder frames."""
    window = 9  # frames j .. j + 8: tokens 10, 11 and the first frame of 12
    sizes = replace(AWKWARD, encoder_layers=1, encoder_window=window)
    network = load_network(write_checkpoint(tmp_path / "model", "mistral", sizes=sizes))
    quiet = np.full((8 * 20, 128), -0.625, np.float32)
    click = quiet.copy()
    click[8 * 10 + 0] = 1.0  # convolutions spread it over mel frames 80..82, encoder frames 40 and 41
    difference = np.abs(np.array(audio_embeds(network, click)) - np.array(audio_embeds(network, quiet))).max(axis=-1)
    assert (difference[:10] == 0.0).all()  # causal
    last_token = (41 + window - 1) // 4
    assert (difference[10 : last_token + 1] > 1e-4).all()
    assert (difference[last_token + 1 :] < 1e-5).all()


@pytest.mark.parametrize("first_token", [1_000, 10_000_000])
def test_position_changes_nothing(network: VoxtralRealtime, mel: Floats, expected: Floats, first_token: int) -> None:
    state = network.make_state(6, first_token=first_token)
    parts = [network.encode([(state, mel[i : i + 56])])[0] for i in range(0, len(mel), 56)]
    np.testing.assert_allclose(np.array(mx.concatenate(parts)), expected, atol=TOLERANCE)


def test_weights_hold_no_stream_state(network: VoxtralRealtime, mel: Floats, expected: Floats) -> None:
    """Two streams through one network, turn by turn."""
    first, second = network.make_state(6), network.make_state(6)
    other = padded_mel(random_audio(9_601, seed=3), 5)
    parts = []
    for start in range(0, len(mel), 32):
        parts += network.encode([(first, mel[start : start + 32])])
        network.encode([(second, other[start : start + 32])])
    np.testing.assert_allclose(np.array(mx.concatenate(parts)), expected, atol=TOLERANCE)


def test_every_tensor_matters(tensors: Tensors, mel: Floats, tmp_path: Path) -> None:
    """Otherwise the other tests could not see a wrong one."""
    reference = Reference(random_tensors(AWKWARD, seed=0), AWKWARD)
    short = mel[: 8 * 34]
    plain = reference.audio_embeds(short)
    for name in tensors:
        if not name.startswith("mm_streams_embeddings") or "tok_embeddings" in name:
            continue
        changed = Reference({**tensors, name: tensors[name] * np.float32(1.1)}, AWKWARD).audio_embeds(short)
        assert np.abs(changed - plain).max() > 100 * TOLERANCE, name
