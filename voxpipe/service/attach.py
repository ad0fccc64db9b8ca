"""`voxpipe` as a client of a running daemon: standard input to its socket, its events to standard output.

Nothing here loads the model, or even numpy, so a pipe is attached in the time that Python takes to start.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from voxpipe.errors import EX_IOERR, EX_OK, EX_UNAVAILABLE, UnavailableError, status_of
from voxpipe.output.events import JsonLines
from voxpipe.service.protocol import MAX_CHUNK_BYTES, Header, as_chunk
from voxpipe.service.signals import signals
from voxpipe.service.status import print_status

log = logging.getLogger(__name__)


def connect(path: Path) -> socket.socket | None:
    """A connection to the daemon at `path`, or None if there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def ask_status(path: Path, *, timeout_s: float | None = None) -> dict[str, Any]:
    """What the daemon at `path` says of itself, which one that loads its model does only then.

    Raises:
        UnavailableError: there is none, or it does not answer in time.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(Header(request="status").encode())
            with client.makefile("rb") as answer:
                status: dict[str, Any] = json.loads(answer.readline())
    except (OSError, ValueError) as exc:
        raise UnavailableError(f"no daemon answers at {path}; start one with: voxpipe serve") from exc
    return status


def model_of(path: Path) -> str | None:
    """The name of the model that the daemon at `path` runs."""
    with suppress(UnavailableError):
        return str(ask_status(path)["model"])
    return None


def _print_status(connection: socket.socket) -> None:
    with suppress(OSError, UnavailableError):  # the daemon has gone, which is about to be said
        print_status(ask_status(Path(connection.getpeername())))


class Attachment:
    """One stream of ours on somebody else's model.

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
        self._sending = threading.Lock()
        self._stopping = False

    def run(self) -> int:
        """Carry the stream to its end and return the exit status that it would have had alone."""
        with signals(on_stop=self._stop, on_flush=self._flush, on_status=self._report):
            self._send(self._header.encode())
            threading.Thread(target=self._copy, name="sender", daemon=True).start()
            status = EX_OK
            with self._connection.makefile("rb") as lines:
                for line in self._whole_lines(lines):
                    event = json.loads(line)
                    if event["type"] == "error":
                        log.error("%s", event["message"])
                        status = status or status_of(event["code"])
                    if event["type"] == "done" and self._stopping and event["reason"] == "eof":
                        self._lines.write(**{**event, "reason": "signal"})
                    else:
                        self._write(line)
                    if event["type"] == "done":
                        return EX_OK if self._stopping else status
        return self._end_alone(status)

    def _whole_lines(self, lines: BinaryIO) -> Iterator[bytes]:
        with suppress(ConnectionError):
            for line in lines:
                if line.endswith(b"\n"):
                    yield line

    def _end_alone(self, status: int) -> int:
        """Say what the daemon can say no more."""
        message = "the daemon ended in mid-stream; run the command again, or without it: --daemon never"
        name = self._header.name
        self._lines.write("error", stream=name, code=UnavailableError.code, message=message)
        self._lines.write("done", stream=name, reason="error", truncated=False)
        log.error("%s", message)
        return status or EX_UNAVAILABLE

    def _copy(self) -> None:
        try:
            while not self._stopping and (data := os.read(self._source, MAX_CHUNK_BYTES)):
                if not self._stopping:
                    self._send(as_chunk(data))
        except OSError as exc:
            log.error("cannot read standard input: %s", exc.strerror)
            os._exit(EX_IOERR)
        self._end_sending()

    def _send(self, data: bytes) -> None:
        with suppress(OSError), self._sending:  # if the daemon has gone, its silence tells
            self._connection.sendall(data)

    def _end_sending(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _write(self, line: bytes) -> None:
        self._output.write(line)
        self._output.flush()

    def _stop(self) -> None:
        self._stopping = True
        self._end_sending()

    def _report(self) -> None:
        """Print the daemon's status, on a thread, since the daemon may not answer."""
        threading.Thread(target=_print_status, args=(self._connection,), daemon=True).start()

    def _flush(self) -> None:
        self._send(as_chunk(b""))
