"""`voxpipe listen`: sources named on the command line, events on one output, until they end or a signal says so.

Knows nothing of click.
"""

from collections.abc import Callable
from typing import Any

from voxpipe.errors import EX_OK
from voxpipe.output.events import JsonLines
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.loop import StreamLoop
from voxpipe.service.process import process_status
from voxpipe.service.reader import AudioOptions, Reader, stream_name
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
        self._readers: list[Reader] = []
        for path in paths:
            stream = name or stream_name(path, {reader.stream_name for reader in self._readers})
            self._readers.append(Reader(path, stream, self._loop, lines, audio_options, stream_options))

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
            status = self._loop.run(
                transcriber,
                lambda: all(reader.finished for reader in self._readers),
                n_expected=len(self._readers),
            )
        if self._loop.stopping:
            return status
        return next((one for one in (status, *(reader.status for reader in self._readers)) if one), EX_OK)

    def status(self) -> dict[str, Any]:
        """Facts about the process and its streams."""
        return {**process_status(model=self._model, delay_ms=self._delay_ms), **self._loop.status()}

    def _stop(self) -> None:
        for reader in self._readers:
            reader.stop()
        self._loop.stop()
