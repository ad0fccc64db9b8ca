"""Clients that are faster or slower than the model: neither fills the daemon's memory."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import wait_until
from tests.service.test_daemon import Served, serve
from voxpipe.service import sockets
from voxpipe.service.sockets import Outbox
from voxpipe.service.stream import BUFFER_S

MINUTE = bytes(60 * 32_000)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as daemon:
        yield daemon


def test_a_client_that_sends_faster_than_the_model_runs_has_to_wait(served: Served) -> None:
    with served.connect() as client:
        client.settimeout(None)

        def send() -> None:
            for _ in range(2):
                client.sendall(MINUTE)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        lags = []

        def is_decoded() -> bool:
            lags.extend(stream["lag_ms"] for stream in served.status()["streams"])
            return not sender.is_alive() and not served.status()["streams"]

        wait_until(is_decoded)
        sender.join()
        with client.makefile("rb") as lines:
            assert b'"audio_s":120.0' in lines.read().splitlines()[-1]
    assert 1_000 < max(lags) <= BUFFER_S * 1000


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "deaf.sock"

    async def serve_deaf() -> None:
        closed = asyncio.Event()

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            outbox = Outbox(asyncio.get_running_loop(), writer, on_stuck=lambda: sockets._cut_off(writer, "deaf"))
            for _ in range(100):
                outbox.write(bytes(1 << 16))
            while not writer.transport.is_closing():
                await asyncio.sleep(0)
            closed.set()

        server = await asyncio.start_unix_server(speak, path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            await asyncio.wait_for(closed.wait(), 60)
            received = 0
            while part := client.recv(1 << 16):
                received += len(part)
            assert received < 100 << 16
        server.close()

    asyncio.run(serve_deaf())
    assert caplog.messages == ["deaf does not read its events; it is cut off"]
