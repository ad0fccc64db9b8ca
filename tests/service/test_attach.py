"""`… | voxpipe` as a client, against a daemon that does what the test says: one that is slow, silent, or gone."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.clips import BEACH, s16le
from tests.cli.process import COMMAND, PATIENCE_S, Event, Live, environment, live, parse, wait_until
from voxpipe.errors import EX_NOINPUT, EX_OK, EX_UNAVAILABLE, UnavailableError
from voxpipe.service.attach import ask_status
from voxpipe.service.protocol import ChunkReader

READY = {"type": "ready", "v": 1, "model": "tiny", "delay_ms": 480}
START = {"type": "start", "stream": "stdin", "source": "-"}
DONE = {"type": "done", "stream": "stdin", "reason": "eof", "audio_s": 1.0, "wall_s": 1.0, "truncated": False}


class Daemon:
    """The other side of one attached pipe."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(PATIENCE_S)
        self.header = b""
        while not self.header.endswith(b"\n"):
            self.header += connection.recv(1)
        self._chunks = ChunkReader()

    def tell(self, *events: Event) -> None:
        for event in events:
            self.connection.sendall(json.dumps(event).encode() + b"\n")

    def take(self) -> list[bytes]:
        """Some of the chunks; none at their end."""
        while data := self.connection.recv(1 << 16):
            if chunks := list(self._chunks.push(data)):
                return chunks
        return []

    def take_all(self) -> list[bytes]:
        taken = []
        while chunks := self.take():
            taken += chunks
        return taken


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "voxpipe.sock"))
        listening.listen()
        listening.settimeout(PATIENCE_S)
        yield listening


@contextmanager
def attached(listening: socket.socket, *options: str) -> Iterator[tuple[Live, Daemon]]:
    env = environment(VOXPIPE_SOCKET=listening.getsockname(), VOXPIPE_MODEL=None)
    with live("--daemon", "require", *options, env=env) as pipe:
        connection, _ = listening.accept()
        with connection:
            yield pipe, Daemon(connection)


def write_what_is_taken(pipe: Live, data: bytes) -> int:
    """Write until nothing has been taken for a while; return how much was."""
    assert pipe.process.stdin is not None
    os.set_blocking(pipe.process.stdin.fileno(), False)
    n_written, last = 0, time.monotonic()
    while time.monotonic() < last + 0.2:
        if n := pipe.process.stdin.write(data[n_written:]):
            n_written, last = n_written + n, time.monotonic()
        time.sleep(0.005)
    assert 0 < n_written < len(data)
    return n_written


def test_a_flush_is_sent_at_once_though_no_audio_comes(listening: socket.socket) -> None:
    with attached(listening) as (pipe, daemon):
        for _ in range(3):
            pipe.signal(signal.SIGUSR1)
            assert daemon.take() == [b""]
        pipe.end_input()
        assert daemon.take_all() == []
        daemon.tell(READY, START, DONE)
        assert pipe.end() == EX_OK


def test_a_daemon_that_takes_no_audio_for_a_while_is_heard_and_flushed(listening: socket.socket) -> None:
    with attached(listening) as (pipe, daemon):
        # 1. more than a socket holds
        pcm = s16le(BEACH) * 20
        n_written = write_what_is_taken(pipe, pcm)
        # 2. its words are written all the same, and signals are obeyed in time
        daemon.tell(READY, START)
        pipe.wait_for("start")
        pipe.signal(signal.SIGUSR1)
        pipe.signal(signal.SIGUSR1)
        # 3. the flush comes between two chunks, which stay whole
        taken = []
        while b"" not in taken:
            taken += daemon.take()
        pipe.end_input()
        taken += daemon.take_all()
        assert b"".join(taken) == pcm[:n_written]
        daemon.tell(DONE)
        assert pipe.end() == EX_OK


def test_a_stop_sends_what_was_read_and_nothing_more(listening: socket.socket) -> None:
    with attached(listening) as (pipe, daemon):
        daemon.tell(READY, START)
        pipe.write(b"\1\2" * 1000)
        assert daemon.take() == [b"\1\2" * 1000]
        # 1. the pipe stays open
        pipe.signal(signal.SIGTERM)
        assert daemon.take_all() == []
        # 2. and the reason is ours
        daemon.tell(DONE)
        assert pipe.end() == EX_OK
        assert pipe.events == [READY, START, {**DONE, "reason": "signal"}]


def test_a_stop_while_the_daemon_takes_nothing(listening: socket.socket) -> None:
    with attached(listening) as (pipe, daemon):
        n_written = write_what_is_taken(pipe, s16le(BEACH) * 20)
        daemon.tell(READY, START)
        pipe.wait_for("start")
        pipe.signal(signal.SIGINT)
        assert 0 < len(b"".join(daemon.take_all())) <= n_written
        daemon.tell(DONE)
        assert pipe.end() == EX_OK


def test_the_end_without_the_daemon_has_all_keys(listening: socket.socket) -> None:
    with attached(listening, "--heartbeat", "1") as (pipe, daemon):
        daemon.tell(READY, START, {"type": "heartbeat", "stream": "stdin", "audio_s": 2.5, "lag_ms": 0})
        pipe.wait_for("heartbeat")
        daemon.connection.sendall(b'{"type":"delta","str')
        daemon.connection.close()
        assert pipe.end() == EX_UNAVAILABLE
        error, done = pipe.events[-2:]
        assert (error["type"], error["code"]) == ("error", "unavailable")
        assert list(done) == list(DONE)
        assert 0 < done["wall_s"] < PATIENCE_S
        assert (done["reason"], done["audio_s"]) == ("error", 2.5)


def test_input_that_cannot_be_read_ends_as_it_does_alone(listening: socket.socket, tmp_path: Path) -> None:
    env = environment(VOXPIPE_SOCKET=listening.getsockname(), VOXPIPE_MODEL=None)
    with open(tmp_path / "written", "wb") as write_only:
        pipe = subprocess.Popen(
            [*COMMAND, "--daemon", "require"],
            stdin=write_only,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
    connection, _ = listening.accept()
    with connection:
        daemon = Daemon(connection)
        assert daemon.take_all() == []
        daemon.tell(READY, START, DONE)
        stdout, stderr = pipe.communicate(timeout=PATIENCE_S)
    assert (pipe.returncode, stderr) == (EX_NOINPUT, b"voxpipe: cannot read standard input: Bad file descriptor\n")
    assert parse(stdout)[-2]["code"] == "input"
    assert parse(stdout)[-1] == {**DONE, "reason": "error"}


def test_a_daemon_that_does_not_answer_is_told_from_none(listening: socket.socket, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"is there, but has not answered for 0\.05 s; if it was started a moment ago"
    ):
        ask_status(Path(listening.getsockname()), timeout_s=0.05)
    with pytest.raises(UnavailableError, match=r"no daemon answers at .*/none; start one with: voxpipe serve"):
        ask_status(tmp_path / "none")


def test_the_status_is_asked_for_beside_the_stream(listening: socket.socket) -> None:
    with attached(listening) as (pipe, daemon):
        # 1. the daemon does not answer at first
        pipe.signal(signal.SIGUSR2)
        asked, _ = listening.accept()
        # 2. the stream goes on
        daemon.tell(READY, START, DONE)
        assert pipe.end() == EX_OK
        asked.close()
        wait_until(lambda: pipe.process.poll() is not None)
