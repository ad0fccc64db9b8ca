"""`voxpipe transcribe`: files in, text or JSON lines out."""

import logging
import sys
from typing import TYPE_CHECKING

import click

from voxpipe.cli.options import load_model, model_options
from voxpipe.errors import EX_OK, VoxpipeError
from voxpipe.output.events import JsonLines, StreamEvents

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber

log = logging.getLogger(__name__)


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-f",
    "--format",
    "output_format",
    type=click.Choice(["txt", "jsonl"]),
    default="txt",
    show_default=True,
    help="Plain text, a line per pause, or the events of `listen`.",
)
@model_options
def transcribe(
    files: tuple[str, ...], output_format: str, delay_ms: int | None, dtype: str | None, model: str | None
) -> int:
    """Transcribe audio FILEs to stdout, each as it is read: wav, flac, ogg, opus, mp3, and with ffmpeg all others.

    A file that cannot be read is named on stderr and the next one follows; the exit status is that of the first failure.
    """
    transcriber = load_model(model, dtype)
    if output_format == "jsonl":
        lines = JsonLines(sys.stdout.buffer)
        lines.ready(model=transcriber.name, delay_ms=delay_ms or transcriber.config.transcription_delay_ms)
    status = EX_OK
    for path in files:
        try:
            if output_format == "jsonl":
                _write_events(transcriber, path, delay_ms, lines)
            else:
                _write_text(transcriber, path, delay_ms)
        except VoxpipeError as exc:
            message = str(exc) if path in str(exc) else f"{path}: {exc}"
            log.error("%s", message)
            status = status or exc.status
    return status


def _write_text(transcriber: "Transcriber", path: str, delay_ms: int | None) -> None:
    from voxpipe.output.transcript import SEGMENT_PAUSE_S

    end: float | None = None
    try:
        for delta in transcriber.generate(path, stream=True, transcription_delay_ms=delay_ms):
            is_pause = end is not None and delta.start - end >= SEGMENT_PAUSE_S
            text = delta.lstrip() if end is None or is_pause else str(delta)
            _write_out(("\n" if is_pause else "") + text)
            end = delta.end
    finally:
        if end is not None:
            _write_out("\n")


def _write_out(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _write_events(transcriber: "Transcriber", path: str, delay_ms: int | None, lines: JsonLines) -> None:
    from voxpipe.audio.files import read_blocks
    from voxpipe.runtime.transcriber import transcribe as deltas_of

    session = transcriber.create_streaming_session(transcription_delay_ms=delay_ms)
    events = StreamEvents(lines, stream=path, source=path)
    reason = "error"
    try:
        for delta in deltas_of(read_blocks(path), session):
            events.delta(delta)
        reason = "eof"
    except VoxpipeError as exc:
        events.error(exc.code, str(exc))
        raise
    finally:
        events.done(reason=reason, audio_s=session.audio_s, truncated=session.truncated)
