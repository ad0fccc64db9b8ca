"""`voxpipe top`, in a real terminal (a pseudo-terminal) beside a real daemon."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.clips import BEACH, s16le
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, run, wait_until
from tests.service.test_daemon import Served, serve
from voxpipe.cli.top import Rates
from voxpipe.errors import EX_OK, EX_UNAVAILABLE

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
ROWS, COLUMNS = 14, 110


class Terminal:
    """A terminal in which `voxpipe top` runs."""

    def __init__(self, *arguments: str, env: dict[str, str], stdin_too: bool = True) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.attributes = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [*COMMAND, "top", *arguments],
            stdin=theirs if stdin_too else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # Ctrl-C typed here is a signal there
        )
        self.output = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:
                return
            self.output += data

    def screen(self) -> str:
        """The text of the last whole picture."""
        pictures = self.output.decode(errors="replace").split("\x1b[H")
        return CONTROL.sub("", pictures[-2] if len(pictures) > 2 else "")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        status = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self._theirs) == self.attributes
        os.close(self._theirs)
        self._thread.join(PATIENCE_S)
        assert self.output.count(b"\x1b[?1049h") == self.output.count(b"\x1b[?1049l") == 1  # the screen as it was
        assert b"Traceback" not in self.output
        assert b"Aborted" not in self.output
        return status


@contextmanager
def top(*arguments: str, env: dict[str, str], **how: bool) -> Iterator[Terminal]:
    terminal = Terminal(*arguments, env=env, **how)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()


def test_streams_come_speak_and_go(seen: Served) -> None:
    seen.idle()
    with top("--interval", "0.1", env=seen.env) as terminal:
        wait_until(lambda: "no streams; pipe audio into" in terminal.screen())
        with live(env=seen.env) as client:
            client.write(s16le(BEACH)[:120_000])
            client.wait_for_words(7)
            wait_until(lambda: "still on the same beach" in terminal.screen(), terminal.screen)
            heading, *rest = terminal.screen().split("\n")
            assert "model tiny" in heading + rest[0]
            line = next(line for line in rest if line.startswith("stdin"))
            row = re.match(r"stdin +- +0:0\d +\d+ ms +\d+\.\d x +(.+)", line)
            assert row
            wait_until(lambda: row[1].strip() in client.text())  # the last words, as many as there is room for
            assert max(map(len, rest)) <= COLUMNS
            client.end_input()
            assert client.end() == EX_OK
        wait_until(lambda: "no streams" in terminal.screen(), terminal.screen)
        terminal.type(b"\x03")
        assert terminal.end() == EX_OK


@pytest.mark.parametrize("ending", [b"q", signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_left_as_it_was(seen: Served, ending: bytes | int) -> None:
    with top(env=seen.env, stdin_too=isinstance(ending, bytes)) as terminal:
        wait_until(lambda: b"model tiny" in terminal.output)
        if isinstance(ending, bytes):
            terminal.type(ending)
        else:
            terminal.process.send_signal(ending)
        assert terminal.end() == EX_OK


def test_a_daemon_that_goes_is_waited_for(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon, top("--interval", "0.1", env=daemon.env) as terminal:
        wait_until(lambda: "no streams" in terminal.screen())
        daemon.process.signal(signal.SIGKILL)
        wait_until(lambda: "waiting for it" in terminal.screen(), terminal.screen)
        terminal.type(b"\x03")
        assert terminal.end() == EX_OK


def test_one_table_where_there_is_no_terminal(seen: Served) -> None:
    seen.idle()
    with live(env=seen.env) as client:
        client.write(s16le(BEACH)[:120_000])
        client.wait_for_words(7)
        result = run("top", env={**seen.env, "COLUMNS": "120"})
        assert (result.status, result.stderr) == (EX_OK, "")
        assert b"\x1b" not in result.stdout
        assert "but i was still on the same" in result.stdout.decode()
        client.end_input()
        assert client.end() == EX_OK


def test_without_a_daemon() -> None:
    result = run("top", env=environment())
    assert (result.status, result.stdout) == (EX_UNAVAILABLE, b"")
    assert result.stderr == "voxpipe: no daemon answers at /nonexistent/voxpipe.sock; start one with: voxpipe serve\n"


def test_rates_are_of_the_last_readings() -> None:
    rates = Rates()
    for second in range(100):  # live at first, then twice as fast
        audio_s = second if second < 50 else 2 * second - 50
        stream = {"id": 7, "wall_s": float(second), "audio_s": float(audio_s)}
        now = rates.update({"pid": 1, "streams": [stream]})
        if second == 49:
            assert now == {7: pytest.approx(1.0)}
    assert now == {7: pytest.approx(2.0)}
    assert rates.update({"pid": 1, "streams": []}) == {}
    assert rates.update({"pid": 2, "streams": [{**stream, "wall_s": 1.0, "audio_s": 3.0}]}) == {7: pytest.approx(3.0)}
