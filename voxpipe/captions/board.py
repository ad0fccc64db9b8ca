"""What the captions say now, and whoever watches them.

Events come in from one feed; each viewer gets a snapshot first and then what changes. Nothing waits for a viewer: one
that falls behind is dropped, asks again, as browsers do by themselves, and gets a snapshot.
"""

import queue
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from voxpipe.output.events import Event
from voxpipe.service.protocol import is_named

MAX_TEXT = 2_000  # characters of a stream: what fits on no screen
MAX_ENDED = 4  # streams whose last words are kept for those who come later
MAX_LIVE = 64
MAX_BEHIND = 512  # messages that wait for a viewer: minutes of speech

Message = dict[str, Any]


@dataclass
class Panel:
    """What a stream has said lately."""

    key: str
    stream: str
    text: str = ""
    ended: bool = False

    def message(self) -> Message:
        return {"id": self.key, "stream": self.stream, "text": self.text, "ended": self.ended}


class Viewer:
    """Messages on their way to one page."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._messages: queue.Queue[Message | None] = queue.Queue(MAX_BEHIND)
        self.dropped = False

    def wants(self, panel: Panel) -> bool:
        return not self._names or is_named(panel.stream, self._names)

    def put(self, message: Message | None) -> None:
        """Queue a message; None is the last."""
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self.dropped = True

    def get(self, timeout_s: float) -> Message | None:
        """The next message; one of no type if there is none in that time, None after the last."""
        try:
            return None if self.dropped else self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return {}


class Board:
    """Safe between one thread that posts and any number of viewers.

    Args:
        names: of the streams that may be seen; none for all.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._lock = threading.Condition()
        self._panels: dict[str, Panel] = {}
        self._viewers: list[Viewer] = []
        self._is_fed = True
        self._closed = False
        self._generation = 0

    @property
    def n_viewers(self) -> int:
        return len(self._viewers)

    @property
    def n_live(self) -> int:
        """Streams that go on."""
        return sum(not panel.ended for panel in list(self._panels.values()))

    def post(self, event: Event) -> None:
        """Take an event of a stream; those that say nothing for captions are passed over."""
        name, kind = event.get("stream"), event.get("type")
        if not isinstance(name, str) or (self._names and not is_named(name, self._names)):
            return
        key = f"{self._generation}/{event.get('id', name)}"
        text = event.get("text", "")
        if not isinstance(text, str):
            return
        text = text[-MAX_TEXT:]
        with self._lock:
            if kind == "start":
                self._panels.pop(key, None)
                self._panels[key] = panel = Panel(key, name, text)
                self._tell(panel, {"type": "start", **panel.message()})
            elif kind == "delta" and key in self._panels:
                panel = self._panels[key]
                panel.text = (panel.text + text)[-MAX_TEXT:]
                facts = {name: event[name] for name in ("start", "end") if isinstance(event.get(name), int | float)}
                self._tell(panel, {"type": "delta", "id": key, "text": text, **facts})
            elif kind == "done" and key in self._panels:
                self._end(self._panels[key])
            self._forget()

    def set_fed(self, is_fed: bool) -> None:
        """Say whether there is anybody who posts; streams of a feed that has gone have ended."""
        with self._lock:
            self._is_fed = is_fed
            if not is_fed:
                self._generation += 1
                for panel in self._panels.values():
                    if not panel.ended:
                        self._end(panel)
            for viewer in self._viewers:
                viewer.put({"type": "feed", "live": is_fed})

    def close(self, timeout_s: float) -> None:
        """Let every viewer have the last words, for so many seconds at most, and no more."""
        with self._lock:
            self._closed = True
            for viewer in self._viewers:
                viewer.put(None)
            self._lock.wait_for(lambda: not self._viewers, timeout_s)

    @contextmanager
    def watch(self, names: Collection[str]) -> Iterator[Viewer]:
        """A viewer of the streams of these names, or of all, whose first message is a snapshot."""
        viewer = Viewer(names)
        with self._lock:
            panels = [panel.message() for panel in self._panels.values() if viewer.wants(panel)]
            viewer.put({"type": "snapshot", "live": self._is_fed, "streams": panels})
            if self._closed:
                viewer.put(None)
            self._viewers.append(viewer)
        try:
            yield viewer
        finally:
            with self._lock:
                self._viewers.remove(viewer)
                self._lock.notify_all()

    def _end(self, panel: Panel) -> None:
        panel.ended = True
        self._tell(panel, {"type": "done", "id": panel.key})

    def _tell(self, panel: Panel, message: Message) -> None:
        for viewer in self._viewers:
            if viewer.wants(panel):
                viewer.put(message)

    def _forget(self) -> None:
        """Drop the oldest of those that are too many."""
        ended = [key for key, panel in self._panels.items() if panel.ended]
        live = [key for key, panel in self._panels.items() if not panel.ended]
        for key in (*ended[:-MAX_ENDED], *live[:-MAX_LIVE]):
            del self._panels[key]
