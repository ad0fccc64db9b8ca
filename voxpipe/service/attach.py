"""`voxpipe` as a client of a running daemon: standard input to its socket, its events to standard output.

Nothing here loads the model, or even numpy, so a pipe is attached in the time that Python takes to start.
"""

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from voxpipe.errors import EX_OK, EX_UNAVAILABLE, InputError, UnavailableError, VoxpipeError, status_of
from voxpipe.output.events import Event, JsonLines
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.service.place import REMEDY, foreign_folder
from voxpipe.service.protocol import MAX_CHUNK_BYTES, Header, as_chunk
from voxpipe.service.signals import signals
from voxpipe.service.status import print_status

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16
STATUS_WAIT_S = 5.0  # a daemon answers at once however busy its model is


def connect(path: Path) -> socket.socket | None:
    """A connection to the daemon at `path`, or None if there is none, or it may be another user's."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    if (folder := foreign_folder(path)) is not None:  # seen now, as it can be made until the last moment
        log.warning("%s is another user's, and not trusted with audio; %s", folder, REMEDY)
        connection.close()
        return None
    return connection


def ask_status(path: Path, *, timeout_s: float | None = STATUS_WAIT_S) -> dict[str, Any]:
    """What the daemon at `path` says of itself, which it does once its model is loaded.

    Raises:
        UnavailableError: there is none, or it does not answer in time.
    """
    if (folder := foreign_folder(path)) is not None:
        raise UnavailableError(f"{folder} is another user's; {REMEDY}")
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(Header(request="status").encode())
            with client.makefile("rb") as answer:
                status: dict[str, Any] = json.loads(answer.readline())
    except (TimeoutError, BlockingIOError) as exc:  # the latter: so many wait for it that there is no place to wait in
        message = (
            f"the daemon at {path} is there, but has not answered for {timeout_s:g} s; if it was started a moment ago it "
            "is loading its model, else restart it"
        )
        raise UnavailableError(message) from exc
    except (OSError, ValueError) as exc:
        raise UnavailableError(f"no daemon answers at {path}; start one with: voxpipe serve") from exc
    return status


def model_of(path: Path) -> str | None:
    """The name of the model that the daemon at `path` runs, for which one that is loading it is waited."""
    with suppress(UnavailableError):
        return str(ask_status(path, timeout_s=None)["model"])
    return None


def _print_status(connection: socket.socket) -> None:
    try:
        print_status(ask_status(Path(connection.getpeername())))
    except UnavailableError as exc:
        log.error("%s", exc)
    except OSError:  # the daemon has gone, which is about to be said
        return


class Attachment:
    """One stream of ours on somebody else's model.

    A thread of its own sends, so that words come out while the daemon takes no more audio. Neither thread waits for the
    other: signals set flags, and each looks at those that are its own.

    Args:
        source: descriptor that is read until its end.
        output: where the events go.
    """

    def __init__(self, connection: socket.socket, header: Header, source: int, output: BinaryIO) -> None:
        self._connection = connection
        self._header = header
        self._source = source
        self._output = output
        self._lines = JsonLines(output)
        self._signalled = Wakeup()
        self._to_send = Wakeup()
        self._stopping = False
        self._flushing = False
        self._reporting = False
        self._error: VoxpipeError | None = None  # of ours, which the daemon cannot know
        self._began_at = time.monotonic()
        self._audio_s = 0.0  # of which the daemon has told

    def run(self) -> int:
        """Carry the stream to its end and return the exit status that it would have had alone."""
        with signals(
            on_stop=self._stop, on_flush=self._flush, on_status=self._report, wakeup=self._signalled.descriptor
        ):
            threading.Thread(target=self._send, name="sender", daemon=True).start()
            status = EX_OK
            for line in self._whole_lines():
                event = json.loads(line)
                self._audio_s = max(self._audio_s, event.get("audio_s", 0.0), event.get("end", 0.0))
                if event["type"] == "done":
                    return self._end(event, status)
                if event["type"] == "error":
                    log.error("%s", event["message"])
                    status = status or status_of(event["code"])
                self._output.write(line)
                self._output.flush()
        return self._end_alone(status)

    def _whole_lines(self) -> Iterator[bytes]:
        """The daemon's lines, until it ends; what signals ask for is done while there are none."""
        pending = b""
        connection = self._connection.fileno()
        while True:
            readable, _, _ = select.select([connection, self._signalled.fileno()], [], [])
            self._signalled.drain()
            if self._reporting:
                self._reporting = False
                # on a thread, since the daemon may not answer
                threading.Thread(target=_print_status, args=(self._connection,), daemon=True).start()
            if connection not in readable:
                continue
            try:
                data = self._connection.recv(READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line + b"\n"

    def _end(self, done: Event, status: int) -> int:
        """Write `done` with the reason that the stream would have ended for alone."""
        if self._error is not None:
            self._fail(self._error)
            done["reason"] = "error"
            status = self._error.status
        elif self._stopping and done["reason"] == "eof":
            done["reason"] = "signal"
        self._lines.write(**done)
        return EX_OK if self._stopping else status

    def _end_alone(self, status: int) -> int:
        """Say what the daemon can say no more."""
        self._fail(
            UnavailableError("the daemon ended in mid-stream; run the command again, or without it: --daemon never")
        )
        wall_s = round(time.monotonic() - self._began_at, 2)
        self._lines.write(
            "done", stream=self._header.name, reason="error", audio_s=self._audio_s, wall_s=wall_s, truncated=False
        )
        return status or EX_UNAVAILABLE

    def _fail(self, error: VoxpipeError) -> None:
        self._lines.write("error", stream=self._header.name, code=error.code, message=str(error))
        log.error("%s", error)

    def _send(self) -> None:
        """Send the header, then what comes in, until its end or a stop."""
        to_send = self._to_send.fileno()
        with suppress(OSError):  # if the daemon has gone, its silence tells
            self._connection.sendall(self._header.encode())
            while not self._stopping:
                readable, _, _ = select.select([to_send, self._source], [], [])
                self._to_send.drain()
                if self._flushing:
                    self._flushing = False
                    self._connection.sendall(as_chunk(b""))
                if self._source in readable and not self._stopping:
                    data = self._read()
                    if not data:
                        break
                    self._connection.sendall(as_chunk(data))
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, MAX_CHUNK_BYTES)
        except OSError as exc:
            self._error = InputError(f"cannot read standard input: {exc.strerror}")
            return b""

    def _stop(self) -> None:
        self._stopping = True
        self._to_send.set()

    def _flush(self) -> None:
        self._flushing = True
        self._to_send.set()

    def _report(self) -> None:
        self._reporting = True
        self._signalled.set()
