"""Options of the commands that make files of recordings: transcribe and watch."""

from typing import Any

import click

from voxpipe.cli.options import Command
from voxpipe.output.formats import FORMATS


class Formats(click.ParamType[tuple[str, ...]]):
    """Names of formats, with commas between them."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(name.strip().lower() for name in value.split(",")) if isinstance(value, str) else tuple(value)
        for name in names:
            if name not in FORMATS:
                self.fail(f"there is no format {name!r}; choose from {', '.join(FORMATS)}", param, ctx)
        return names


def recording_options(command: Command) -> Command:
    """Add --format, --channels and --jobs."""
    command = click.option(
        "-j",
        "--jobs",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="Files decoded at once, as one batch; each needs memory for its caches.",
    )(command)
    command = click.option(
        "--channels",
        type=click.Choice(["mix", "split"]),
        default="mix",
        show_default=True,
        help="Mix them down, or make a transcript of each: NAME.ch1.txt, NAME.ch2.txt.",
    )(command)
    return click.option(
        "-f",
        "--format",
        "formats",
        type=Formats(),
        metavar="FORMAT[,FORMAT]...",
        multiple=True,
        default=("txt",),
        help="txt (a line per pause), srt, vtt, json (words with times), jsonl (the events of `listen`). [default: txt]",
    )(command)
