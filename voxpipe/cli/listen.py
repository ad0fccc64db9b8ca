"""`voxpipe listen`: live audio in, JSON lines out."""

import sys

import click

from voxpipe.audio.decoder import AUTO, AudioDecoder
from voxpipe.audio.pcm import ENCODINGS
from voxpipe.cli.options import load_model, model_options
from voxpipe.errors import InputError, UsageError
from voxpipe.output.events import JsonLines


@click.command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@click.option(
    "--format",
    "encoding",
    type=click.Choice([AUTO, *ENCODINGS]),
    default=AUTO,
    show_default=True,
    help="Encoding of raw samples; auto is s16le unless there is a WAV header.",
)
@click.option(
    "--rate", type=click.IntRange(min=1), default=16_000, show_default=True, help="Sample rate of raw audio in Hz."
)
@click.option(
    "--channels", type=click.IntRange(min=1), default=1, show_default=True, help="Channels of raw audio; mixed down."
)
@model_options
def listen(
    sources: tuple[str, ...],
    encoding: str,
    rate: int,
    channels: int,
    delay_ms: int | None,
    dtype: str | None,
    model: str | None,
) -> int:
    """Transcribe live audio from SOURCEs: - is stdin (the default), anything else a named pipe or file of raw audio.

    A named pipe is read for ever, each of its writers a stream; everything else until its end. SIGINT and SIGTERM end
    the streams with what was heard, SIGUSR1 writes out pending words.
    """
    from voxpipe.service.listen import Listener
    from voxpipe.service.reader import ListenOptions

    AudioDecoder.from_options(encoding, rate=rate, channels=channels)  # refuse what cannot be read before loading
    paths = list(sources) or ["-"]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path} is named twice; a source can be read only once")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        state = "closed" if sys.stdin is None else "a terminal"
        raise InputError(f"standard input is {state}; pipe audio in or name a source")
    options = ListenOptions(encoding=encoding, rate=rate, channels=channels, delay_ms=delay_ms)
    listener = Listener(paths, options, JsonLines(sys.stdout.buffer))
    return listener.run(lambda: load_model(model, dtype))
