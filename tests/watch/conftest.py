"""The embedded model, loaded once for the tests that run in this process, and what keeps these tests apart."""

from pathlib import Path

import pytest

from voxpipe import Transcriber, load


@pytest.fixture(scope="session")
def tiny() -> Transcriber:
    return load("tiny")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("watch"))  # one of them uses up the system's instances of inotify
