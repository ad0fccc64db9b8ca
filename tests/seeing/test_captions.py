"""The captions' server, without a browser: what goes through, who may read, and who is not waited for."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, run, shell
from tests.service.test_daemon import Served, serve
from voxpipe.captions.board import MAX_BEHIND, MAX_ENDED, MAX_LIVE, MAX_TEXT, Board
from voxpipe.captions.feed import DaemonFeed
from voxpipe.captions.server import read_token
from voxpipe.errors import EX_CANTCREAT, EX_NOINPUT, EX_OK, EX_UNAVAILABLE, EX_USAGE
from voxpipe.service.attach import connect

Message = dict[str, Any]
START = {"type": "start", "stream": "one", "source": "-"}


class Captions:
    """`voxpipe captions` at work."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
    ) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "captions", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**(env or environment()), "XDG_STATE_HOME": str(directory)},
        )
        assert self.process.stderr is not None
        first = self.process.stderr.readline().decode()
        assert first.startswith("voxpipe: captions at http://127.0.0.1:"), first
        self.url = first.split()[-1]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Ask for what is below the address, or, beginning with /, beside it."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("GET", path if path.startswith("/") else urlsplit(self.url).path + path, headers=headers)
            answer = connection.getresponse()
            self.headers = dict(answer.getheaders())
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def write(self, *events: object) -> None:
        assert self.process.stdin is not None
        for event in events:
            line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
            self.process.stdin.write(line)
        self.process.stdin.flush()

    def say(self, stream: str, text: str) -> None:
        self.write({"type": "delta", "stream": stream, "seq": 1, "text": text, "start": 0.0, "end": 0.5})

    def end(self) -> tuple[int, bytes, str]:
        """Close its input; return status, stdout and the rest of stderr."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, stdout, stderr.decode()


@contextmanager
def captions(directory: Path, *arguments: str, **how: Any) -> Iterator[Captions]:
    one = Captions(directory, "--listen", "127.0.0.1:0", *arguments, **how)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        for file in (one.process.stdin, one.process.stdout, one.process.stderr):
            if file is not None:
                file.close()


class Viewer:
    """A page, without a browser."""

    def __init__(self, captions: Captions, query: str = "") -> None:
        self._connection = http.client.HTTPConnection(*captions.address, timeout=60)
        self._connection.request("GET", urlsplit(captions.url).path + "events" + query)
        self._answer = self._connection.getresponse()
        assert self._answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"

    def next(self) -> Message | None:
        """The next message; None at the end."""
        while line := self._answer.readline():
            if line.startswith(b"data: "):
                message: Message = json.loads(line[6:])
                return message
        return None

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def test_lines_are_shown_and_passed_on(tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        viewer = Viewer(process)
        assert viewer.next() == {"type": "snapshot", "live": True, "streams": []}
        lines = [
            {"type": "ready", "v": 1, "model": "tiny", "delay_ms": 480},
            START,
            {"type": "delta", "stream": "one", "seq": 1, "text": " é", "start": 0.1, "end": 0.4},
            {"type": "done", "stream": "one", "reason": "eof"},
        ]
        assert process.process.stdout is not None
        process.write(lines[0])
        first = process.process.stdout.readline()  # at once
        process.write(*lines[1:])
        start, delta, done = (viewer.next() for _ in range(3))
        assert start is not None
        assert (start["type"], start["stream"]) == ("start", "one")
        assert delta == {"type": "delta", "id": start["id"], "text": " é", "start": 0.1, "end": 0.4}
        assert done == {"type": "done", "id": start["id"]}
        status, stdout, stderr = process.end()
        assert (status, stderr) == (EX_OK, "")
        assert first + stdout == b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        # whoever watches is told that it is over
        assert [viewer.next(), viewer.next()] == [{"type": "feed", "live": False}, None]
        viewer.close()


def test_what_is_no_event_passes_too_and_is_told_once(tmp_path: Path) -> None:
    garbage = [b"no event\n", b"[1, 2]\n", b'{"type": "delta", "stream": 7}\n', b"\xff\x00\n", b"[" * 100_000 + b"\n"]
    with captions(tmp_path, "-") as process:
        process.write(*garbage, START, b"no end")
        status, stdout, stderr = process.end()
        assert (status, stdout) == (EX_OK, b"".join(garbage) + json.dumps(START).encode() + b"\nno end")
        assert stderr.count("\n") == 1
        assert "… | voxpipe | voxpipe captions -" in stderr


def test_the_whole_pipe(tmp_path: Path) -> None:
    script = 'voxpipe < "$1" | voxpipe captions - --listen 127.0.0.1:0 | cat'
    result = shell(script, BEACH, env={**environment(), "XDG_STATE_HOME": str(tmp_path)})
    assert result.status == EX_OK
    assert words(result.text) == said(BEACH)
    assert result.stderr.count("\n") == 1


def test_who_comes_late_gets_a_snapshot_of_the_streams_asked_for(tmp_path: Path) -> None:
    with captions(tmp_path, "-", "--stream", "one", "--stream", "two") as process:
        first = Viewer(process)
        assert first.next() is not None
        for name in ("one", "two", "three"):
            process.write({**START, "stream": name})
            process.say(name, f" word of {name}")
        process.say("one", " and the last")
        while (message := first.next()) is not None and message.get("text") != " and the last":
            pass
        texts = {"": ["one", "two"], "?stream=two": ["two"], "?stream=three": [], "?stream=none": []}
        for query, names in texts.items():
            late = Viewer(process, query)
            snapshot = late.next()
            assert snapshot is not None
            assert [one["stream"] for one in snapshot["streams"]] == names
            assert all(one["text"].startswith(f" word of {one['stream']}") for one in snapshot["streams"])
            late.close()
        first.close()


def test_the_daemons_streams_and_those_of_the_next_daemon(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon, captions(tmp_path, env=daemon.env) as process:
        viewer = Viewer(process)
        assert viewer.next() == {"type": "snapshot", "live": True, "streams": []}
        with live(env=daemon.env) as client:
            client.write(s16le(FUTURE))
            client.end_input()
            assert client.end() == EX_OK
            text = ""
            while (message := viewer.next()) is not None and message["type"] != "done":
                text += message.get("text", "")
            assert text == client.text()
        daemon.process.signal(signal.SIGKILL)
        daemon.process.end()
        assert viewer.next() == {"type": "feed", "live": False}
        with live("serve", "--config", daemon.config, stdin=subprocess.DEVNULL):
            assert viewer.next() == {"type": "feed", "live": True}
        viewer.close()
        process.process.send_signal(signal.SIGTERM)
        assert process.end() == (EX_OK, b"", "")


def test_a_signal_while_the_daemon_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for once more at once, and then as seldom as before."""
    path = tmp_path / "socket"
    n_attempts = 0

    def count(path: Path) -> socket.socket | None:
        nonlocal n_attempts
        n_attempts += 1
        return connect(path)

    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        feed = DaemonFeed(Board(), path, ())
    monkeypatch.setattr("voxpipe.captions.feed.connect", count)
    thread = threading.Thread(target=feed.run)
    thread.start()
    feed.wakeup.set()  # as a signal does
    time.sleep(0.3)
    feed.stop()
    feed.wakeup.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert n_attempts <= 2


def test_strangers_read_nothing(tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        process.write(START)
        process.say("one", " secret")
        port = process.address[1]
        assert process.get("")[0] == process.get("captions.js")[0] == 200
        for path in ("/", "/events", "/wrong/", "/wrong/events", "/favicon.ico", "/captions.js", "/../", "//"):
            assert process.get(path)[0] == 404, path
        for path in ("nothing", "../captions.js", "page/captions.js", "%2e%2e/board.py"):
            assert process.get(path)[0] == 404, path
        for path in ("", "events", "captions.js"):
            assert process.get(path, Host=f"evil.example:{port}")[0] == 403  # a name of theirs that points to us
            assert process.get(path, Host="")[0] == 403
        assert process.get("events", **{"Sec-Fetch-Site": "cross-site"})[0] == 404
        assert process.get("", Host=f"localhost:{port}", Origin="https://evil.example")[0] == 200
        assert "access-control-allow-origin" not in {name.lower() for name in process.headers}
        assert "frame-ancestors 'none'" in process.headers["Content-Security-Policy"]
        assert process.get(urlsplit(process.url).path.rstrip("/") + "?lines=2")[0] == 308
        assert process.headers["Location"] == urlsplit(process.url).path + "?lines=2"


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = Path(__file__).parents[2] / "voxpipe/captions/page"
    assert sorted(one.name for one in page.iterdir()) == ["captions.css", "captions.js", "index.html"]
    for file in page.iterdir():
        assert not re.search(r"https?://|url\(|@import|innerHTML|import\(", file.read_text("utf-8"))


def test_the_address_stays(tmp_path: Path) -> None:
    path = tmp_path / "state" / "captions-token"
    token = read_token(path)
    assert read_token(path) == token
    assert len(token) >= 20
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    assert len(read_token(path)) >= 20
    assert read_token(path) == read_token(path)


def test_an_address_that_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "captions-token"
    assert read_token(path) != read_token(path)
    assert "the page's address will be another the next time" in caplog.text


def test_a_viewer_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    board = Board()
    board.post(START)
    with board.watch([]) as stuck:
        for number in range(2 * MAX_BEHIND):
            board.post({"type": "delta", "stream": "one", "text": f" {number}"})
        assert stuck.get(0) is None
        with board.watch([]) as good:
            snapshot = good.get(0)
            assert snapshot is not None
            assert snapshot["streams"][0]["text"].endswith(f" {2 * MAX_BEHIND - 1}")
    assert board.n_viewers == 0


def test_a_page_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    with (
        captions(tmp_path, "-", stdout=subprocess.DEVNULL) as process,
        socket.create_connection(process.address) as deaf,
    ):
        deaf.sendall(f"GET {urlsplit(process.url).path}events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        viewer = Viewer(process)
        assert viewer.next() is not None
        process.write(START)
        for _ in range(3 * MAX_BEHIND):
            process.say("one", "x" * 10_000)
            viewer.next()
        process.process.send_signal(signal.SIGUSR2)
        assert process.process.stderr is not None
        assert process.process.stderr.readline().startswith(b"voxpipe: 1 live streams and ")
        process.write({"type": "done", "stream": "one"})
        while (message := viewer.next()) is not None and message["type"] != "done":
            pass
        assert message is not None
        viewer.close()


def test_the_end_comes_after_the_last_words() -> None:
    board = Board()
    with board.watch([]) as viewer:
        board.post(START)
        board.close(0)
        assert [viewer.get(0), viewer.get(0), viewer.get(0)][2] is None
    with board.watch([]) as late:
        snapshot = late.get(0)
        assert snapshot is not None
        assert [one["stream"] for one in snapshot["streams"]] == ["one"]
        assert late.get(0) is None


def test_the_board_forgets() -> None:
    board = Board()
    for number in range(1000):
        board.post({**START, "stream": f"live-{number}"})
        board.post({**START, "stream": f"ended-{number}"})
        board.post({"type": "delta", "stream": f"live-{number}", "text": "x" * 5_000})
        board.post({"type": "done", "stream": f"ended-{number}"})
    with board.watch([]) as viewer:
        snapshot = viewer.get(0)
    assert snapshot is not None
    assert MAX_LIVE <= len(snapshot["streams"]) <= MAX_LIVE + MAX_ENDED
    assert max(len(one["text"]) for one in snapshot["streams"]) == MAX_TEXT


def test_ctrl_c_shows_and_passes_on_the_last_words(tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        viewer = Viewer(process)
        assert viewer.next() is not None
        process.write(START)
        # 1. Ctrl-C reaches everybody in the pipe; what is before us in it writes what it has heard, and ends
        process.process.send_signal(signal.SIGINT)
        process.say("one", " the last words")
        # 2. that is shown, and passed on
        status, stdout, stderr = process.end()
        assert (status, stderr) == (EX_OK, "")
        assert b"the last words" in stdout
        texts = []
        while (message := viewer.next()) is not None:
            texts.append(message.get("text"))
        assert " the last words" in texts
        viewer.close()


def test_the_reader_of_stdout_goes_away(tmp_path: Path) -> None:
    with captions(tmp_path, "-") as process:
        assert process.process.stdout is not None
        process.process.stdout.close()
        process.write(START, START)
        assert process.process.wait(PATIENCE_S) == EX_OK
        assert process.process.stderr is not None
        assert process.process.stderr.read() == b""


def test_mistakes() -> None:
    env = environment()
    result = run("captions", env=env)
    assert result.status == EX_UNAVAILABLE
    assert result.stderr == (
        "voxpipe: no daemon answers at /nonexistent/voxpipe.sock; start one with: voxpipe serve, or pipe to: captions -\n"
    )
    result = run("captions", "-", "--listen", "0.0.0.0:7330", env=env)
    assert result.status == EX_USAGE
    assert result.stderr.startswith("voxpipe: '0.0.0.0:7330' can be reached from other machines")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("captions", "-", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", env=env)
    assert result.status == EX_CANTCREAT
    master, slave = os.openpty()
    done = subprocess.run([*COMMAND, "captions", "-"], stdin=slave, capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (
        EX_NOINPUT,
        b"voxpipe: standard input is a terminal; pipe events in: \xe2\x80\xa6 | voxpipe | voxpipe captions -\n",
    )
    for descriptor in (master, slave):
        os.close(descriptor)


def test_the_pages_address_comes_without_a_browser_too(seen: Served, tmp_path: Path) -> None:
    with captions(tmp_path, env=seen.env) as one, captions(tmp_path, env=seen.env) as two:
        assert urlsplit(one.url).path == urlsplit(two.url).path
        assert "voxpipe captions" in one.get("")[1]
