"""The daemon's configuration file: TOML, checked whole before anything is opened.

model = "tiny"            # as for --model; never fetched
dtype = "f32"             # "bf16", "fp16" or "f32"; by default the checkpoint's on a GPU, f32 on the CPU
delay_ms = 480            # of streams that do not ask for another
segment_pause_ms = 800    # report segments between pauses of so many milliseconds; absent: none
heartbeat_s = 10          # report every so many seconds that a stream is alive; absent: never
socket = "/run/user/1000/voxpipe/voxpipe.sock"   # "" for none; by default the user's own
socket_mode = "0600"
max_streams = 16          # more are refused

[[fifo]]                  # any number of named pipes; each writer is a stream
path = "/run/user/1000/voxpipe/in.pcm"           # made if it is not there
mode = "0600"
format = "auto"           # rate, channels: of raw audio, as for `voxpipe listen`
rate = 16000
channels = 1
delay_ms = 480            # segment_pause_ms, heartbeat_s: instead of the daemon's
"""

import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from voxpipe.config import delay_tokens
from voxpipe.errors import ConfigError, UsageError
from voxpipe.service.protocol import default_socket
from voxpipe.service.reader import AudioOptions
from voxpipe.service.stream import StreamOptions


@dataclass(frozen=True)
class FifoSettings:
    """One named pipe."""

    path: str
    mode: str = "0600"
    format: str = "auto"
    rate: int = 16_000
    channels: int = 1
    delay_ms: int | None = None
    segment_pause_ms: int | None = None
    heartbeat_s: float | None = None

    def audio_options(self) -> AudioOptions:
        return AudioOptions(self.format, self.rate, self.channels)


@dataclass(frozen=True)
class Settings:
    """The whole file; attributes are its keys."""

    model: str | None = None
    dtype: str | None = None
    delay_ms: int | None = None
    segment_pause_ms: int | None = None
    heartbeat_s: float | None = None
    socket: str = field(default_factory=lambda: str(default_socket()))
    socket_mode: str = "0600"
    max_streams: int = 16
    fifo: tuple[FifoSettings, ...] = ()

    def stream_options(self, fifo: FifoSettings | None = None) -> StreamOptions:
        """Of a pipe's streams, or of a client's that asks for nothing else."""
        chosen = [fifo, self] if fifo else [self]

        def first(name: str) -> Any:
            return next((value for one in chosen if (value := getattr(one, name)) is not None), None)

        pause_ms = first("segment_pause_ms")
        return StreamOptions(
            delay_ms=first("delay_ms"),
            segment_pause_s=None if pause_ms is None else pause_ms / 1000,
            heartbeat_s=first("heartbeat_s"),
        )


def read_settings(path: Path) -> Settings:
    """Read and check the file.

    Raises:
        ConfigError: it cannot be read, or has a key or value that is not allowed; names the key and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    place = _Place(path, text)
    pipes = raw.pop("fifo", [])
    if not isinstance(pipes, list) or not all(isinstance(pipe, dict) for pipe in pipes):
        raise place.error("fifo", "is written [[fifo]], with a table for each pipe")
    fifos = tuple(_table(FifoSettings, pipe, place, table=("fifo", number)) for number, pipe in enumerate(pipes))
    paths = [fifo.path for fifo in fifos]
    for number, one in enumerate(paths):
        if one in paths[:number]:
            raise place.error("path", f"names {one} a second time", ("fifo", number))
    settings: Settings = _table(Settings, raw, place, fifo=fifos)
    return settings


class _Place:
    """Where in the file a key stands, which TOML's reader does not tell."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def error(self, key: str, what: str, table: tuple[str, int] | None = None) -> ConfigError:
        return ConfigError(f"{self._path}, line {self._line(key, table)}: {key} {what}")

    def _line(self, key: str, table: tuple[str, int] | None) -> int:
        begin = 0
        if table is not None:
            heads = [n for n, line in enumerate(self._lines) if re.match(rf"\s*\[\[\s*{table[0]}\s*\]\]", line)]
            begin = heads[table[1]] if table[1] < len(heads) else 0
        for number in range(begin, len(self._lines)):
            if re.match(rf"""\s*(\[\[?\s*)?["']?{re.escape(key)}["']?\s*[=\].]""", self._lines[number]):
                return number + 1
        return begin + 1


def _table(
    kind: type[Any], raw: dict[str, Any], place: _Place, *, table: tuple[str, int] | None = None, **more: Any
) -> Any:
    known = {one.name: one for one in fields(kind) if one.name not in more}
    for key, value in raw.items():
        if key not in known:
            raise place.error(key, f"is not a key of this table; known are {', '.join(known)}", table)
        allowed = _types(known[key].type)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise place.error(key, f"is {value!r}; it must be {_noun(allowed)}", table)
        problem = _problem(key, value)
        if problem:
            raise place.error(key, problem, table)
    for key, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and key not in raw:
            raise place.error(key, "is missing", table)
    settings = kind(**raw, **more)
    if isinstance(settings, FifoSettings):
        try:
            settings.audio_options().decoder()
        except UsageError as exc:
            raise place.error("format", f"does not go with the rest: {exc}", table) from exc
    return settings


def _types(declared: Any) -> tuple[type, ...]:
    kinds = getattr(declared, "__args__", (declared,))
    return tuple(kind for kind in (*kinds, *((int,) if float in kinds else ())) if kind is not type(None))


def _noun(kinds: tuple[type, ...]) -> str:
    return "a text" if str in kinds else "a number" if float in kinds else "a whole number"


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, if anything."""
    if key == "delay_ms":
        try:
            delay_tokens(value)
        except UsageError as exc:
            return f"cannot be {value}: {exc}"
    if key in ("mode", "socket_mode") and not re.fullmatch(r"0?[0-7]{3}", value):
        return f'is {value!r}; it must be an octal mode such as "0600"'
    if key == "dtype" and value not in ("bf16", "fp16", "f32"):
        return f"is {value!r}; it can be bf16, fp16 or f32"
    least = {"max_streams": 1, "rate": 1, "channels": 1, "segment_pause_ms": 80, "heartbeat_s": 0.01}.get(key)
    if least is not None and not least <= value < 1e9:
        return f"is {value}; it must be at least {least}"
    if key == "path" and not value.startswith("/"):
        return f"is {value!r}; it must be an absolute path"
    return None
