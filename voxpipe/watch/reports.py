"""What a watched folder tells: JSON lines for programs, log lines for people, and numbers for whoever asks.

Every event names its `file`. Texts are UTF-8 whatever bytes a name is made of.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from voxpipe.audio.files import display_name
from voxpipe.errors import VoxpipeError
from voxpipe.output.events import JsonLines
from voxpipe.runtime.jobs import path_as_text

log = logging.getLogger(__name__)


class LinesError(Exception):
    """The events cannot be written any more; the cause says why."""


class Display(Protocol):
    """Whoever shows how far the files are; called from the folders' threads."""

    def queue(self, path: str, size: int) -> None: ...

    def end(self, path: str) -> None: ...


class Reports:
    """Of one folder, from its thread.

    Args:
        lines: where events go; without it, to the log alone.

    Attributes:
        counts: events so far, by type.
        status: the exit status of the first file that failed.
    """

    def __init__(self, lines: JsonLines | None = None, display: Display | None = None) -> None:
        self._lines = lines
        self._display = display
        self.counts: Counter[str] = Counter()
        self.status = 0

    def watching(self, folder: str, *, polling: str | None, asked_for: bool) -> None:
        """It begins: told by the system, or `polling` because of this."""
        if polling is not None and not asked_for:
            log.warning("%s: is looked through all the time: %s", display_name(folder), polling)
        self._write("watching", folder=path_as_text(folder), polling=polling)

    def queued(self, path: str, size: int) -> None:
        if self._display is not None:
            self._display.queue(path, size)
        self._tell("queued", path, size=size)

    def waiting(self, path: str, lack: str) -> None:
        self._tell("waiting", path, message=lack)

    def incomplete(self, path: str, lack: str, waited_s: float) -> None:
        log.warning("%s: %s, and nothing came for %.0f s: taken as it is", display_name(path), lack, waited_s)

    def started(self, path: str) -> None:
        self._tell("started", path)

    def done(self, path: str, outputs: Sequence[str], *, audio_s: float, wall_s: float, truncated: bool) -> None:
        self._end(path)
        texts = [path_as_text(one) for one in outputs]
        facts = {"audio_s": round(audio_s, 2), "wall_s": round(wall_s, 2), "truncated": truncated or None}
        self._tell("done", path, outputs=texts, **facts)

    def failed(self, path: str, error: VoxpipeError, *, attempts: int, retry_s: float | None) -> None:
        self._end(path)
        self.status = self.status or error.status
        name, message = display_name(path), str(error)
        retry = "" if retry_s is None else f"; tried again in {retry_s:.0f} s"
        log.warning("%s%s%s", "" if message.startswith(f"{name}:") else f"{name}: ", message, retry)
        text = os.fsencode(message).decode("utf-8", "backslashreplace")
        self._tell("failed", path, code=error.code, message=text, attempts=attempts, retry_s=retry_s)

    def discarded(self, path: str, reason: str) -> None:
        """A result was thrown away, or a file that was waited for is gone; if it is there, it comes again."""
        self._end(path)
        self._tell("discarded", path, message=reason)

    def skipped(self, path: str, reason: str) -> None:
        """There was nothing to be done after all."""
        self._end(path)
        self._tell("skipped", path, message=reason)

    def moved(self, path: str, target: str) -> None:
        self._tell("moved", path, target=path_as_text(target))

    def _end(self, path: str) -> None:
        if self._display is not None:
            self._display.end(path)

    def _tell(self, type: str, path: str, **facts: Any) -> None:
        self.counts[type] += 1
        log.info("%s: %s", display_name(path), type)
        self._write(type, file=path_as_text(path), **facts)

    def _write(self, type: str, **facts: Any) -> None:
        if self._lines is not None:
            try:
                self._lines.write(type, **facts)
            except OSError as exc:
                raise LinesError from exc
