"""A hub of one's own: enough of the Hugging Face API on a loopback port for the real client to fetch a repository."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, and what was asked of it.

    Attributes:
        repositories: OWNER/NAME -> file -> bytes.
        break_after: file -> bytes after which the connection breaks, once.
        status: answered to everything, if not 200.
        asked: (method, path, first byte) of each request for a file.
    """

    repositories: dict[str, dict[str, bytes]]
    break_after: dict[str, int] = field(default_factory=dict)
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
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(200, json.dumps(info).encode(), with_body=with_body)
        assert resolve is not None
        name = resolve[3]
        if name not in files:
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        return self.send_file(name, files[name], with_body=with_body)

    def send_file(self, name: str, data: bytes, *, with_body: bool) -> None:
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        self.hub.asked.append((self.command, name, first))
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        body = data[first:]
        breaks_at = self.hub.break_after.pop(name, None) if with_body else None
        self.send(206 if first else 200, body, headers, with_body=with_body, n_sent=breaks_at)

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
