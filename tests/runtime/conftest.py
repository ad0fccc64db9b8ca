"""Models that all tests of this folder share; none of them holds a stream."""

import pytest

from tests.random_checkpoints import Sizes, write_checkpoint
from tests.runtime.models import SMALL
from voxpipe import Transcriber, load

# windows of 3 and 20 tokens: shorter than the shortest prompt, let alone the stream
NARROW = Sizes(encoder_window=13, decoder_window=20, decoder_layers=2, vocab_size=200)


@pytest.fixture(scope="session")
def tiny() -> Transcriber:
    """The embedded model."""
    return load("tiny")


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    """Random weights of awkward sizes, with windows far shorter than any stream."""
    return load(write_checkpoint(tmp_path_factory.mktemp("narrow") / "model", sizes=NARROW, seed=3))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    """The fastest random weights."""
    return load(write_checkpoint(tmp_path_factory.mktemp("small") / "model", sizes=SMALL, seed=5))
