"""A small web server for this machine alone, which metrics and captions are served with.

It answers GET on loopback or a Unix socket, to a bounded number of clients at once. Whoever calls it by another name than
this machine's own is refused: a website can let its name point here (DNS rebinding) and would then be let in by browsers.
"""

import ipaddress
import logging
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from voxpipe.errors import OutputError, UsageError

log = logging.getLogger(__name__)

MAX_CLIENTS = 32  # a thread each
PATIENCE_S = 10.0  # with a client that neither asks nor reads
LOCAL_NAMES = ("127.0.0.1", "::1", "localhost")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `127.0.0.1:9464`, `[::1]:9464` or `localhost:9464`; port 0 is any that is free.

    Raises:
        UsageError: it is something else, or not an address of this machine alone.
    """
    example = 'write for example "127.0.0.1:9464" or "[::1]:9464"'
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"{text!r} is no address with a port; {example}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    name = "127.0.0.1" if bare == "localhost" else bare
    try:
        address = ipaddress.ip_address(name)
    except ValueError as exc:
        raise UsageError(f"{text!r} is no address of this machine; {example}") from exc
    if not address.is_loopback or (address.version == 6) != (bare != host):
        raise UsageError(f"{text!r} can be reached from other machines, or is badly written; {example}")
    return name, int(port)


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket on loopback.

    Raises:
        OutputError: it cannot be had.
    """
    try:
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:  # a hardened service may have no network at all, nor loopback
        raise OutputError(f"cannot listen on {host}: {exc.strerror}; a Unix socket may do") from exc
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(MAX_CLIENTS)
    except OSError as exc:
        listening.close()
        raise OutputError(f"cannot listen on {host}, port {port}: {exc.strerror}; choose another port") from exc
    return listening


class LocalHandler(BaseHTTPRequestHandler):
    """Answers one request; `get` does it."""

    protocol_version = "HTTP/1.1"
    server_version = "voxpipe"
    sys_version = ""
    timeout = PATIENCE_S

    def get(self, url: SplitResult, query: dict[str, list[str]]) -> None:
        """Answer a request that may be answered."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.close_connection = True
        if self.connection.family != socket.AF_UNIX and not self._is_called_by_our_name():
            self.reply(403, b"voxpipe answers to the names of this machine only, such as 127.0.0.1\n")
            return
        try:
            url = urlsplit(self.path)
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=100)
        except ValueError:
            self.reply(400, b"this is no address\n")
            return
        self.get(url, query)

    def reply(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8", **headers: str) -> None:
        """Send a whole answer; a header's name is written with _ for -."""
        self.begin(status, content_type, Content_Length=str(len(body)), **headers)
        self.wfile.write(body)

    def begin(self, status: int, content_type: str, **headers: str) -> None:
        """Send the head of an answer; what belongs to it is written to `wfile`."""
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _is_called_by_our_name(self) -> bool:
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname in LOCAL_NAMES
        except ValueError:
            return False

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class LocalServer(ThreadingHTTPServer):
    """Serves a listening socket from threads of its own, from `start` to `close`."""

    def __init__(self, listening: socket.socket, handler: type[LocalHandler]) -> None:
        BaseServer.__init__(self, "", handler)  # not TCPServer's, which makes a socket: there may be no network
        self.socket = listening
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        self._thread = threading.Thread(target=self.serve_forever, name="web", daemon=True)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more; answers on their way may be cut off by the end of the process."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            request.setblocking(False)
            request.send(b"HTTP/1.1 503 Too many clients\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # then the client has gone
            log.exception("a defect of voxpipe, in its web server")
