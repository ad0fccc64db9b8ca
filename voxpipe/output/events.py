"""JSON lines, version 1: one object a line, written whole and at once.

An absent value is absent, never null. Times are rounded to a hundredth of a second, which is finer than they are known.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from voxpipe.output.transcript import Delta, Segment

VERSION = 1

Event = dict[str, Any]


class JsonLines:
    """Writes events to a binary stream, from any thread, flushed per line.

    A reader that has gone raises BrokenPipeError, another failure of the output OSError; both are the caller's to end on.
    """

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._lock = threading.Lock()

    def write(self, type: str, **fields: Any) -> None:
        event = {"type": type, **{name: value for name, value in fields.items() if value is not None}}
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        # half of a surrogate pair, as in a name that is not UTF-8, becomes \udcff, which is what JSON has for it
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            self._output.write(line)
            self._output.flush()

    def ready(self, *, model: str, delay_ms: int) -> None:
        self.write("ready", v=VERSION, model=model, delay_ms=delay_ms)


class StreamEvents:
    """The events of one stream: `start` first, numbered deltas, `done` last and once.

    Args:
        logprobs: whether deltas say how sure the model was of them.
        on_event: told every event once it is written.
    """

    def __init__(
        self,
        lines: JsonLines,
        *,
        stream: str,
        source: str,
        logprobs: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._lines = lines
        self._logprobs = logprobs
        self._on_event = on_event
        self._stream = stream
        self._seq = 0
        self._started_at = time.monotonic()
        self._write("start", source=source)

    def delta(self, delta: Delta) -> None:
        self._seq += 1
        start, end = round(delta.start, 2), round(delta.end, 2)
        asked: dict[str, Any] = {"logprob": _rounded(delta.logprob)} if self._logprobs else {}
        if delta.alternatives:
            asked["alternatives"] = [{"text": text, "logprob": _rounded(one)} for text, one in delta.alternatives]
        self._write("delta", seq=self._seq, text=str(delta), start=start, end=end, **asked)

    def segment(self, segment: Segment) -> None:
        """`seq` is that of the segment's last delta."""
        self._write(
            "segment",
            seq=self._seq,
            text=segment.text,
            start=round(segment.start, 2),
            end=round(segment.end, 2),
            reason=segment.reason,
        )

    def heartbeat(self, *, audio_s: float, lag_ms: int) -> None:
        self._write("heartbeat", audio_s=round(audio_s, 2), lag_ms=lag_ms)

    def warning(self, code: str, message: str, **facts: Any) -> None:
        self._write("warning", code=code, message=message, **facts)

    def error(self, code: str, message: str) -> None:
        self._write("error", code=code, message=message)

    def done(self, *, reason: str, audio_s: float, truncated: bool) -> None:
        wall_s = round(time.monotonic() - self._started_at, 2)
        self._write("done", reason=reason, audio_s=round(audio_s, 2), wall_s=wall_s, truncated=truncated)

    def _write(self, type: str, **fields: Any) -> None:
        self._lines.write(type, stream=self._stream, **fields)
        if self._on_event is not None:
            self._on_event({"type": type, "stream": self._stream, **fields})


def silence_output(output: BinaryIO) -> None:
    """Point a broken output at nothing, so that the interpreter's last flush does not complain."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    except (OSError, ValueError):  # it has no descriptor: nothing will be flushed to it
        return


def _rounded(logprob: float) -> float:
    return round(logprob, 4) or 0.0  # and not -0.0
