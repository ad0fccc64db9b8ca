"""`voxpipe bench`: what this machine can do with a model."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from voxpipe.cli.options import load_model, model_options


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of streams, with commas between them; they come in ascending order, each once."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(sorted({int(part) for part in value.split(",")}))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 1,4,16", param, ctx)
        if counts[0] < 1:
            self.fail(f"{counts[0]} is not a number of streams; the least is 1", param, ctx)
        return counts


@click.command(short_help="Measure a file, a live stream, and many streams as one batch.")
@click.argument("audio", required=False, type=click.Path(path_type=str))
@model_options
@click.option(
    "--streams", type=Counts(), default="1,2,4,8,16,32", show_default=True, help="Numbers of live streams to try."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=2),
    default=10.0,
    show_default=True,
    help="Audio of each measurement; one that is slower than real time ends after so many seconds.",
)
@click.option(
    "--context",
    "context_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds that live streams have heard before they are timed: their caches are that full.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw them to a .png or .svg file as well.")
def bench(
    audio: str | None,
    model: str | None,
    dtype: str | None,
    delay_ms: int | None,
    streams: tuple[int, ...],
    seconds: float,
    context_s: float,
    as_json: bool,
    plot_path: Path | None,
) -> None:
    """Measure how fast a model runs here: a file, a live stream, and many live streams as one batch.

    They hear AUDIO, repeated to length, or else noise that is modulated like speech. Let nothing else run meanwhile.
    """
    from voxpipe.bench import plot, report, sound
    from voxpipe.bench.load import Load

    if plot_path is not None:
        plot.check_plot(plot_path)
    samples = sound.noise_bursts(seconds) if audio is None else sound.read_clip(audio, seconds)
    transcriber, load_s = report.timed_load(lambda: load_model(model, dtype))

    def say(what: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"measuring {what} …", err=True)

    result = report.measure(
        transcriber,
        Load(samples, context_s, delay_ms),
        n_streams=streams,
        audio="noise bursts made for this (no AUDIO was given)" if audio is None else Path(audio).name,
        load_s=load_s,
        say=say,
    )
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else report.table(result))
    if plot_path is not None:
        plot.plot(result, plot_path)
