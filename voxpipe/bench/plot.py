"""Step time and throughput over the number of streams, as a PNG or SVG file; needs the extra `plot`."""

import importlib.util
from pathlib import Path
from typing import Any

from voxpipe.bench.report import Report
from voxpipe.config import MS_PER_TOKEN
from voxpipe.errors import OutputError, UnavailableError, UsageError

SUFFIXES = (".png", ".svg")
SIZE_INCHES = (10.0, 5.0)
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d9730d", "#3a8a3a", "#666666"


def check_plot(path: Path) -> None:
    """Raise before an hour of measuring what would be raised behind it.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        UnavailableError: matplotlib is not installed.
        OutputError: there is no such directory.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot plot to {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError("the plot needs matplotlib; install it with: pip install 'voxpipe[plot]'")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no directory {path.parent}")


def plot(report: Report, path: Path) -> None:
    """Draw the report's streams into `path`, whose suffix says how.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure: Any = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    steps, throughput = figure.subplots(1, 2)
    n = [one.n for one in report.streams]
    steps.plot(n, [one.p95_ms for one in report.streams], "s--", color=ORANGE, label="95th percentile")
    steps.plot(n, [one.p50_ms for one in report.streams], "o-", color=BLUE, label="median")
    steps.axhline(MS_PER_TOKEN, color=GREY, linestyle=":", label="real time: 80 ms")
    steps.set(title="Time to decode 80 ms of every stream", ylabel="ms per tick")
    steps.set_yscale("log")
    throughput.plot(n, [one.files_audio_s_per_s for one in report.streams], "^-", color=GREEN, label="files together")
    throughput.plot(n, [one.audio_s_per_s for one in report.streams], "o-", color=BLUE, label="live, together")
    throughput.plot(
        n, [one.in_turn_audio_s_per_s for one in report.streams], "s--", color=ORANGE, label="live, one by one"
    )
    throughput.plot(n, n, ":", color=GREY, label="needed for real time")
    throughput.set(title="Throughput of all streams", ylabel="seconds of audio per second")
    throughput.set_ylim(
        bottom=0, top=1.15 * max(max(one.audio_s_per_s, one.files_audio_s_per_s) for one in report.streams)
    )
    for axes in (steps, throughput):
        axes.set_xlabel("streams")
        axes.set_xscale("log", base=2)
        axes.set_xticks(n, [str(one) for one in n])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    steps.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    steps.yaxis.set_major_formatter("{x:g}")
    figure.suptitle(
        f"{report.model}, {report.n_parameters / 1e6:.0f} M parameters, {report.dtype}, on {report.machine}",
        fontsize=10,
    )
    try:
        figure.savefig(path, dpi=150)
    except OSError as exc:
        raise OutputError(f"cannot write {path}: {exc.strerror or exc}") from exc
