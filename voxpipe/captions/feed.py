"""Where captions get their events from: a daemon's subscription, or JSON lines on standard input.

Both run on the calling thread until their input ends or `stop` is called. Knows nothing of the web.
"""

import json
import logging
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from voxpipe.captions.board import Board
from voxpipe.errors import UnavailableError
from voxpipe.runtime.wakeup import Wakeup
from voxpipe.service.attach import connect
from voxpipe.service.protocol import Header

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20  # what goes on longer is no event
RETRY_S = 1.0  # between two looks whether the daemon is back
LAST_WORDS_S = 5.0  # for the processes before us in a pipe to end, after a signal that reached them, too


class Feed:
    """Posts events on a board.

    Attributes:
        wakeup: to be set by every signal.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self.wakeup = Wakeup()
        self._stop_at: float | None = None

    def stop(self) -> None:
        """End soon. Safe in signal handlers."""
        self._stop_at = time.monotonic()

    def _post(self, line: bytes) -> bool:
        """Post a line if it is an event, and return whether it is."""
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(event, dict) or "type" not in event:
            return False
        self._board.post(event)
        return True

    def _lines(self, descriptor: int, *, grace_s: float) -> Iterator[bytes]:
        """Lines with their ends, until the input has none or `grace_s` seconds after `stop`."""
        pending = b""
        while (left_s := self._left_s(grace_s)) is None or left_s > 0:
            readable, _, _ = select.select([descriptor, self.wakeup.fileno()], [], [], left_s)
            self.wakeup.drain()
            if descriptor not in readable:
                continue
            data = os.read(descriptor, READ_BYTES)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
            if len(pending) > MAX_LINE_BYTES:
                yield pending
                pending = b""
        if pending:
            yield pending

    def _left_s(self, grace_s: float) -> float | None:
        return None if self._stop_at is None else self._stop_at + grace_s - time.monotonic()


class LinesFeed(Feed):
    """JSON lines from a descriptor, which are also passed on, each as it is and at once."""

    def __init__(self, board: Board, source: int, output: BinaryIO) -> None:
        super().__init__(board)
        self._source = source
        self._output = output

    def run(self) -> None:
        warned = False
        for line in self._lines(self._source, grace_s=LAST_WORDS_S):
            self._output.write(line)
            self._output.flush()
            if not self._post(line) and not warned and line.strip():
                warned = True
                log.warning("standard input is not what voxpipe writes; pipe it so: … | voxpipe | voxpipe captions -")
        self._board.set_fed(False)


class DaemonFeed(Feed):
    """The events of a daemon, also of the one that comes after it."""

    def __init__(self, board: Board, path: Path, names: tuple[str, ...]) -> None:
        super().__init__(board)
        self._path = path
        self._header = Header(request="subscribe", streams=names)
        self._connection = self._subscribe()
        if self._connection is None:
            raise UnavailableError(
                f"no daemon answers at {path}; start one with: voxpipe serve, or pipe to: captions -"
            )

    def run(self) -> None:
        while self._stop_at is None:
            if self._connection is not None:
                with self._connection as connection:
                    self._board.set_fed(True)
                    self._read(connection)
                self._board.set_fed(False)
            if self._stop_at is None:
                self.wakeup.wait(RETRY_S)
                self._connection = self._subscribe()

    def _read(self, connection: socket.socket) -> None:
        try:
            for line in self._lines(connection.fileno(), grace_s=0.0):
                self._post(line)
        except ConnectionError as exc:
            log.debug("the daemon has gone: %s", exc)

    def _subscribe(self) -> socket.socket | None:
        connection = connect(self._path)
        if connection is not None:
            with suppress(OSError):  # if it has gone at once, reading will tell
                connection.sendall(self._header.encode())
        return connection
