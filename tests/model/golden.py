"""What the golden file holds, for the script that makes it and the test that reads it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.random_checkpoints import Floats, Sizes, random_audio

PATH = Path(__file__).parents[1] / "data" / "golden" / "transformers.npz"
SEED = 11
DELAYS_MS = (80, 480, 2_400)
SIZES = Sizes(
    encoder_dim=16,
    encoder_layers=2,
    encoder_heads=3,
    encoder_head_dim=8,
    encoder_hidden=28,
    encoder_window=18,
    decoder_dim=20,
    decoder_layers=2,
    decoder_heads=4,
    decoder_kv_heads=2,
    decoder_head_dim=6,
    decoder_hidden=36,
    decoder_window=26,
    vocab_size=64,
)


def pcm() -> NDArray[np.int16]:
    """0.6 s; stored in the file, because sines are not the same to the last bit everywhere."""
    return (random_audio(9_601, seed=SEED) * 32_767).astype(np.int16)


def samples(stored: NDArray[np.int16]) -> Floats:
    return (stored / 32_768).astype(np.float32)
