"""`voxpipe`: the group of commands, and the one place where errors become a line and a status."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from voxpipe import __version__
from voxpipe.cli.bench import bench
from voxpipe.cli.captions import captions
from voxpipe.cli.doctor import doctor
from voxpipe.cli.listen import listen
from voxpipe.cli.models import convert, info, list_models, pull, remove
from voxpipe.cli.serve import serve, status
from voxpipe.cli.service import service
from voxpipe.cli.top import top
from voxpipe.cli.transcribe import transcribe
from voxpipe.cli.watch import watch
from voxpipe.errors import EX_IOERR, EX_OK, EX_USAGE, VoxpipeError
from voxpipe.output.events import silence_output

EXAMPLES = """\b
Examples:
  ffmpeg -nostdin -v error -i talk.mp4 -f s16le -ar 16000 -ac 1 - | voxpipe
  arecord -q -f S16_LE -r 16000 -c 1 -t raw | voxpipe --delay 240
  sox -q talk.flac -t wav - | voxpipe | jq -rj 'select(.type == "delta").text'
  voxpipe transcribe talk.flac
"""


class ReaderGone(Exception):
    """The reader of our output has seen enough, which is no failure; click would end with status 1 on BrokenPipeError."""


class DefaultToListen(click.Group):
    """`voxpipe [OPTIONS] [SOURCE…]` is `voxpipe listen [OPTIONS] [SOURCE…]`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise ReaderGone from exc

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own_options = {"--help", "-h", "--version"}
        if not args and ctx.resilient_parsing:  # the shell completes the first word
            return super().parse_args(ctx, args)
        if not args and sys.stdin is not None and sys.stdin.isatty():
            args = ["--help"]
        elif not args or (args[0] not in own_options and self._is_for_listen(args[0])):
            args = ["listen", *args]
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError as exc:  # --help
            raise ReaderGone from exc

    def _is_for_listen(self, word: str) -> bool:
        """Whether the first word is an option or a source; one that is neither is a command, maybe mistyped."""
        is_source = word not in self.commands and ("/" in word or os.path.exists(word))
        return word.startswith("-") or is_source


@click.group(
    cls=DefaultToListen,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXAMPLES,
    subcommand_metavar="[COMMAND] [OPTIONS] [SOURCE]...",
)
@click.version_option(__version__)
def cli() -> None:
    """Streaming speech-to-text: raw audio on stdin, JSON lines on stdout.

    Without a command, `voxpipe` listens to stdin: 16 kHz mono s16le, or anything with a WAV header.
    """


cli.add_command(listen)
cli.add_command(transcribe)
cli.add_command(watch)
cli.add_command(serve)
cli.add_command(status)
cli.add_command(top)
cli.add_command(captions)
cli.add_command(service)
cli.add_command(doctor)
cli.add_command(pull)
cli.add_command(list_models)
cli.add_command(info)
cli.add_command(remove)
cli.add_command(convert)
cli.add_command(bench)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    _fill_standard_descriptors()
    sys.exit(run(args))


def _fill_standard_descriptors() -> None:
    """Open nothing where stdin, stdout or stderr is closed, or the next file we open would become it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def run(args: Sequence[str] | None = None, **extra: Any) -> int:
    """Run the command line and return its status; every failure of the user's making is one line on stderr."""
    logging.basicConfig(format="voxpipe: %(message)s", level=logging.WARNING, stream=sys.stderr)
    if sys.stdout is None:  # closed by whoever started us
        click.echo("voxpipe: standard output is closed; there is nowhere to write", err=True)
        return EX_IOERR
    try:
        status = cli.main(args=args, prog_name="voxpipe", standalone_mode=False, **extra)
        return status if isinstance(status, int) else EX_OK
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "voxpipe"
        click.echo(f"voxpipe: {exc.format_message()} (see {command} --help)", err=True)
        return EX_USAGE
    except click.Abort:
        return 130
    except VoxpipeError as exc:
        click.echo(f"voxpipe: {exc}", err=True)
        return exc.status
    except ReaderGone:
        silence_output(sys.stdout.buffer)
        return EX_OK
    except OSError as exc:
        click.echo(f"voxpipe: cannot write the output: {exc.strerror or exc}", err=True)
        silence_output(sys.stdout.buffer)
        return EX_IOERR
