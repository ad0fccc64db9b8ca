"""What Prometheus reads of a daemon: over HTTP on loopback or a Unix socket, and as a file for node_exporter.

Nothing is counted here; every reading is made of the loop's tally and of the streams at that moment. Streams come and go
and their names are their clients', so no figure is kept for a single one.
"""

import gzip
import logging
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult

import mlx.core as mx
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from voxpipe import __version__
from voxpipe.errors import OutputError
from voxpipe.service.bound import bind
from voxpipe.service.loop import StreamLoop
from voxpipe.service.process import resident_bytes, uptime_s
from voxpipe.service.tally import Histogram
from voxpipe.service.web import LocalHandler, LocalServer, listen_on, parse_address

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber

log = logging.getLogger(__name__)

# given as 0 from the beginning, so that the first of a kind is an increase, too
REASONS = ("eof", "signal", "error")
WARNINGS = ("gap", "ignored-bytes", "lag", "odd-bytes", "silent-input", "stall-recovered")
ERRORS = ("audio", "input")
REFUSALS = ("audio", "busy", "usage")
RELOADS = ("failed", "succeeded")


class LoopCollector(Collector):
    """Reads a loop.

    Args:
        max_streams: at most so many at once.

    Attributes:
        transcriber, delay_ms: what the loop runs, once it is loaded.
    """

    def __init__(self, loop: StreamLoop, *, max_streams: int) -> None:
        self._loop = loop
        self._max_streams = max_streams
        self.transcriber: Transcriber | None = None
        self.delay_ms: int | None = None

    def collect(self) -> Iterator[Metric]:
        yield from self._about()
        yield from self._streams()
        yield from self._work()
        yield from self._memory()

    def _about(self) -> Iterator[Metric]:
        build = {"version": __version__, "python": platform.python_version(), "mlx": version("mlx")}
        yield InfoMetricFamily("voxpipe_build", "What is running.", {**build, "backend": mx.default_device().type.name})
        if self.transcriber is not None:
            model = {"model": self.transcriber.name, "delay_ms": str(self.delay_ms)}
            yield InfoMetricFamily("voxpipe_model", "The model, once it is loaded.", model)
        yield GaugeMetricFamily("voxpipe_uptime_seconds", "Since the process began.", uptime_s())
        reloads = self._loop.tally.reloads
        yield _counter("voxpipe_reloads", "Readings of the settings after SIGHUP.", reloads, "result", RELOADS)

    def _streams(self) -> Iterator[Metric]:
        tally = self._loop.tally
        streams = self._loop.status()["streams"]
        lag_s = max((one["lag_ms"] / 1000 for one in streams), default=0.0)
        blank_s = max((one["blank_run_s"] for one in streams), default=0.0)
        yield GaugeMetricFamily("voxpipe_streams", "Streams that are being decoded.", len(streams))
        yield GaugeMetricFamily("voxpipe_streams_limit", "Streams that there can be at once.", self._max_streams)
        yield GaugeMetricFamily(
            "voxpipe_subscribers", "Clients that watch the events.", self._loop.broadcast.n_subscribers
        )
        yield CounterMetricFamily("voxpipe_streams_started", "Streams that began to be decoded.", tally.started)
        yield _counter("voxpipe_streams_ended", "Streams that have ended.", tally.ended, "reason", REASONS)
        yield _counter("voxpipe_streams_refused", "Streams turned away.", tally.refused, "code", REFUSALS)
        yield _counter("voxpipe_warnings", "Warnings of streams.", tally.warnings, "code", WARNINGS)
        yield _counter("voxpipe_errors", "Errors of streams that were being decoded.", tally.errors, "code", ERRORS)
        yield GaugeMetricFamily("voxpipe_lag_max_seconds", "Audio that waits, of the stream furthest behind.", lag_s)
        yield _histogram("voxpipe_lag_seconds", "Audio that waited when a stream had had its turn.", tally.lags_s)
        yield GaugeMetricFamily("voxpipe_blank_run_max_seconds", "Longest silence of the model now.", blank_s)

    def _work(self) -> Iterator[Metric]:
        tally = self._loop.tally
        yield CounterMetricFamily("voxpipe_audio_seconds", "Audio decoded.", tally.audio_s)
        yield _histogram("voxpipe_turn_seconds", "Work for one batch of streams.", tally.turns_s)
        rtf = GaugeMetricFamily("voxpipe_real_time_factor", "Work per audio, over about a minute; less is better.")
        if tally.rtf is not None:
            rtf.add_metric([], tally.rtf)
        yield rtf
        yield CounterMetricFamily("voxpipe_tokens", "Tokens sampled, one per 80 ms.", tally.n_tokens)
        yield CounterMetricFamily(
            "voxpipe_guarded_tokens", "Tokens at which a rut of blanks was broken.", tally.n_guarded
        )
        yield CounterMetricFamily("voxpipe_flushes", "Flushes of a stream asked for.", tally.n_flushes)
        if self.transcriber is not None:
            runner = self.transcriber.runner
            yield CounterMetricFamily("voxpipe_decoder_calls", "Calls of the decoder.", runner.n_calls)
            yield CounterMetricFamily("voxpipe_guesses", "Tokens guessed to save calls.", runner.n_guessed)
            yield CounterMetricFamily("voxpipe_guesses_right", "Guesses that were right.", runner.n_right)

    def _memory(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("voxpipe_mlx_active_bytes", "Memory in MLX's arrays.", mx.get_active_memory())
        yield GaugeMetricFamily("voxpipe_mlx_cache_bytes", "Memory that MLX keeps for later.", mx.get_cache_memory())
        yield GaugeMetricFamily("voxpipe_mlx_peak_bytes", "Most memory in MLX's arrays so far.", mx.get_peak_memory())
        if sys.platform != "linux":  # there, ProcessCollector says it
            yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes())


def _counter(name: str, help: str, values: Mapping[str, int], label: str, known: Sequence[str]) -> Metric:
    family = CounterMetricFamily(name, help, labels=[label])
    for key, value in sorted({**dict.fromkeys(known, 0), **values}.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, help: str, histogram: Histogram) -> Metric:
    counts = list(accumulate(list(histogram.counts)))
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return HistogramMetricFamily(name, help, list(zip(bounds, counts, strict=True)), histogram.sum)


class Metrics:
    """Gives readings away, from `start` to `close`.

    Args:
        address: where Prometheus asks, if anywhere: loopback and a port, or the absolute path of a socket.
        mode: of that socket.
        file: what node_exporter reads, if anything, written anew every `every_s` seconds.
    """

    def __init__(
        self, collector: LoopCollector, *, address: str | None, mode: int, file: str | None, every_s: float
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._address = address
        self._mode = mode
        self._file = None if file is None else Path(file)
        self._every_s = every_s
        self._server: LocalServer | None = None
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        """Begin.

        Raises:
            OutputError: the address cannot be had, or the file not be written.
        """
        if self._address is not None:
            is_path = self._address.startswith("/")
            listening = bind(Path(self._address), self._mode) if is_path else listen_on(*parse_address(self._address))
            self._server = LocalServer(listening, _handler(self._registry))
            self._server.start()
        if self._file is not None:
            try:
                self._write(self._file)
            except OSError as exc:
                raise OutputError(f"cannot write the metrics to {self._file}: {exc.strerror}") from exc
            self._writer = threading.Thread(
                target=self._write_regularly, args=(self._file,), name="metrics", daemon=True
            )
            self._writer.start()

    def close(self) -> None:
        """End; the file goes, as its figures are not true any more."""
        self._ended.set()
        if self._server is not None:
            self._server.close()
        if self._writer is not None and self._file is not None:
            self._writer.join()
            self._file.unlink(missing_ok=True)

    def _write_regularly(self, path: Path) -> None:
        failed = False
        while not self._ended.wait(self._every_s):
            try:
                self._write(path)
                failed = False
            except OSError as exc:
                if not failed:  # once, however long the disk stays full
                    log.warning("cannot write the metrics to %s: %s", path, exc.strerror)
                failed = True

    def _write(self, path: Path) -> None:
        """Replace the file in one go; node_exporter is another user and passes over names that do not end in .prom."""
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            new.write_bytes(generate_latest(self._registry))
            new.chmod(0o644)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def _handler(registry: CollectorRegistry) -> type[LocalHandler]:
    class Handler(LocalHandler):
        def get(self, url: SplitResult, query: dict[str, list[str]]) -> None:
            if url.path != "/metrics":
                self.reply(404, b"the metrics are at /metrics\n")
                return
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            body = encode(registry)
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                self.reply(200, gzip.compress(body, 1), content_type, Content_Encoding="gzip")
            else:
                self.reply(200, body, content_type)

    return Handler
