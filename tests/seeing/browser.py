"""A real Chromium without a window, driven over its own debugging protocol (no driver program in between).

Messages are JSON with a zero byte behind, on descriptors 3 and 4 of the browser (--remote-debugging-pipe).
"""

import base64
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.process import PATIENCE_S, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP rebound.example 127.0.0.1",  # a website's name that points to this machine
)


class Browser:
    """Opens pages."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (read_commands, self._commands), (self._answers, write_answers) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (read_commands, write_answers)]

        def hand_over() -> None:
            for descriptor, number in zip(theirs, (3, 4), strict=True):
                os.dup2(descriptor, number)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=hand_over,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        for descriptor in (read_commands, write_answers, *theirs):
            os.close(descriptor)
        self._n_calls = 0
        self._waiting: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._n_calls += 1
        message = {"id": self._n_calls, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._waiting[self._n_calls] = answer
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        result = answer.get(timeout=PATIENCE_S)
        assert "error" not in result, result
        return dict(result["result"])

    def open(self, url: str, *, width: int = 1280, height: int = 720) -> "Page":
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.call("Page.enable")
        page.go_to(url)
        return page

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        for descriptor in (self._commands, self._answers):
            os.close(descriptor)

    def _listen(self) -> None:
        pending = b""
        while data := os.read(self._answers, 1 << 16):
            *messages, pending = (pending + data).split(b"\0")
            for message in map(json.loads, messages):
                if message.get("id") in self._waiting:
                    self._waiting.pop(message["id"]).put(message)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, **parameters)

    def go_to(self, url: str) -> None:
        assert "errorText" not in self.call("Page.navigate", url=url)
        wait_until(lambda: self.evaluate("document.readyState") == "complete", lambda: f"{url} to load")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path | None = None, *, transparent: bool = False) -> bytes:
        if transparent:
            self.call("Emulation.setDefaultBackgroundColorOverride", color={"r": 0, "g": 0, "b": 0, "a": 0})
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def rows(self) -> list[str]:
        """The lines of captions on the page."""
        return list(self.evaluate("[...document.querySelectorAll('.row')].map((row) => row.textContent)"))

    def text(self) -> str:
        return " ".join(self.rows())


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
