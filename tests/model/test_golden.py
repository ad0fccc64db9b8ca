"""voxpipe against what transformers made of a small random checkpoint (tests/parity/make_golden.py wrote it down).

The tolerances are those of the parity tests; 1e-5 and 1e-4 are usual.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxpipe
from tests.model import golden
from tests.model.offline import audio_embeds, load_network, logits, padded_mel, prompt
from tests.random_checkpoints import Floats, fingerprint, random_tensors, write_checkpoint
from voxpipe.model.voxtral import VoxtralRealtime


@pytest.fixture(scope="module")
def expected() -> Mapping[str, Any]:
    with np.load(golden.PATH) as file:
        return dict(file)


@pytest.fixture(scope="module")
def directory(expected: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = random_tensors(golden.SIZES, seed=golden.SEED)
    assert fingerprint(tensors) == str(expected["fingerprint"]), "the seed no longer gives the checkpoint of the file"
    return write_checkpoint(
        tmp_path_factory.mktemp("golden") / "model", "hugging-face", sizes=golden.SIZES, tensors=tensors
    )


@pytest.fixture(scope="module")
def network(directory: Path) -> VoxtralRealtime:
    return load_network(directory)


@pytest.fixture
def samples(expected: Mapping[str, Any]) -> Floats:
    return golden.samples(expected["pcm"])


def test_mel(expected: Mapping[str, Any], samples: Floats) -> None:
    np.testing.assert_allclose(padded_mel(samples, 6), expected["mel_480"], atol=5e-4, rtol=0)


def test_audio_embeds(expected: Mapping[str, Any], samples: Floats, network: VoxtralRealtime) -> None:
    got = np.array(audio_embeds(network, padded_mel(samples, 6)))
    assert 4 * len(got) > golden.SIZES.encoder_window
    np.testing.assert_allclose(got, expected["audio_embeds_480"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("delay_ms", golden.DELAYS_MS)
def test_logits(expected: Mapping[str, Any], samples: Floats, network: VoxtralRealtime, delay_ms: int) -> None:
    n_delay_tokens = delay_ms // 80
    embeds = audio_embeds(network, padded_mel(samples, n_delay_tokens))
    tokens = np.concatenate([prompt(n_delay_tokens), expected[f"tokens_{delay_ms}"]])
    assert len(tokens) > golden.SIZES.decoder_window
    got = logits(network, embeds, tokens, n_delay_tokens)
    np.testing.assert_allclose(got, expected[f"logits_{delay_ms}"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("delay_ms", golden.DELAYS_MS)
def test_tokens(expected: Mapping[str, Any], samples: Floats, directory: Path, delay_ms: int) -> None:
    """transformers samples one token less."""
    tokens = expected[f"tokens_{delay_ms}"].tolist()
    assert len(tokens) == 8 + 11 - 1
    assert len(set(tokens)) >= 5
    assert voxpipe.load(directory).generate(samples, transcription_delay_ms=delay_ms).tokens[:-1] == tokens
