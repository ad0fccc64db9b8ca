"""What the commands that make files of recordings share, transcribe and watch: options, and a Mac that stays awake."""

import os
import subprocess
from contextlib import suppress
from typing import Any, Self

import click

from voxpipe.cli.options import Command
from voxpipe.output.formats import FORMATS

CAFFEINATE = "/usr/bin/caffeinate"  # on macOS alone


class Formats(click.ParamType[tuple[str, ...]]):
    """Names of formats, with commas between them."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(name.strip().lower() for name in value.split(",")) if isinstance(value, str) else tuple(value)
        for name in names:
            if name not in FORMATS:
                self.fail(f"there is no format {name!r}; choose from {', '.join(FORMATS)}", param, ctx)
        return names


class Awake:
    """Keeps an idle Mac from going to sleep, while the block lasts or as long as `keep` says."""

    def __init__(self) -> None:
        self._caffeinate: subprocess.Popen[bytes] | None = None

    def keep(self, wanted: bool) -> None:
        if wanted and self._caffeinate is None and os.path.exists(CAFFEINATE):
            command = [CAFFEINATE, "-i", "-w", str(os.getpid())]  # which ends it even if we are killed
            nothing = subprocess.DEVNULL
            with suppress(OSError):
                self._caffeinate = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
        elif not wanted and self._caffeinate is not None:
            self._caffeinate.terminate()
            self._caffeinate.wait()
            self._caffeinate = None

    def __enter__(self) -> Self:
        self.keep(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(False)


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
