"""One daemon for all tests that look at one, and one browser."""

import socket
from collections.abc import Iterator

import pytest

from tests.seeing.browser import CHROMIUM, Browser, chromium
from tests.service.test_daemon import Served, serve


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon whose metrics can be had, at `127.0.0.1:PORT` and in voxpipe.prom beside its settings."""
    directory = tmp_path_factory.mktemp("seen")
    settings = (
        f'metrics = "127.0.0.1:{free_port()}"\nmetrics_file = "{directory}/voxpipe.prom"\nmetrics_file_every_s = 1\n'
    )
    with serve(directory, f"{settings}max_streams = 3\n") as daemon:
        yield daemon


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with chromium(tmp_path_factory.mktemp("profile")) as one:
        yield one
