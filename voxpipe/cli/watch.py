"""`voxpipe watch`: recordings that come into a folder, transcribed."""

import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from voxpipe.cli.cluster import check_send, cluster_options, connect
from voxpipe.cli.options import load_model, model_options
from voxpipe.cli.progress import Estimate, ProgressBar, progress_bar
from voxpipe.cli.recordings import Awake, recording_options
from voxpipe.errors import UsageError
from voxpipe.output.events import JsonLines

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress
    from voxpipe.watch.job import WatchJob

REDRAW_S = 1.0


class OnDone(click.ParamType[str]):
    """What becomes of a recording: keep, or move:DIR."""

    name = "keep|move:DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from voxpipe.watch.folder import parse_on_done

        try:
            parse_on_done(value)
        except UsageError as exc:
            self.fail(str(exc), param, ctx)
        return str(value)


@click.command(short_help="Transcribe the recordings in folders, and those that come.")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output-dir",
    metavar="DIR",
    type=click.Path(path_type=str),
    help="Folder for outputs; sub-folders are mirrored in it. [default: beside the recordings]",
)
@click.option("--recursive/--no-recursive", default=True, show_default=True, help="Look into sub-folders.")
@click.option("--once", is_flag=True, help="End when everything that is there is done.")
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="S",
    help="A file is complete when it has not changed for so many seconds, or was renamed into place.",
)
@click.option(
    "--rescan",
    "rescan_s",
    type=click.FloatRange(min=0.1),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Look at everything every so many seconds, whatever the system reports.",
)
@click.option(
    "--poll", is_flag=True, help="Do not rely on reports of changes; chosen by itself on network file systems."
)
@click.option(
    "--pattern", multiple=True, metavar="GLOB", help="What is a recording. [default: usual names of audio and video]"
)
@click.option("--ignore", multiple=True, metavar="GLOB", help="What is none, or a folder not to look into.")
@click.option(
    "--on-done",
    type=OnDone(),
    metavar="keep|move:DIR",
    default="keep",
    show_default=True,
    help="What becomes of a recording when its outputs are there.",
)
@recording_options
@cluster_options
@model_options
def watch(
    folders: tuple[str, ...],
    output_dir: str | None,
    formats: tuple[tuple[str, ...], ...],
    recursive: bool,
    once: bool,
    settle_s: float,
    rescan_s: float,
    poll: bool,
    pattern: tuple[str, ...],
    ignore: tuple[str, ...],
    on_done: str,
    channels: str,
    jobs: int,
    cluster: str | None,
    send: bool,
    delay_ms: int | None,
    dtype: str | None,
    model: str | None,
) -> int:
    """Transcribe the recordings in DIRs, and those that come, as soon as each is complete.

    The folder is the state: a recording is done when its outputs are there and were made of it as it is, by this model.
    Delete an output to have it made again. What cannot be transcribed gets a NAME.error.json. Several watchers may share a
    folder. SIGINT and SIGTERM stop and leave nothing half-written, SIGHUP looks at everything at once.
    """
    from voxpipe.service.watch import WatchService
    from voxpipe.watch.filesystems import real_path
    from voxpipe.watch.folder import WatchOptions
    from voxpipe.watch.selection import RECORDINGS

    check_send(cluster, send=send)
    roots = [real_path(folder) for folder in folders]
    for folder, root in zip(folders, roots, strict=True):
        if roots.count(root) > 1:
            raise UsageError(f"{folder} is named twice; a folder is watched once")
    names = tuple(dict.fromkeys(name for group in formats for name in group))
    watched = [
        WatchOptions(
            path=folder,
            output_dir=output_dir,
            formats=names,
            recursive=recursive,
            settle_s=settle_s,
            rescan_s=rescan_s,
            poll=poll,
            pattern=pattern or RECORDINGS,
            ignore=ignore,
            on_done=on_done,
            channels=channels,
            delay_ms=delay_ms,
            once=once,
        )
        for folder in folders
    ]
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
    with Awake() as awake, progress_bar(Estimate([]), shown=is_shown) as bar:
        shown = WatchDisplay(bar, awake)
        service = WatchService(
            watched,
            jobs=jobs,
            lines=JsonLines(sys.stdout.buffer),
            display=shown,
            on_progress=shown.read,
            on_turn=shown.draw,
        )
        if cluster is None:
            return service.run(lambda: load_model(model, dtype))
        with connect(cluster, model, dtype) as connected:
            return service.run_on(connected, send=send)


class WatchDisplay:
    """Shows how far the recordings are that have come since there was nothing to do, and keeps the machine awake for them."""

    def __init__(self, bar: ProgressBar, awake: Awake) -> None:
        self._bar = bar
        self._awake = awake
        self._estimate = Estimate([])
        self._indices: dict[str, int] = {}
        self._lock = threading.Lock()  # recordings come and go on the folders' threads

    def queue(self, path: str, size: int) -> None:
        with self._lock:
            if not self._indices:
                self._estimate = Estimate([])
                self._bar.restart(self._estimate)
            if path not in self._indices:
                self._indices[path] = self._estimate.add(size)

    def end(self, path: str) -> None:
        with self._lock:
            index = self._indices.pop(path, None)
            if index is not None:
                self._estimate.end(index)

    def read(self, job: "WatchJob", progress: "Progress") -> None:
        with self._lock:
            index = self._indices.get(job.path)
            if index is not None:
                self._estimate.open(index, None if job.info is None else job.info.duration_s)
                self._estimate.read(index, progress.audio_s)

    def draw(self) -> float | None:
        """Draw, and say when to draw again."""
        with self._lock:
            self._awake.keep(bool(self._indices))
            if self._indices:
                self._bar.draw()
                return REDRAW_S
            self._bar.clear()
            return None
