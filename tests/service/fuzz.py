"""Whatever bytes a client, a pipe or a configuration file may hold: an error that names them, or a result; never a crash.

    python -m tests.service.fuzz header -atheris_runs=400000 -seed=1

runs one target under atheris, which looks for inputs that reach new code; `test_fuzz.py` runs all of them briefly. Whoever
finds a crash gets the input as a file, and `python -m tests.service.fuzz header FILE` shows it again.
"""

import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.config import delay_tokens
from voxpipe.errors import AudioError, ConfigError, UsageError
from voxpipe.service.protocol import MAGIC, ChunkReader, Header
from voxpipe.service.settings import read_settings

MAX_SPLITS = 4


def header(data: bytes) -> None:
    """A client's first line, and what the daemon asks of it."""
    try:
        wishes = Header.decode(MAGIC + data)
        if wishes.delay_ms is not None:
            delay_tokens(wishes.delay_ms)
        AudioDecoder.from_options(wishes.format, rate=wishes.rate, channels=wishes.channels)
    except UsageError:
        return
    line = wishes.encode()
    assert line.count(b"\n") == 1
    assert Header.decode(line.rstrip(b"\n")) == wishes


def chunks(data: bytes) -> None:
    """A client's audio in chunks, in pieces as the network cuts them."""
    reader = ChunkReader()
    try:
        received = [chunk for piece in pieces(data) for chunk in reader.push(piece)]
    except UsageError:
        return
    assert sum(map(len, received)) <= len(data)


def audio(data: bytes) -> None:
    """The bytes of a stream that nobody has said anything about, in pieces."""
    decoder = AudioDecoder()
    try:
        samples = [decoder.push(piece) for piece in pieces(data)]
        samples.append(decoder.finish())
    except AudioError:
        return
    heard = np.concatenate(samples)
    assert heard.dtype == np.float32
    assert heard.ndim == 1
    assert np.isfinite(heard).all()


_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def settings(data: bytes) -> None:
    """A configuration file."""
    path = Path(_folder.name) / "voxpipe.toml"
    path.write_bytes(data)
    try:
        read = read_settings(path)
    except ConfigError:
        return
    read.stream_options()
    for fifo in read.fifo:
        read.stream_options(fifo)
        fifo.audio_options().decoder()


def pieces(data: bytes) -> list[bytes]:
    """`data` in a few pieces, cut where its first bytes say."""
    cuts = sorted(byte * len(data) // 256 for byte in data[:MAX_SPLITS])
    return [data[first:stop] for first, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _wav(tag: int, channels: int, rate: int, bits: int, size: int, *more: bytes) -> bytes:
    frame = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * frame, frame, bits)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + fmt + b"".join(more) + b"data" + struct.pack("<I", size)


TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in (header, chunks, audio, settings)}
SEEDS: dict[str, list[bytes]] = {
    "header": [
        b"{}",
        Header(
            format="f32le", rate=48_000, channels=2, delay_ms=240, segment_pause_ms=800, heartbeat_s=1.5, realtime=True,
            max_lag_s=20.0, model="tiny", name="a", source="b", framing="chunks",
        ).encode()[len(MAGIC) :],
        b'{"request": "status"}',
        b'{"request": "subscribe", "streams": ["a", "b#1"]}',
    ],
    "chunks": [b"\0\0\0\x04abcd\0\0\0\0", b"\0\1\0\0" + bytes(65_536), b"\xff\xff\xff\xff"],
    "audio": [
        _wav(1, 1, 16_000, 16, 8) + bytes(8),
        _wav(1, 2, 44_100, 24, 0xFFFFFFFF, b"LIST\x06\0\0\0INFOab") + bytes(48),
        _wav(3, 1, 48_000, 32, 16) + struct.pack("<4f", 0.1, float("nan"), float("inf"), -1e30),
        _wav(7, 1, 8_000, 8, 0) + b"\xff\x00",
        b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + bytes(28),
        b"RIFX\0\0\0\x24WAVEfmt \0\0\0\x10\0\1\0\1\0\0\x3e\x80\0\0\x7d\0\0\2\0\x10data\0\0\0\4\0\1\0\2",
        b"\xff\xfb\x90\x44" + bytes(413),
        b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9),
        b"a letter, not a sound\n" * 3,
        bytes(64),
    ],
    "settings": [
        b"",
        b'model = "tiny"\nmax_streams = 3\ndelay_ms = 240\nrealtime = true\nmax_lag_s = 5.5\nsocket_mode = "0660"\n',
        b'[[fifo]]\npath = "/run/a"\nmode = "0640"\nformat = "s16be"\nrate = 48000\nchannels = 2\n[[fifo]]\npath = "/b"\n',
        b"delay_ms = 0x7b\nheartbeat_s = inf\n'model' = '''\n'''\n",
        b"[fifo]\na.b.c = 1979-05-27T07:32:00Z\n",
    ],
}  # fmt: skip


def main() -> None:
    import atheris

    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    for module in ("voxpipe.service.protocol", "voxpipe.service.settings", "voxpipe.audio.sniff", "voxpipe.audio.wav"):
        for function in vars(sys.modules[module]).values():
            if getattr(function, "__module__", None) == module:
                _instrument(atheris, function)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, *([] if sys.argv[1:2] and Path(sys.argv[1]).is_file() else [corpus])], TARGETS[name])
        atheris.Fuzz()


def _instrument(atheris, function):  # type: ignore[no-untyped-def]
    """Have the branches of a function, or of a class's methods, seen by the fuzzer."""
    if isinstance(function, type):
        for one in vars(function).values():
            _instrument(atheris, getattr(one, "__func__", one))
    elif hasattr(function, "__code__"):
        atheris.instrument_func(function)


if __name__ == "__main__":
    main()
