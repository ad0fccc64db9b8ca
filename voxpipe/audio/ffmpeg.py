"""ffmpeg as the decoder of last resort: a file of any kind -> 16 kHz samples, mono or of every channel.

The child gets a path and nothing else: no shell, no terminal, no network, and a process group of
its own, so that Ctrl-C reaches us alone. It is dead and reaped when the iterator ends, however it
ends. This module knows nothing of what a file should look like.
"""

import json
import os
import re
import selectors
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from voxpipe.audio.pcm import PcmDecoder, PcmFormat
from voxpipe.audio.resample import SAMPLE_RATE, Samples
from voxpipe.errors import AudioError

STALL_S = 60.0  # without one byte: a disc or a network share that hangs
PROBE_S = 20.0
N_LOG_BYTES = 4096  # of ffmpeg's complaints, the latest are kept
N_READ_BYTES = 1 << 16  # a pipe's worth
# A playlist may name other places; nothing but local files is opened for it.
_INPUT = ("-v", "error", "-protocol_whitelist", "file,pipe", "-i")


class Probe(NamedTuple):
    """The first audio track as ffprobe sees it; None is unknown."""

    encoding: str | None = None
    rate: int | None = None
    channels: int | None = None
    duration_s: float | None = None


class Children:
    """The processes that read a file, so that another thread can end them: whoever waits for a hung one cannot."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._killed = False
        self._lock = threading.Lock()

    @contextmanager
    def start(self, command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program, in a process group of its own; it is dead and reaped when the block ends."""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, **options) as process:
            with self._lock:
                self._running.add(process)
                if self._killed:
                    process.kill()
            try:
                yield process
            finally:
                with self._lock:
                    self._running.discard(process)
                process.kill()

    def kill(self) -> None:
        """End those that run and all that will be started. Safe from any thread."""
        with self._lock:
            self._killed = True
            for process in self._running:
                process.kill()


def is_installed() -> bool:
    """Whether ffmpeg is on PATH."""
    return shutil.which("ffmpeg") is not None


def can_probe() -> bool:
    """Whether ffprobe is on PATH."""
    return shutil.which("ffprobe") is not None


def probe(path: str, *, children: Children) -> Probe:
    """Ask ffprobe about `path`. Nothing is known when there is no ffprobe or it fails."""
    entries = "stream=codec_name,sample_rate,channels:format=duration"
    select = ("-select_streams", "a:0", "-show_entries", entries, "-of", "json")
    command = ["ffprobe", *select, *_INPUT, f"file:{path}"]
    try:
        with children.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            answer, _ = process.communicate(timeout=PROBE_S)
        fields = json.loads(answer)
        stream = fields["streams"][0]
        return Probe(
            encoding=stream.get("codec_name"),
            rate=int(stream["sample_rate"]),
            channels=int(stream["channels"]),
            duration_s=float(fields["format"]["duration"]) if "format" in fields else None,
        )
    except (OSError, subprocess.SubprocessError, LookupError, ValueError):
        return Probe()


def decode(
    path: str, *, name: str, block_s: float, channels: int | None = None, children: Children
) -> Iterator[Samples]:
    """Yield the sound of `path`: (n,) float32, mono, 16 kHz, n = block_s at most.

    Closing the iterator early kills ffmpeg.

    Args:
        path: any file name, one that begins with `-` or holds `:` included.
        name: what error messages call the file.
        block_s: seconds in a block; only the last is shorter.
        channels: yield (n, channels) instead.
        children: ffmpeg will be among them.

    Raises:
        AudioError: no audio track, not audio, damaged, or nothing came for STALL_S seconds. Blocks
            from before the damage are yielded first.
    """
    pcm_format = PcmFormat("f32le", SAMPLE_RATE, channels or 1)
    decoder = PcmDecoder(pcm_format, split=channels is not None)
    n_block_bytes = pcm_format.n_frame_bytes * max(1, round(block_s * SAMPLE_RATE))
    n_samples = 0
    sound, log = bytearray(), bytearray()
    output = ("-vn", "-f", pcm_format.encoding, "-ar", str(SAMPLE_RATE), "-ac", str(pcm_format.channels), "pipe:1")
    with (
        children.start(
            ["ffmpeg", "-nostdin", *_INPUT, f"file:{path}", *output], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        selector.register(process.stdout, selectors.EVENT_READ, sound)
        selector.register(process.stderr, selectors.EVENT_READ, log)
        while selector.get_map():
            ready = selector.select(STALL_S)
            if not ready:
                raise AudioError(f"{name}: ffmpeg got nothing out of it for {STALL_S:.0f} s")
            for key, _ in ready:
                data = os.read(key.fd, N_READ_BYTES)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
            del log[:-N_LOG_BYTES]
            while len(sound) >= n_block_bytes:
                samples = decoder.push(sound[:n_block_bytes])
                del sound[:n_block_bytes]
                n_samples += len(samples)
                yield samples
        samples = decoder.push(sound)
        n_samples += len(samples)
        if len(samples):
            yield samples
        failed = process.wait() != 0 or (n_samples == 0 and log)
    if failed:
        raise AudioError(f"{name}: {_explain(log, path=path, position_s=n_samples / SAMPLE_RATE)}")


def _explain(log: bytearray, *, path: str, position_s: float) -> str:
    """Say in one line why ffmpeg failed."""
    text = log.decode(errors="replace")
    if "does not contain any stream" in text or "matches no streams" in text:
        return "it has no audio track"
    lines = []
    for line in text.splitlines():
        line = re.sub(r"^\[[^]]* @ 0x[0-9a-f]+\] ", "", line.strip())
        line = line.removeprefix(f"file:{path}: ")
        if line and line not in lines:
            lines.append(line)
    reason = "; ".join(lines[-2:]) or "it says nothing"
    if position_s:
        return f"damaged at about {position_s:.1f} s (ffmpeg: {reason})"
    return f"not audio, or damaged (ffmpeg: {reason})"
