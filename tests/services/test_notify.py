"""What a service manager hears from a real daemon, on a real datagram socket."""

import signal
import socket
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.process import PATIENCE_S, environment, live
from voxpipe.errors import EX_CONFIG, EX_OK

Message = dict[str, str]


class Manager:
    """Reads what it is told, as systemd does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE_S)

    def hear(self) -> Message:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def wait_for(self, name: str) -> list[Message]:
        """Messages up to the first with this field."""
        heard = [self.hear()]
        while name not in heard[-1]:
            heard.append(self.hear())
        return heard

    def is_silent(self) -> bool:
        self._socket.setblocking(False)
        try:
            return not self._socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_S)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and not sys.platform.startswith("linux"):
        pytest.skip("abstract socket names are Linux's")
    manager = Manager(f"@{tmp_path}/notify" if request.param == "abstract" else str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_hears_of_start_life_reload_and_end(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n')
    env = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="900000", WATCHDOG_PID=None)
    with live("serve", "--config", config, env=env) as voxpipe:
        # 1. while it loads it asks for time, and it is not ready before the model is
        before = manager.wait_for("READY")
        assert int(before[0]["EXTEND_TIMEOUT_USEC"]) >= 60e6
        assert "loading" in before[0]["STATUS"]
        assert "tiny" in before[-1]["STATUS"]
        voxpipe.wait_for("ready")
        # 2. then it gives signs of life well within the watchdog's time, and says what it does
        times = []
        for _ in range(4):
            alive = manager.wait_for("WATCHDOG")[-1]
            times.append(time.monotonic())
            assert alive["STATUS"] == "0 streams, model tiny"
        assert max(late - early for early, late in pairwise(times)) < 0.9
        # 3. a process that stands still gives none
        voxpipe.signal(signal.SIGSTOP)
        time.sleep(0.1)
        while not manager.is_silent():
            pass
        time.sleep(0.5)
        assert manager.is_silent()
        voxpipe.signal(signal.SIGCONT)
        manager.wait_for("WATCHDOG")
        # 4. it announces that it reloads, on the clock that systemd compares with, and that it has
        asked_at = time.monotonic_ns() // 1000
        voxpipe.signal(signal.SIGHUP)
        reloading = manager.wait_for("RELOADING")[-1]
        assert int(reloading["MONOTONIC_USEC"]) >= asked_at
        manager.wait_for("READY")
        # 5. and that it ends
        voxpipe.signal(signal.SIGTERM)
        manager.wait_for("STOPPING")
        assert voxpipe.end() == EX_OK


def test_a_broken_configuration_is_never_ready(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text("delay_ms = 77\n")
    with live("serve", "--config", config, env=environment(NOTIFY_SOCKET=manager.address)) as voxpipe:
        assert voxpipe.end() == EX_CONFIG
        assert f"{config}, line 1: delay_ms" in voxpipe.stderr
        assert voxpipe.stderr.count("\n") == 1
    assert manager.is_silent()


def test_a_watchdog_of_another_process_is_not_ours(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n')
    env = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="300000", WATCHDOG_PID="1")
    with live("serve", "--config", config, env=env) as voxpipe:
        manager.wait_for("READY")
        time.sleep(0.5)
        voxpipe.signal(signal.SIGTERM)
        assert all("WATCHDOG" not in message for message in manager.wait_for("STOPPING"))
        assert voxpipe.end() == EX_OK
