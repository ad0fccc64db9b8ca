"""voxpipe against transformers and mlx-audio: the same random weights, float32, windows shorter than the sequence.

Tolerances: float32 through a few layers in another order of operations; the log-mel's is larger because the peers
compute it in float32, where the logarithm of a quiet bin magnifies rounding.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import voxpipe
from tests.model.offline import audio_embeds, greedy_tokens, load_network, logits, padded_mel, prompt
from tests.model.reference import Reference
from tests.parity.peers import MlxAudio, Peer, Transformers
from tests.random_checkpoints import AWKWARD, LAYOUTS, Sizes, random_audio, random_tensors, write_checkpoint

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # the peers' warnings are not ours

MEL_TOLERANCE = 5e-4
AUDIO_EMBEDS_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3
SEEDS = range(5)
DELAYS_MS = (80, 480, 2_400)
PEERS: dict[str, tuple[Callable[[Path], Peer], str]] = {
    "transformers": (Transformers, "hugging-face"),
    "mlx-audio": (MlxAudio, "mlx-audio"),
}


def sizes_for(peer: str, delay_ms: int) -> Sizes:
    """Windows that the peer gets right; they stay shorter than the sequence.

    mlx-audio builds the mask of the prompt wrongly where the decoder's window is less than twice as long. Its `generate`
    cuts the encoder's output into windows and loses the frames of each that do not fill a token, two of every 750.
    """
    if peer == "mlx-audio":
        return replace(AWKWARD, encoder_window=20, decoder_window=2 * len(prompt(delay_ms // 80)))
    return AWKWARD


def samples_for(peer: str, delay_ms: int, seed: int) -> np.ndarray:
    """Longer than both windows with its padding, and no whole number of tokens."""
    n_prompt = len(prompt(delay_ms // 80))
    n_tokens = n_prompt + 14 if peer == "mlx-audio" else 25
    return random_audio(1_280 * n_tokens + 137 * seed + 1, seed=seed)


@pytest.fixture(params=PEERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def peer_and_directory(name: str, sizes: Sizes, seed: int, tmp_path: Path) -> tuple[Peer, Path]:
    make, layout = PEERS[name]
    directory = write_checkpoint(tmp_path / f"{name}-{seed}", layout, sizes=sizes, seed=seed)
    return make(directory), directory


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers(name: str, seed: int, tmp_path: Path) -> None:
    """Mel, audio embeddings, and logits over the same tokens."""
    delay_ms = DELAYS_MS[seed % 3]
    n_delay_tokens = delay_ms // 80
    sizes = sizes_for(name, delay_ms)
    peer, directory = peer_and_directory(name, sizes, seed, tmp_path)
    network = load_network(directory)
    samples = samples_for(name, delay_ms, seed)

    mel, expected_mel = padded_mel(samples, n_delay_tokens), peer.mel(samples, n_delay_tokens)
    assert mel.shape == expected_mel.shape
    n_tokens = len(mel) // 8
    assert n_tokens > sizes.decoder_window
    assert 4 * n_tokens > sizes.encoder_window

    embeds, expected_embeds = audio_embeds(network, mel), peer.audio_embeds(mel)
    tokens = np.concatenate([prompt(n_delay_tokens), np.arange(n_tokens) * (17 + seed) % sizes.vocab_size])[:n_tokens]
    got, expected = logits(network, embeds, tokens, n_delay_tokens), peer.logits(mel, tokens, n_delay_tokens)
    assert got.shape == expected.shape == (n_tokens, sizes.vocab_size)

    differences = {
        "mel": np.abs(mel - expected_mel).max(),
        "audio embeddings": np.abs(np.array(embeds) - expected_embeds).max(),
        "logits": np.abs(got - expected).max(),
    }
    print(f"{name} seed {seed} delay {delay_ms}:", ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))
    assert differences["mel"] <= MEL_TOLERANCE
    assert differences["audio embeddings"] <= AUDIO_EMBEDS_TOLERANCE
    assert differences["logits"] <= LOGITS_TOLERANCE
    assert (got.argmax(axis=-1) == expected.argmax(axis=-1)).all()


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
@pytest.mark.parametrize("seed", SEEDS)
def test_tokens(name: str, seed: int, delay_ms: int, tmp_path: Path) -> None:
    """`generate`, from samples to ids, on both sides."""
    peer, directory = peer_and_directory(name, sizes_for(name, delay_ms), seed, tmp_path)
    samples = samples_for(name, delay_ms, seed)
    expected = peer.generate(samples, delay_ms)
    got = voxpipe.load(directory).generate(samples, transcription_delay_ms=delay_ms).tokens
    assert len(set(expected)) >= 5  # not the same token over and over
    n_tokens = -(-len(samples) // 1_280) + 11
    assert len(got) == n_tokens
    # transformers stops one token earlier, at as many ids as there are audio embeddings
    assert len(expected) == n_tokens - (name == "transformers")
    assert got[: len(expected)] == expected
    print(f"{name} seed {seed} delay {delay_ms}: {len(expected)} tokens, {len(set(expected))} different")


def test_delays_and_windows_sway_the_peers_too(name: str, tmp_path: Path) -> None:
    """Otherwise equal tokens would say nothing about them."""
    samples = samples_for(name, 480, 0)
    sizes = sizes_for(name, 480)
    plain = peer_and_directory(name, sizes, 0, tmp_path / "plain")[0]
    expected = plain.generate(samples, 480)
    assert plain.generate(samples[::-1].copy(), 480) != expected
    mel = plain.mel(samples, 6)
    tokens = np.arange(len(mel) // 8) % sizes.vocab_size
    assert np.abs(plain.logits(mel, tokens, 6) - plain.logits(mel, tokens, 5)).max() > 1.0
    for number, change in enumerate(
        ({"encoder_window": sizes.encoder_window + 4}, {"decoder_window": sizes.decoder_window + 1})
    ):
        other = peer_and_directory(name, replace(sizes, **change), 0, tmp_path / str(number))[0]
        assert np.abs(plain.logits(mel, tokens, 6) - other.logits(mel, tokens, 6)).max() > 0.1


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    """Its own file, with whatever names and configuration this release writes."""
    sizes, samples = AWKWARD, random_audio(20_011)
    written = write_checkpoint(tmp_path / "written", "hugging-face", sizes=sizes)
    saved = tmp_path / "saved"
    Transformers(written).model.save_pretrained(saved)
    (saved / "tekken.json").write_text((written / "tekken.json").read_text())
    print("saved keys:", sorted(json.loads((saved / "config.json").read_text())["text_config"]))
    assert greedy_tokens(load_network(saved), samples, 480) == greedy_tokens(load_network(written), samples, 480)


def test_layouts_give_the_same_tokens_through_generate(tmp_path: Path) -> None:
    tensors, samples = random_tensors(seed=6), random_audio(23_456, seed=6)
    results = [
        voxpipe.load(write_checkpoint(tmp_path / layout, layout, tensors=tensors)).generate(samples).tokens
        for layout in LAYOUTS
    ]
    assert all(result == results[0] for result in results)
    assert len(set(results[0])) >= 5


def test_our_reference_is_theirs(tmp_path: Path) -> None:
    """The float64 reference of tests/model, which stands in for the peers where they are not installed."""
    tensors, samples = random_tensors(seed=7), random_audio(12_345, seed=7)
    peer = Transformers(write_checkpoint(tmp_path / "model", "hugging-face", tensors=tensors))
    reference, mel = Reference(tensors, AWKWARD), padded_mel(samples, 6)
    tokens = np.arange(len(mel) // 8) * 7 % AWKWARD.vocab_size
    embeds = reference.audio_embeds(mel)
    assert np.abs(embeds - peer.audio_embeds(mel)).max() <= AUDIO_EMBEDS_TOLERANCE
    assert np.abs(reference.logits(embeds, tokens, 6) - peer.logits(mel, tokens, 6)).max() <= LOGITS_TOLERANCE
