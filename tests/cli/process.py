"""A voxpipe process under test: its events as they come, its stderr, its status."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]
PATIENCE_S = 90.0  # a deadline, not a delay: a busy machine may take long
COMMAND = (sys.executable, "-m", "voxpipe")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with `&`, which is handed on to what we start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**changes: str | None) -> dict[str, str]:
    """Ours, with the embedded model, no network and no daemon; None removes a variable."""
    variables = {
        **os.environ,
        "VOXPIPE_MODEL": "tiny",
        "HF_HUB_OFFLINE": "1",
        "VOXPIPE_SOCKET": "/nonexistent/voxpipe.sock",
    }
    for name, value in changes.items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    return variables


def wait_until(condition: Callable[[], Any], what: Callable[[], str] = lambda: "something") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what()}"
        time.sleep(0.005)


@dataclass(frozen=True)
class Result:
    """What a process that has ended left behind."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def events(self) -> list[Event]:
        return parse(self.stdout)

    @property
    def text(self) -> str:
        return text_of(self.events)


def parse(stdout: bytes) -> list[Event]:
    assert stdout.endswith(b"\n") or not stdout
    return [json.loads(line) for line in stdout.decode().split("\n") if line]


def of(events: list[Event], stream: str) -> list[Event]:
    return [event for event in events if event.get("stream") == stream]


def text_of(events: list[Event], stream: str | None = None) -> str:
    chosen = events if stream is None else of(events, stream)
    return "".join(event["text"] for event in chosen if event["type"] == "delta")


def run(
    *arguments: str | Path,
    stdin: bytes | None = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run voxpipe to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        env=environment() if env is None else env,
        cwd=cwd,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def shell(script: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """Run a line of sh, in which voxpipe is a command and $1, $2, ... the arguments."""
    script = f'voxpipe() {{ "{sys.executable}" -m voxpipe "$@"; }}\n{script}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        env=environment() if env is None else env,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


class Live:
    """A running voxpipe whose events are collected as they are written."""

    def __init__(
        self,
        *arguments: str | Path,
        stdin: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment() if env is None else env,
            start_new_session=start_new_session,
        )
        self.events: list[Event] = []
        self._errors = bytearray()
        self._threads = [threading.Thread(target=self._collect), threading.Thread(target=self._listen)]
        for thread in self._threads:
            thread.start()

    @property
    def stderr(self) -> str:
        return self._errors.decode()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        while data := self.process.stdout.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            self.events.extend(json.loads(line) for line in lines)
        assert not rest

    def _listen(self) -> None:
        assert self.process.stderr is not None
        while data := self.process.stderr.read(1 << 16):
            self._errors += data

    def write(self, data: bytes) -> None:
        """Write all of `data` to stdin."""
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def count(self, type: str, stream: str | None = None) -> int:
        return sum(event["type"] == type and stream in (None, event.get("stream")) for event in list(self.events))

    def wait_for(self, type: str, stream: str | None = None, *, n: int = 1) -> None:
        """Wait until `n` events of a type have come."""

        def come() -> bool:
            assert self.count(type, stream) >= n or self.process.poll() is None, f"it has ended: {self.stderr}"
            return self.count(type, stream) >= n

        wait_until(come, lambda: f"{n} events {type!r} of {stream}, having {self.events}")

    def wait_for_words(self, n: int, stream: str | None = None) -> None:
        """Wait until `n` words have been written and another one begun."""
        wait_until(lambda: self.text(stream).count(" ") > n, lambda: f"{n} words of {stream}, having {self.events}")

    def text(self, stream: str | None = None) -> str:
        return text_of(list(self.events), stream)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the process to end and return its status."""
        status = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file is not None:
                file.close()


@contextmanager
def live(*arguments: str | Path, **options: Any) -> Iterator[Live]:
    """A voxpipe process that is dead at the latest when the block is left."""
    process = Live(*arguments, **options)
    try:
        yield process
    finally:
        process.close()
