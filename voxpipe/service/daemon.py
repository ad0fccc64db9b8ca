"""`voxpipe serve`: one resident model for every pipe of the machine.

A Unix socket and any number of named pipes feed one loop. Signals: SIGINT and SIGTERM end all streams with what was
heard, SIGHUP reads the settings again without dropping a stream, SIGUSR1 writes out pending words, SIGUSR2 prints the status.
"""

import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import EX_OK, ConfigError, OutputError, VoxpipeError
from voxpipe.output.events import VERSION, JsonLines
from voxpipe.runtime.transcriber import Transcriber
from voxpipe.service.bound import bind
from voxpipe.service.eventfile import EventFile
from voxpipe.service.loop import StreamLoop
from voxpipe.service.metrics import LoopCollector, Metrics
from voxpipe.service.notify import inherited_descriptors, inherited_pipes, notify, watchdog_s
from voxpipe.service.process import process_status
from voxpipe.service.reader import Reader, stream_name
from voxpipe.service.settings import FifoSettings, Settings
from voxpipe.service.signals import signals
from voxpipe.service.sockets import SocketServer
from voxpipe.service.status import print_status
from voxpipe.watch.folder import WatchOptions
from voxpipe.watch.reports import Reports
from voxpipe.watch.watcher import FolderWatcher
from voxpipe.watch.work import FolderWork

log = logging.getLogger(__name__)


LASTING = tuple(  # what a reload does not change
    field.name for field in fields(Settings) if field.name not in ("fifo", "watch")
)


class Daemon:
    """Serves until it is told to stop.

    Args:
        read: reads the settings, again at every SIGHUP.
        events: where the events of pipes go.
    """

    def __init__(self, read: Callable[[], Settings], events: EventFile) -> None:
        self._read = read
        self._settings = read()
        self._events = events
        self._events.on_gone = self._stop
        self._lines = JsonLines(cast(BinaryIO, events))
        self._loop = StreamLoop(
            max_streams=self._settings.max_streams,
            on_turn=self._on_turn,
            on_report=lambda: print_status(self.status()),
        )
        self._collector = LoopCollector(self._loop, max_streams=self._settings.max_streams)
        self._metrics = Metrics(
            self._collector,
            address=self._settings.metrics,
            mode=int(self._settings.socket_mode, 8),
            file=self._settings.metrics_file,
            every_s=self._settings.metrics_file_every_s,
        )
        self._readers: dict[FifoSettings, Reader] = {}
        self._files = FolderWork(jobs=self._settings.watch_jobs, tell=self._loop.wakeup.set)
        self._watchers: dict[WatchOptions, FolderWatcher] = {}
        self._inherited = inherited_descriptors()
        self._server: SocketServer | None = None
        self._reloading = False
        self._ready: dict[str, Any] = {}
        watchdog = watchdog_s()
        self._watchdog_every_s = None if watchdog is None else watchdog / 3
        self._watchdog_at = 0.0

    def run(self, load: Callable[[Settings], Transcriber]) -> int:
        """Load the model, say that it is ready, serve; return the exit status."""
        listening = self._listening_socket()  # first: who cannot have it need not load anything
        try:
            self._metrics.start()
            with signals(
                on_stop=self._stop,
                on_flush=self._loop.flush,
                on_status=self._loop.report,
                on_reload=self._ask_for_reload,
                wakeup=self._loop.wakeup.descriptor,
            ):
                notify(STATUS="loading the model", EXTEND_TIMEOUT_USEC=600_000_000)
                transcriber = load(self._settings)
                if not self._loop.stopping:
                    _warm_up(transcriber)
                if self._loop.stopping:
                    return EX_OK
                delay_ms = self._settings.delay_ms or transcriber.config.transcription_delay_ms
                self._ready = {"v": VERSION, "model": transcriber.name, "delay_ms": delay_ms}
                self._collector.transcriber, self._collector.delay_ms = transcriber, delay_ms
                self._open(self._settings)  # who hears that it is ready finds the pipes
                self._loop.files = self._files
                self._lines.ready(model=transcriber.name, delay_ms=delay_ms)
                if listening is not None:
                    self._server = SocketServer(
                        listening,
                        self._loop,
                        self._settings.stream_options(),
                        ready=self._ready,
                        status=self.status,
                    )
                    self._server.start()
                if self._loop.stopping:  # said while these were opened
                    self._end_reading()
                else:
                    notify(READY=1, STATUS=f"ready, model {transcriber.name}")
                try:
                    n_expected = len(self._readers) + transcriber.network.n_spare
                    return self._loop.run(
                        transcriber, lambda: False, n_expected=min(self._settings.max_streams, n_expected)
                    )
                finally:
                    if self._server is not None:
                        self._server.stop()
                        self._server.close()
                    self._events.retry()
        finally:
            self._metrics.close()
            if listening is not None:
                listening.close()

    def status(self) -> dict[str, Any]:
        """Facts about the process and its streams, from any thread."""
        return {
            **process_status(model=self._ready.get("model"), delay_ms=self._ready.get("delay_ms")),
            "max_streams": self._settings.max_streams,
            **self._loop.status(),
            "folders": self._files.status(),
        }

    def _listening_socket(self) -> socket.socket | None:
        for descriptor in self._inherited:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return socket.socket(fileno=descriptor)
        if not self._settings.socket:
            return None
        return bind(Path(self._settings.socket), int(self._settings.socket_mode, 8))

    def _open(self, settings: Settings) -> None:
        """Read the pipes of `settings` and watch its folders, and no others.

        Raises:
            VoxpipeError: one of them cannot be had; all is as before.
        """
        readers, watchers = self._readers_of(settings), self._watchers_of(settings)
        dropped = [reader for reader in self._readers.values() if reader not in readers.values()]
        added = [reader for reader in readers.values() if reader not in self._readers.values()]
        self._settings, self._readers = settings, readers
        for reader in dropped:
            reader.stop()
        for reader in added:
            reader.start()
        gone = [watcher for watcher in self._watchers.values() if watcher not in watchers.values()]
        new = [watcher for watcher in watchers.values() if watcher not in self._watchers.values()]
        self._watchers = watchers
        for watcher in gone:
            if watcher.failure is None:  # otherwise it has been removed
                self._files.remove(watcher)
        for watcher in new:
            self._files.add(watcher)
        if self._loop.stopping:  # said in between, to readers that are not ours any more
            self._end_reading()

    def _readers_of(self, settings: Settings) -> dict[FifoSettings, Reader]:
        """Readers of the pipes of `settings` and of those that the service manager handed over, the new ones not started."""
        inherited = inherited_pipes(self._inherited)
        named = {fifo.path for fifo in settings.fifo}
        wanted = (*settings.fifo, *(FifoSettings(path) for path in inherited if path not in named))
        readers = {fifo: reader for fifo, reader in self._readers.items() if fifo in wanted and not reader.is_stale}
        for fifo in wanted:
            if fifo in readers:
                continue
            if fifo.path not in inherited:
                make_fifo(Path(fifo.path), int(fifo.mode, 8))
            readers[fifo] = Reader(
                fifo.path,
                stream_name(fifo.path, {reader.stream_name for reader in readers.values()}),
                self._loop,
                self._lines,
                fifo.audio_options(),
                settings.stream_options(fifo),
                inherited=inherited.get(fifo.path),
            )
        return readers

    def _watchers_of(self, settings: Settings) -> dict[WatchOptions, FolderWatcher]:
        """Watchers of the folders of `settings`, the new ones not started."""
        watchers = {}
        for options in settings.folders():
            watcher = self._watchers.get(options)
            if watcher is None or watcher.failure is not None:
                watcher = FolderWatcher(
                    options,
                    Reports(),
                    model=self._ready["model"],
                    delay_ms=self._ready["delay_ms"],
                    tell=self._loop.wakeup.set,
                )
            watchers[options] = watcher
        return watchers

    def _on_turn(self) -> float | None:
        """Between two turns of the loop; returns the seconds within which it wants to be called again."""
        if self._reloading:
            self._reloading = False
            if not self._loop.stopping:
                self._reload()
        retry_s = self._events.retry()
        if self._watchdog_every_s is None:
            return retry_s
        if time.monotonic() >= self._watchdog_at:
            self._watchdog_at = time.monotonic() + self._watchdog_every_s
            notify(WATCHDOG=1, STATUS=f"{self._loop.n_streams} streams, model {self._ready['model']}")
        return min(retry_s or self._watchdog_every_s, max(0.0, self._watchdog_at - time.monotonic()))

    def _reload(self) -> None:
        notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            settings = self._read()
            self._open(replace(self._settings, fifo=settings.fifo, watch=settings.watch))
            for key in LASTING:
                if getattr(settings, key) != getattr(self._settings, key):
                    log.warning("%s changes with the next start only", key)
            self._loop.tally.reloads["succeeded"] += 1
        except VoxpipeError as exc:
            self._loop.tally.reloads["failed"] += 1
            log.error("the settings stay as they were: %s", exc)
        notify(READY=1)

    def _stop(self) -> None:
        notify(STOPPING=1)
        self._end_reading()
        self._loop.stop()

    def _end_reading(self) -> None:
        for reader in self._readers.values():
            reader.stop()
        if self._server is not None:
            self._server.stop()

    def _ask_for_reload(self) -> None:
        self._reloading = True
        self._loop.wakeup.set()


def make_fifo(path: Path, mode: int) -> None:
    """Make a named pipe unless there is one.

    Raises:
        ConfigError: something else is there.
        OutputError: it cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
            os.chmod(path, mode)
        if not stat.S_ISFIFO(path.stat().st_mode):
            raise ConfigError(f"{path} is no named pipe; name another path or remove it")
    except OSError as exc:
        raise OutputError(f"cannot make the named pipe {path}: {exc.strerror}") from exc


def _warm_up(transcriber: Transcriber) -> None:
    """A second of silence, so that the first client does not wait for what is prepared once."""
    transcriber.generate(np.zeros(SAMPLE_RATE, np.float32))
