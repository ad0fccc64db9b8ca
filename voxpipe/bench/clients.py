"""Live clients of one daemon: real processes, fed at the pace of speech; what they print, and how long after it was said.

A microphone hands a chunk over when it is full, so each chunk is written when its last sample is due.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

VOXPIPE = (sys.executable, "-m", "voxpipe")
START_S = 120.0  # for the daemon to load its model
Event = dict[str, Any]


@dataclass
class Run:
    """What one client printed.

    Attributes:
        name: of the file that it heard.
        text: its deltas joined.
        late_s: of each delta, seconds from the end of its word to its line.
        first_late_s: of those that begin a word; the model writes a piece of a word every 80 ms.
        status: exit status.
    """

    name: str
    text: str = ""
    late_s: list[float] = field(default_factory=list)
    first_late_s: list[float] = field(default_factory=list)
    status: int | None = None


@click.command("clients")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--clients", "n_clients", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--chunk-ms", type=click.IntRange(min=10), default=20, show_default=True, help="Of audio, as a microphone gives it."
)
@click.option("--seconds", type=click.FloatRange(min=1), help="Of each file at most.  [default: all]")
@click.option("--delay", "delay_ms", type=int, default=480, show_default=True)
@click.option("--model", default="tiny", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clients(
    files: Sequence[Path],
    n_clients: int,
    chunk_ms: int,
    seconds: float | None,
    delay_ms: int,
    model: str,
    as_json: bool,
) -> None:
    """Let live clients share a daemon, each with one of FILES in turn, and compare them with the files alone."""
    audio = [(path.name, _s16le(path, seconds)) for path in files]
    options = ["--delay", str(delay_ms), "--format", "s16le"]
    with _daemon(model, n_clients) as env:
        alone = {name: _alone(data, options, env) for name, data in audio}
        runs = together([audio[i % len(audio)] for i in range(n_clients)], options, env, chunk_s=chunk_ms / 1000)
    late_ms = {
        "words": _percentiles([late_s for run in runs for late_s in run.first_late_s]),
        "deltas": _percentiles([late_s for run in runs for late_s in run.late_s]),
    }
    n_equal = sum(run.text == alone[run.name] and run.status == 0 for run in runs)
    if as_json:
        click.echo(json.dumps({"clients": n_clients, "n_equal": n_equal, "delay_ms": delay_ms, "late_ms": late_ms}))
        return
    from voxpipe.bench.machine import machine_name

    click.echo(
        f"{machine_name()}; {n_clients} live clients of one daemon, {model}, delay {delay_ms} ms, chunks of {chunk_ms} ms\n"
        f"transcripts as alone: {n_equal} of {n_clients}\n"
        f"ms after the end of the word (delay and 250 ms: {delay_ms + 250})"
    )
    for what, one in (("a word's first delta", late_ms["words"]), ("all deltas", late_ms["deltas"])):
        click.echo(f"{what:22}" + "".join(f"{name} {value:6.0f}   " for name, value in one.items()).rstrip())


def _percentiles(late_s: Sequence[float]) -> dict[str, float]:
    values = np.percentile(1000 * np.array(late_s or [0.0]), (50, 95, 99)).round(1).tolist()
    return {"n": len(late_s), **dict(zip(("p50", "p95", "p99"), values, strict=True))}


def together(
    audio: Sequence[tuple[str, bytes]], options: Sequence[str], env: dict[str, str], *, chunk_s: float
) -> list[Run]:
    """Run a client for each (name, s16le at 16 kHz), all at once and at the pace of speech.

    Args:
        env: of the processes; it names the daemon's socket.
        chunk_s: of audio that is written at a time.
    """
    runs = [Run(name) for name, _ in audio]
    threads = [
        threading.Thread(target=_carry, args=(run, data, options, env, chunk_s))
        for run, (_, data) in zip(runs, audio, strict=True)
    ]
    for index, thread in enumerate(threads):
        thread.start()
        time.sleep(chunk_s / len(threads) if index + 1 < len(threads) else 0)  # people do not speak in step
    for thread in threads:
        thread.join()
    return runs


def _carry(run: Run, data: bytes, options: Sequence[str], env: dict[str, str], chunk_s: float) -> None:
    command = [*VOXPIPE, "--daemon", "require", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = open(process.stdout.fileno(), "rb", closefd=False)  # noqa: SIM115  # buffered, ours is not
        ready = json.loads(lines.readline())
        assert ready["type"] == "ready"
        began_at = time.monotonic()
        writer = threading.Thread(target=_write, args=(process.stdin, data, began_at, chunk_s))
        writer.start()
        for line in lines:
            heard_s = time.monotonic() - began_at
            event: Event = json.loads(line)
            if event["type"] == "delta":
                run.text += event["text"]
                run.late_s.append(heard_s - event["end"])
                if event["text"].startswith(" "):
                    run.first_late_s.append(heard_s - event["end"])
        writer.join()
        run.status = process.wait()


def _write(pipe: Any, data: bytes, began_at: float, chunk_s: float) -> None:
    n_bytes = 2 * round(chunk_s * SAMPLE_RATE)
    for first in range(0, len(data), n_bytes):
        chunk = data[first : first + n_bytes]
        due_at = began_at + (first + len(chunk)) / 2 / SAMPLE_RATE
        time.sleep(max(0.0, due_at - time.monotonic()))
        try:
            pipe.write(chunk)
        except BrokenPipeError:  # its status tells why
            return
    pipe.close()


def _alone(data: bytes, options: Sequence[str], env: dict[str, str]) -> str:
    command = [*VOXPIPE, "--daemon", "never", "--model", env["VOXPIPE_MODEL"], *options]
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, env=env, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return "".join(event["text"] for event in events if event["type"] == "delta")


def _s16le(path: Path, seconds: float | None) -> bytes:
    from voxpipe.bench.sound import read_clip

    samples = read_clip(str(path))[: None if seconds is None else round(seconds * SAMPLE_RATE)]
    return bytes((np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())


@contextmanager
def _daemon(model: str, n_streams: int) -> "Iterator[dict[str, str]]":
    """A daemon of our own; gives the environment in which clients find it."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "voxpipe.toml"
        socket = Path(folder) / "voxpipe.sock"
        config.write_text(
            f"model = {json.dumps(model)}\nsocket = {json.dumps(str(socket))}\nmax_streams = {n_streams}\n"
        )
        env = {**os.environ, "VOXPIPE_SOCKET": str(socket), "VOXPIPE_MODEL": model}
        command = [*VOXPIPE, "serve", "--config", str(config)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env) as process:
            try:
                assert process.stdout is not None
                if b'"ready"' not in process.stdout.readline():
                    raise UnavailableError(f"the daemon did not start; see why with: voxpipe serve --config {config}")
                yield env
            finally:
                process.terminate()
                process.wait(START_S)
