"""A hub of one's own: enough of the Hugging Face API on a loopback port for the real client to fetch a repository."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, and what was asked of it.

    Attributes:
        repositories: OWNER/NAME -> file -> bytes.
        break_after: file -> bytes after which the connection breaks, once.
        stall_after: file -> bytes after which nothing more comes, though the connection stays.
        damaged: files of which one byte is another when they are sent.
        tells_sizes: whether files' sizes are known before they are fetched.
        status: answered to everything, if not 200.
        asked: (method, path, first byte) of each request for a file; the method of a look at its head alone is HEADS.
    """

    repositories: dict[str, dict[str, bytes]]
    break_after: dict[str, int] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    tells_sizes: bool = True
    stalled: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> set[str]:
        """The files of which bytes were asked."""
        return {path for method, path, _ in self.asked if method == "GET"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.hub.status != 200:
            return self.send(self.hub.status, b"{}", with_body=with_body)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(\w+)|/tree/\w+)?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        repository = (api or resolve or [None, None])[1]
        files = self.hub.repositories.get(str(repository))
        if files is None:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
        revision = (api or resolve or [None, None, None])[2]
        if revision not in (None, "main", "v1", COMMIT):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
        if api and "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), with_body=with_body)
        if api:
            sized = self.hub.tells_sizes
            siblings = [{"rfilename": name, **({"size": len(data)} if sized else {})} for name, data in files.items()]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(200, json.dumps(info).encode(), with_body=with_body)
        assert resolve is not None
        name = resolve[3]
        if name not in files:
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        return self.send_file(name, files[name], with_body=with_body)

    def repository(self) -> str:
        return "/".join(self.path.split("/")[1:3])

    def send_file(self, name: str, data: bytes, *, with_body: bool) -> None:
        span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) or ["", "0", ""]
        first, last = int(span[1]), min(len(data) - 1, int(span[2] or len(data)))
        self.hub.asked.append(("HEADS" if span[2] else self.command, name, first))
        if name in self.hub.damaged:
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        headers = {
            "ETag": f'"{etag(self.hub.repositories[self.repository()][name])}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if span[0]:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        body = data[first : last + 1]
        is_fetched = with_body and not span[2]
        breaks_at = self.hub.break_after.pop(name, None) if is_fetched else None
        stalls_at = self.hub.stall_after.pop(name, None) if is_fetched else None
        self.send(206 if span[0] else 200, body, headers, with_body=with_body, n_sent=breaks_at or stalls_at)
        if stalls_at is not None:
            self.wfile.flush()
            self.hub.stalled.set()
            with suppress(ConnectionError):
                self.rfile.read(1)  # until the client has gone

    def send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        with_body: bool,
        n_sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[:n_sent])
        if n_sent is not None:
            self.close_connection = True


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
