"""`voxpipe listen`: sources named on the command line, events on one output, until they end or a signal says so.

Knows nothing of click.
"""

import os
from collections.abc import Callable
from typing import Any

from voxpipe.output.events import JsonLines
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.loop import StreamLoop
from voxpipe.service.process import process_status
from voxpipe.service.reader import AudioOptions, Reader
from voxpipe.service.signals import signals
from voxpipe.service.status import print_status
from voxpipe.service.stream import StreamOptions


class Listener:
    """Decodes every stream of its sources until they have ended or a signal says so.

    Args:
        name: of the only source's stream, if it is to have another than its own.
    """

    def __init__(
        self,
        paths: list[str],
        audio_options: AudioOptions,
        stream_options: StreamOptions,
        lines: JsonLines,
        *,
        name: str | None = None,
    ) -> None:
        self._stream_options = stream_options
        self._lines = lines
        self._loop = StreamLoop(on_report=lambda: print_status(self.status()))
        self._model: str | None = None
        self._delay_ms: int | None = None
        self._readers = [
            Reader(path, stream, self._loop, lines, audio_options, stream_options)
            for path, stream in _names(paths, name)
        ]

    def run(self, load: Callable[[], Transcriber]) -> int:
        """Load the model while the sources are already being read, then serve; return the exit status."""
        with signals(
            on_stop=self._stop,
            on_flush=self._loop.flush,
            on_status=self._loop.report,
            wakeup=self._loop.wakeup.descriptor,
        ):
            for reader in self._readers:
                reader.start()
            transcriber = load()
            self._model = transcriber.name
            self._delay_ms = self._stream_options.delay_ms or transcriber.config.transcription_delay_ms
            self._lines.ready(model=self._model, delay_ms=self._delay_ms)
            return self._loop.run(
                transcriber,
                lambda: all(reader.finished for reader in self._readers),
                n_expected=len(self._readers),
            )

    def status(self) -> dict[str, Any]:
        """Facts about the process and its streams."""
        return {**process_status(model=self._model, delay_ms=self._delay_ms), **self._loop.status()}

    def _stop(self) -> None:
        for reader in self._readers:
            reader.stop()
        self._loop.stop()


def _names(paths: list[str], name: str | None) -> list[tuple[str, str]]:
    """(path, stream name) of each source: `name`, or "stdin", or the file's name, numbered where it comes twice."""
    if name is not None:
        return [(path, name) for path in paths]
    named = []
    seen: dict[str, int] = {}
    for path in paths:
        name = "stdin" if path == "-" else os.path.basename(path)
        seen[name] = seen.get(name, 0) + 1
        named.append((path, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return named
