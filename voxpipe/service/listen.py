"""`voxpipe listen`: sources named on the command line, events on one output, until they end or a signal says so.

Signals only set a flag and wake the loop, which then decides. Knows nothing of click.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from voxpipe.output.events import JsonLines
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.loop import StreamLoop
from voxpipe.service.reader import AudioOptions, Reader
from voxpipe.service.stream import StreamOptions

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Listener:
    """Decodes every stream of its sources until they have ended or a signal says so."""

    def __init__(
        self, paths: list[str], audio_options: AudioOptions, stream_options: StreamOptions, lines: JsonLines
    ) -> None:
        self._stream_options = stream_options
        self._lines = lines
        self._loop = StreamLoop()
        self._stopping = False
        self._readers = [
            Reader(path, name, self._loop, lines, audio_options, stream_options) for path, name in _names(paths)
        ]

    def run(self, load: Callable[[], Transcriber]) -> int:
        """Load the model while the sources are already being read, then serve; return the exit status."""
        with self._signals():
            for reader in self._readers:
                reader.start()
            transcriber = load()
            delay_ms = self._stream_options.delay_ms or transcriber.config.transcription_delay_ms
            self._lines.ready(model=transcriber.name, delay_ms=delay_ms)
            return self._loop.run(
                transcriber,
                lambda: all(reader.finished for reader in self._readers),
                n_expected=len(self._readers),
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Obey signals while the context lasts."""
        handlers = dict.fromkeys(STOP_SIGNALS, self._on_stop)
        handlers[signal.SIGUSR1] = self._on_flush
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        previous_descriptor = signal.set_wakeup_fd(self._loop.wakeup.descriptor, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous_descriptor)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)  # asked twice: now
        self._stopping = True
        for reader in self._readers:
            reader.stop()
        self._loop.stop()

    def _on_flush(self, number: int, frame: FrameType | None) -> None:
        self._loop.flush()


def _names(paths: list[str]) -> list[tuple[str, str]]:
    """(path, stream name) of each source: "stdin", or the file's name, numbered where it comes twice."""
    named = []
    seen: dict[str, int] = {}
    for path in paths:
        name = "stdin" if path == "-" else os.path.basename(path)
        seen[name] = seen.get(name, 0) + 1
        named.append((path, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named
