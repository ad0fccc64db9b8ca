"""The web server of the captions: a page, and its text as server-sent events.

The address has a secret part, so that other users of the machine cannot read along. It is kept in a file, so that the
address stays the same from one start to the next.
"""

import hmac
import io
import json
import logging
import os
import secrets
import socket
import sys
from importlib.resources import files
from pathlib import Path
from urllib.parse import SplitResult

from voxpipe.captions.board import Board, Message
from voxpipe.service.web import LocalHandler, LocalServer

log = logging.getLogger(__name__)

TOKEN_BYTES = 16
ALIVE_S = 5.0  # between two signs of life, by which a page that has gone is noticed
RETRY_MS = 1000  # after which browsers ask again
LAST_WORDS_S = 2.0  # for pages to take their last words when we end
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "captions.css": ("captions.css", "text/css; charset=utf-8"),
    "captions.js": ("captions.js", "text/javascript; charset=utf-8"),
}


def token_file() -> Path:
    """Where the secret part of a user's address is kept."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "voxpipe" / "captions-token"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "voxpipe" / "captions-token"


def read_token(path: Path) -> str:
    """The secret part of the address, made if there is none; where it cannot be kept, one for this time."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            kept = path.read_text("ascii").strip()
            if len(kept) >= len(token):
                return kept
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
    except (OSError, UnicodeDecodeError) as exc:
        log.warning("the page's address will be another the next time: cannot keep it in %s: %s", path, exc)
    return token


class CaptionServer:
    """Serves the page of a board, from `start` to `close`."""

    def __init__(self, listening: socket.socket, board: Board, token: str) -> None:
        self._board = board
        self._server = LocalServer(listening, _handler(board, token))
        host = listening.getsockname()[0]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.port}/{token}/"

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._board.close(LAST_WORDS_S)
        self._server.close()


def write_message(output: io.BufferedIOBase, message: Message) -> None:
    """One server-sent event; a message of no type is a sign of life."""
    if message:
        output.write(b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n")
    else:
        output.write(b":\n\n")
    output.flush()


def _handler(board: Board, token: str) -> type[LocalHandler]:
    page = {
        path: (files("voxpipe.captions").joinpath("page", name).read_bytes(), kind)
        for path, (name, kind) in PAGE.items()
    }

    class Handler(LocalHandler):
        def get(self, url: SplitResult, query: dict[str, list[str]]) -> None:
            secret, _, path = url.path.removeprefix("/").partition("/")
            if not hmac.compare_digest(secret.encode(), token.encode()):
                self.reply(404, b"the address has a secret part; `voxpipe captions` printed it when it started\n")
            elif url.path == f"/{token}":
                self.reply(308, b"", Location=f"/{token}/{url.query and '?' + url.query}")
            elif path == "events" and self.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none"):
                self._send_events(query.get("stream", []))
            elif path in page:
                body, kind = page[path]
                self.reply(200, body, kind, Content_Security_Policy=POLICY, Referrer_Policy="no-referrer")
            else:
                self.reply(404, b"there is nothing here\n")

        def _send_events(self, names: list[str]) -> None:
            self.begin(200, "text/event-stream; charset=utf-8")
            self.wfile.write(f"retry: {RETRY_MS}\n\n".encode())
            with board.watch(names) as viewer:
                while (message := viewer.get(ALIVE_S)) is not None:
                    write_message(self.wfile, message)

    return Handler
