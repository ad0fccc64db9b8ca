"""`voxpipe listen`: sources named on the command line, events on one output, until they end or a signal says so.

Knows nothing of click.
"""

import os
from collections.abc import Callable

from voxpipe.output.events import JsonLines
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.loop import StreamLoop
from voxpipe.service.reader import AudioOptions, Reader
from voxpipe.service.signals import signals
from voxpipe.service.stream import StreamOptions


class Listener:
    """Decodes every stream of its sources until they have ended or a signal says so."""

    def __init__(
        self, paths: list[str], audio_options: AudioOptions, stream_options: StreamOptions, lines: JsonLines
    ) -> None:
        self._stream_options = stream_options
        self._lines = lines
        self._loop = StreamLoop()
        self._readers = [
            Reader(path, name, self._loop, lines, audio_options, stream_options) for path, name in _names(paths)
        ]

    def run(self, load: Callable[[], Transcriber]) -> int:
        """Load the model while the sources are already being read, then serve; return the exit status."""
        with signals(on_stop=self._stop, on_flush=self._loop.flush, wakeup=self._loop.wakeup.descriptor):
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

    def _stop(self) -> None:
        for reader in self._readers:
            reader.stop()
        self._loop.stop()


def _names(paths: list[str]) -> list[tuple[str, str]]:
    """(path, stream name) of each source: "stdin", or the file's name, numbered where it comes twice."""
    named = []
    seen: dict[str, int] = {}
    for path in paths:
        name = "stdin" if path == "-" else os.path.basename(path)
        seen[name] = seen.get(name, 0) + 1
        named.append((path, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named
