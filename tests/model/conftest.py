"""One random network for the tests that only read it."""

import pytest

from tests.model.offline import load_network
from tests.random_checkpoints import AWKWARD, Tensors, random_tensors, write_checkpoint
from voxpipe.model.voxtral import VoxtralRealtime


@pytest.fixture(scope="session")
def tensors() -> Tensors:
    """Of the awkward sizes, under Mistral's names."""
    return random_tensors(AWKWARD, seed=0)


@pytest.fixture(scope="session")
def network(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> VoxtralRealtime:
    """The same tensors, loaded."""
    return load_network(write_checkpoint(tmp_path_factory.mktemp("model") / "awkward", "mistral", tensors=tensors))
