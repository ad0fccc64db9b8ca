"""`voxpipe listen`: live audio in, JSON lines out."""

import os
import sys
from dataclasses import replace

import click

from voxpipe.audio.encodings import AUTO, ENCODINGS
from voxpipe.cli.options import load_model, model_options
from voxpipe.errors import InputError, UnavailableError, UsageError
from voxpipe.output.events import JsonLines
from voxpipe.service.attach import Attachment, connect, model_of
from voxpipe.service.place import default_socket
from voxpipe.service.protocol import CHUNKS, MAX_ALTERNATIVES, MAX_LAG_S, MAX_SEGMENT_PAUSE_MS, Header

MAX_NAME = 100


@click.command(short_help="Transcribe live audio: stdin, named pipes, raw files.")
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
@click.option(
    "--segment-pause",
    "segment_pause_ms",
    type=click.IntRange(min=80, max=MAX_SEGMENT_PAUSE_MS),
    metavar="MS",
    help="Also report segments: the words between two pauses of at least so many milliseconds.",
)
@click.option(
    "--heartbeat",
    "heartbeat_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Also report every so many seconds that a stream is alive, and how far behind.",
)
@click.option("--logprobs", is_flag=True, help="Also say with each piece of text how sure the model was of it.")
@click.option(
    "--alternatives",
    type=click.IntRange(0, MAX_ALTERNATIVES),
    default=0,
    metavar="N",
    help="Also say with each piece of text what else it might have been: so many of the likeliest.",
)
@click.option("--name", metavar="NAME", help="Of the stream in its events. [default: stdin, or the source's]")
@click.option(
    "--realtime",
    is_flag=True,
    help="The audio is live: block its writer as late as possible (five minutes), and report when the model lags.",
)
@click.option(
    "--max-lag",
    "max_lag_s",
    type=click.FloatRange(min=1, max=MAX_LAG_S),
    metavar="S",
    help="Live audio, never blocked: drop some rather than lag by more than so many seconds, and report the gap.",
)
@click.option(
    "--daemon",
    type=click.Choice(["auto", "never", "require"]),
    default="auto",
    show_default=True,
    help="Use a running `voxpipe serve` for standard input: if there is one, never, or fail without one.",
)
@model_options
def listen(
    sources: tuple[str, ...],
    encoding: str,
    rate: int,
    channels: int,
    segment_pause_ms: int | None,
    heartbeat_s: float | None,
    logprobs: bool,
    alternatives: int,
    name: str | None,
    realtime: bool,
    max_lag_s: float | None,
    daemon: str,
    delay_ms: int | None,
    dtype: str | None,
    model: str | None,
) -> int:
    """Transcribe live audio from SOURCEs: - is stdin (the default), anything else a named pipe or file of raw audio.

    A named pipe is read for ever, each of its writers a stream; everything else until its end. SIGINT and SIGTERM end
    the streams with what was heard, SIGUSR1 writes out pending words.
    """
    paths = list(sources) or ["-"]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path} is named twice; a source can be read only once")
    if name is not None and (len(paths) > 1 or not 0 < len(name) <= MAX_NAME):
        raise UsageError(f"--name names one source, with 1 to {MAX_NAME} characters; several have their own names")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        state = "closed" if sys.stdin is None else "a terminal"
        raise InputError(f"standard input is {state}; pipe audio in or name a source")
    if daemon != "never" and paths == ["-"] and dtype is None:
        header = Header(
            format=encoding,
            rate=rate,
            channels=channels,
            delay_ms=delay_ms,
            segment_pause_ms=segment_pause_ms,
            heartbeat_s=heartbeat_s,
            realtime=realtime,
            max_lag_s=max_lag_s,
            logprobs=logprobs,
            alternatives=alternatives,
            name=name or "stdin",
            source="-",
            framing=CHUNKS,
        )
        status = _attach(header, model, required=daemon == "require")
        if status is not None:
            return status
    elif daemon == "require":
        raise UsageError("a daemon serves standard input alone, at its own --dtype; leave these away")
    from voxpipe.service.listen import Listener
    from voxpipe.service.reader import AudioOptions
    from voxpipe.service.stream import StreamOptions

    audio_options = AudioOptions(encoding, rate, channels)
    audio_options.decoder()  # refuse what cannot be read before loading
    stream_options = StreamOptions(
        delay_ms=delay_ms,
        segment_pause_s=None if segment_pause_ms is None else segment_pause_ms / 1000,
        heartbeat_s=heartbeat_s,
        realtime=realtime,
        max_lag_s=max_lag_s,
        logprobs=logprobs,
        n_alternatives=alternatives,
    )
    listener = Listener(paths, audio_options, stream_options, JsonLines(sys.stdout.buffer), name=name)
    return listener.run(lambda: load_model(model, dtype))


def _attach(header: Header, model: str | None, *, required: bool) -> int | None:
    """Carry standard input to a running daemon, and return the exit status; None if there is none that fits."""
    path = default_socket()
    wanted = model or os.environ.get("VOXPIPE_MODEL")
    connection = connect(path)
    if connection is not None and wanted is not None and not required and model_of(path) != wanted:
        connection.close()
        return None
    if connection is None:
        if required:
            raise UnavailableError(f"no daemon answers at {path}; start one with: voxpipe serve")
        return None
    return Attachment(connection, replace(header, model=wanted), 0, sys.stdout.buffer).run()
