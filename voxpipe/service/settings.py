"""The daemon's configuration file: TOML, checked whole before anything is opened.

model = "tiny"            # as for --model; never fetched
dtype = "f32"             # "bf16", "fp16" or "f32"; by default the checkpoint's on a GPU, f32 on the CPU
delay_ms = 480            # of streams that do not ask for another
segment_pause_ms = 800    # report segments between pauses of so many milliseconds; absent: none
heartbeat_s = 10          # report every so many seconds that a stream is alive; absent: never
realtime = true           # all audio is live: its writers wait as late as can be, `lag` is reported
max_lag_s = 20            # drop audio rather than lag by more seconds, and report the `gap`; absent: drop none
socket = "/run/user/1000/voxpipe/voxpipe.sock"   # "" for none; by default the user's own
socket_mode = "0600"
max_streams = 16          # more are refused
watch_jobs = 4            # recordings of watched folders that are decoded at once, when live streams leave room
metrics = "127.0.0.1:9464"                       # Prometheus asks http://127.0.0.1:9464/metrics; or a socket's path
metrics_file = "/var/lib/prometheus/node-exporter/voxpipe.prom"   # for node_exporter's textfile collector
metrics_file_every_s = 15

[[fifo]]                  # any number of named pipes; each writer is a stream
path = "/run/user/1000/voxpipe/in.pcm"           # made if it is not there
mode = "0600"
format = "auto"           # rate, channels: of raw audio, as for `voxpipe listen`
rate = 16000
channels = 1
delay_ms = 480            # segment_pause_ms, heartbeat_s, realtime, max_lag_s: instead of the daemon's

[[watch]]                 # any number of watched folders; the keys are the options of `voxpipe watch`
path = "/srv/talks"
output_dir = "/srv/texts" # by default beside the recordings
formats = ["txt", "srt"]  # by default txt
recursive = true
settle_s = 5
rescan_s = 300
poll = false              # chosen by itself on network file systems
pattern = ["*.wav"]       # by default usual names of audio and video
ignore = ["drafts"]
on_done = "keep"          # or "move:/srv/done"
channels = "mix"          # or "split"
delay_ms = 2400           # by default the daemon's
"""

import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from voxpipe.config import delay_tokens
from voxpipe.errors import ConfigError, UsageError
from voxpipe.output.formats import FORMATS
from voxpipe.service.place import default_socket
from voxpipe.service.protocol import MAX_LAG_S
from voxpipe.service.reader import AudioOptions
from voxpipe.service.stream import StreamOptions
from voxpipe.service.web import parse_address
from voxpipe.watch.folder import WatchOptions, parse_on_done

MOST = 10_000_000  # of anything; in seconds, less than the longest wait that macOS allows


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
    realtime: bool | None = None
    max_lag_s: float | None = None

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
    realtime: bool | None = None
    max_lag_s: float | None = None
    socket: str = field(default_factory=lambda: str(default_socket()))
    socket_mode: str = "0600"
    max_streams: int = 16
    metrics: str | None = None
    metrics_file: str | None = None
    metrics_file_every_s: float = 15.0
    watch_jobs: int = 4
    fifo: tuple[FifoSettings, ...] = ()
    watch: tuple[WatchOptions, ...] = ()

    def folders(self) -> list[WatchOptions]:
        """The watched folders, with a delay for those that name none."""
        return [replace(folder, delay_ms=folder.delay_ms or self.delay_ms) for folder in self.watch]

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
            realtime=bool(first("realtime")),
            max_lag_s=first("max_lag_s"),
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
    fifos = _tables("fifo", FifoSettings, raw, place, noun="pipe")
    folders = _tables("watch", WatchOptions, raw, place, noun="folder", once=False)
    settings: Settings = _table(Settings, raw, place, fifo=fifos, watch=folders)
    return settings


class _Place:
    """Where in the file a key stands, which TOML's reader does not tell."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def error(self, key: str, what: str, table: tuple[str, int] | None = None) -> ConfigError:
        return ConfigError(f"{self._path}, line {self._line(key, table)}: {key} {what}")

    def _line(self, key: str, table: tuple[str, int] | None) -> int:
        begin, end = 0, len(self._lines)
        if table is not None:
            heads = [n for n, line in enumerate(self._lines) if re.match(rf"\s*\[\[\s*{table[0]}\s*\]\]", line)]
            begin = heads[table[1]] if table[1] < len(heads) else 0
            end = next((n for n in range(begin + 1, end) if re.match(r"\s*\[\[?\s*\w", self._lines[n])), end)
        for number in range(begin, end):
            if re.match(rf"""\s*(\[\[?\s*)?["']?{re.escape(key)}["']?\s*[=\].]""", self._lines[number]):
                return number + 1
        return begin + 1


def _tables(
    name: str, kind: type[Any], raw: dict[str, Any], place: _Place, *, noun: str, **more: Any
) -> tuple[Any, ...]:
    tables = raw.pop(name, [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise place.error(name, f"is written [[{name}]], with a table for each {noun}")
    found = tuple(_table(kind, one, place, table=(name, number), **more) for number, one in enumerate(tables))
    paths = [one.path for one in found]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise place.error("path", f"names {path} a second time", (name, number))
    return found


def _table(
    kind: type[Any], raw: dict[str, Any], place: _Place, *, table: tuple[str, int] | None = None, **more: Any
) -> Any:
    known = {one.name: one for one in fields(kind) if one.name not in more}
    for key, value in raw.items():
        if key not in known:
            raise place.error(key, f"is not a key of this table; known are {', '.join(known)}", table)
        allowed = _types(known[key].type)
        if isinstance(value, bool) != (allowed == (bool,)) or not isinstance(value, allowed):
            raise place.error(key, f"is {value!r}; it must be {_noun(allowed)}", table)
        problem = _problem(key, value) if kind is not WatchOptions else _watch_problem(key, value)
        if problem:
            raise place.error(key, problem, table)
    for key, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and key not in raw:
            raise place.error(key, "is missing", table)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    settings = kind(**values, **more)
    if isinstance(settings, FifoSettings):
        try:
            settings.audio_options().decoder()
        except UsageError as exc:
            raise place.error("format", f"does not go with the rest: {exc}", table) from exc
    return settings


def _types(declared: Any) -> tuple[type, ...]:
    if declared == tuple[str, ...]:
        return (list,)
    kinds = getattr(declared, "__args__", (declared,))
    return tuple(kind for kind in (*kinds, *((int,) if float in kinds else ())) if kind is not type(None))


def _noun(kinds: tuple[type, ...]) -> str:
    if bool in kinds:
        return "true or false"
    if list in kinds:
        return "a list of texts"
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
    least = {
        "max_streams": 1,
        "watch_jobs": 1,
        "rate": 1,
        "channels": 1,
        "segment_pause_ms": 80,
        "heartbeat_s": 0.01,
        "metrics_file_every_s": 1,
    }.get(key)
    if least is not None and not least <= value <= MOST:
        return _out_of_range(value, least)
    if key == "max_lag_s" and not 1 <= value <= MAX_LAG_S:
        return f"is {value}; it can be 1 to {MAX_LAG_S}"
    if key == "metrics" and not value.startswith("/"):
        try:
            _, port = parse_address(value)
        except UsageError as exc:
            return f"cannot be served: {exc}, or a socket's absolute path"
        if port == 0:
            return f"is {value!r}; port 0 is found by nobody, name another"
    if key == "metrics_file" and not (value.startswith("/") and value.endswith(".prom")):
        return f"is {value!r}; it must be an absolute path that ends in .prom, as node_exporter reads no other"
    if key == "path" and not value.startswith("/"):
        return f"is {value!r}; it must be an absolute path"
    return None


def _out_of_range(value: float, least: float) -> str:
    return f"is {value}; it must be at most {MOST}" if value > MOST else f"is {value}; it must be at least {least}"


def _watch_problem(key: str, value: Any) -> str | None:
    """As `_problem`, for a watched folder."""
    if isinstance(value, list) and not (value and all(isinstance(one, str) for one in value)):
        return f"is {value!r}; it must be a list of texts"
    if key == "formats" and (unknown := [name for name in value if name not in FORMATS]):
        return f"has {unknown[0]!r}; choose from {', '.join(FORMATS)}"
    if key == "channels" and value not in ("mix", "split"):
        return f"is {value!r}; it can be mix or split"
    least = {"settle_s": 0, "rescan_s": 0.1}.get(key)
    if least is not None and not least <= value <= MOST:
        return _out_of_range(value, least)
    if key in ("channels", "settle_s", "rescan_s"):
        return None
    if key == "on_done":
        try:
            folder = parse_on_done(value)
        except UsageError:
            return f"is {value!r}; it can be keep or move:DIR"
        return _problem("path", folder) if folder is not None else None
    return _problem("path" if key == "output_dir" else key, value)
