"""What a client may say to the daemon's socket before its audio, and how a flush is said in the midst of it.

A client sends raw PCM or WAV and reads JSON lines; that is all that `nc -U` needs. A first line `VOXPIPE/1 {…}` may say
more: the format of the audio, the delay, a name, and whether the audio comes in chunks. A chunk is its length in bytes
as four bytes, most significant first, and so many bytes; a chunk of length zero asks for the pending words.

Two requests bring no audio. `status` is answered with one line about the daemon. `subscribe` is answered with the events
of all streams, or of those that are named, until the client closes its side: first `ready`, then the `start` of every
stream that is being decoded, with its last words as `text`. Each event has an `id` that tells streams of one name apart.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from voxpipe.errors import UsageError

MAGIC = b"VOXPIPE/1 "
MAX_HEADER_BYTES = 4096
MAX_CHUNK_BYTES = 1 << 16
LENGTH_BYTES = 4
MAX_LAG_S = 3600  # 230 MB of audio
MAX_SEGMENT_PAUSE_MS = 3_600_000
MAX_ALTERNATIVES = 20
RAW, CHUNKS = "raw", "chunks"
REQUESTS = ("stream", "status", "subscribe")


@dataclass(frozen=True)
class Header:
    """A client's wishes.

    Attributes:
        format, rate, channels: of raw audio, as for `voxpipe listen`.
        delay_ms, segment_pause_ms, heartbeat_s, realtime, max_lag_s, logprobs, alternatives: of its stream, likewise.
        model: what the client wants to be served by; a daemon with another model refuses.
        name, source: of its stream in the events.
        framing: "raw" or "chunks".
        request: "stream", "status" or "subscribe".
        streams: names of the streams to subscribe to; none for all. A pipe's name stands for all of its writers.
    """

    format: str = "auto"
    rate: int = 16_000
    channels: int = 1
    delay_ms: int | None = None
    segment_pause_ms: int | None = None
    heartbeat_s: float | None = None
    realtime: bool = False
    max_lag_s: float | None = None
    logprobs: bool = False
    alternatives: int = 0
    model: str | None = None
    name: str | None = None
    source: str | None = None
    framing: str = RAW
    request: str = "stream"
    streams: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The line that says it, without what goes without saying."""
        wishes = {name: value for name, value in asdict(self).items() if value != getattr(Header, name)}
        return MAGIC + json.dumps(wishes).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Header":
        """Read such a line.

        Raises:
            UsageError: it is malformed, or has a key or value that is not known.
        """
        try:
            raw = json.loads(line.removeprefix(MAGIC))
        except (ValueError, RecursionError) as exc:
            raise UsageError(f'the header is not JSON ({exc}); send for example: VOXPIPE/1 {{"rate": 48000}}') from exc
        if not isinstance(raw, dict):
            raise UsageError('the header is not a JSON object; send for example: VOXPIPE/1 {"rate": 48000}')
        kinds: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        for name, value in raw.items():
            if name not in kinds:
                raise UsageError(f"the header's key {name!r} is unknown; known are {', '.join(kinds)}")
            if name == "streams":
                if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                    raise UsageError(f"the header's 'streams' is {value!r}, which is not a list of names")
                continue
            is_number = isinstance(value, int) and name in ("heartbeat_s", "max_lag_s")
            if isinstance(value, bool) != (kinds[name] is bool) or not (is_number or isinstance(value, kinds[name])):
                raise UsageError(f"the header's {name!r} is {value!r}, which is not {_noun(kinds[name])}")
        header = cls(**{**raw, "streams": tuple(raw.get("streams", ()))})
        if header.framing not in (RAW, CHUNKS):
            raise UsageError(f"the header's 'framing' is {header.framing!r}; it can be 'raw' or 'chunks'")
        if header.request not in REQUESTS:
            raise UsageError(f"the header's 'request' is {header.request!r}; it can be one of {', '.join(REQUESTS)}")
        if header.segment_pause_ms is not None and not 80 <= header.segment_pause_ms <= MAX_SEGMENT_PAUSE_MS:
            pause_ms = header.segment_pause_ms
            raise UsageError(f"the header's 'segment_pause_ms' is {pause_ms}; it can be 80 to {MAX_SEGMENT_PAUSE_MS}")
        if header.heartbeat_s is not None and not 0 < header.heartbeat_s < 1e6:
            raise UsageError(f"the header's 'heartbeat_s' is {header.heartbeat_s}; it must be more than 0")
        if header.max_lag_s is not None and not 1 <= header.max_lag_s <= MAX_LAG_S:
            raise UsageError(f"the header's 'max_lag_s' is {header.max_lag_s}; it can be 1 to {MAX_LAG_S}")
        if not 0 <= header.alternatives <= MAX_ALTERNATIVES:
            raise UsageError(f"the header's 'alternatives' is {header.alternatives}; it can be 0 to {MAX_ALTERNATIVES}")
        return header


def _noun(kind: Any) -> str:
    if kind is bool:
        return "true or false"
    return "a text" if str in (kind, *getattr(kind, "__args__", ())) else "a number"


class ChunkReader:
    """Takes a chunked stream apart."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the chunks that they complete; an empty one is a flush.

        Raises:
            UsageError: a chunk is longer than MAX_CHUNK_BYTES.
        """
        self._pending += data
        while len(self._pending) >= LENGTH_BYTES:
            length = int.from_bytes(self._pending[:LENGTH_BYTES], "big")
            if length > MAX_CHUNK_BYTES:
                raise UsageError(f"a chunk of {length} bytes is too long; send at most {MAX_CHUNK_BYTES} at once")
            if len(self._pending) < LENGTH_BYTES + length:
                return
            chunk = bytes(self._pending[LENGTH_BYTES : LENGTH_BYTES + length])
            del self._pending[: LENGTH_BYTES + length]
            yield chunk


def is_named(stream: str, names: Collection[str]) -> bool:
    """Whether a stream is one of those named: by its own name, or by its pipe's without the writer's number."""
    return stream in names or stream.rpartition("#")[0] in names


def as_chunk(data: bytes) -> bytes:
    """One chunk; of no bytes, a flush."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data
