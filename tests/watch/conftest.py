"""The embedded model, loaded once for the tests that run in this process."""

import pytest

from voxpipe import Transcriber, load


@pytest.fixture(scope="session")
def tiny() -> Transcriber:
    return load("tiny")
