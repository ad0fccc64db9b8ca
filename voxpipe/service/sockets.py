"""The daemon's Unix socket: each connection a stream, raw audio in, JSON lines out.

An event loop on a thread of its own reads all clients and writes to them; the model's loop never waits for either. A
client that sends faster than the model runs is read no further for a while, one that does not read its events is cut off.
"""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, cast

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.audio.resample import Samples
from voxpipe.config import SAMPLE_RATE, delay_tokens
from voxpipe.errors import AudioError, UsageError, VoxpipeError, defect
from voxpipe.output.events import Event, JsonLines, StreamEvents
from voxpipe.service.bound import BACKLOG
from voxpipe.service.loop import StreamLoop
from voxpipe.service.protocol import CHUNKS, MAGIC, MAX_HEADER_BYTES, ChunkReader, Header, is_named
from voxpipe.service.reader import odd_ends
from voxpipe.service.stream import Stream, StreamOptions

log = logging.getLogger(__name__)

REMEDY = "send raw PCM or WAV, then close your side of the connection"
READ_BYTES = 1 << 16
MAX_UNREAD_BYTES = 1 << 20  # of events: hours of text
MAX_PIECE_SAMPLES = 10 * SAMPLE_RATE  # queued at a time
FULL_WAIT_S = 0.02  # between two looks at whether a full queue has room again
HEADER_WAIT_S = 30.0  # for the rest of a header that has begun
LAST_WORDS_S = 1.0  # for clients to take their last events when we end
# Python 3.13 would remove the path of a socket that a service manager keeps
KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Outbox:
    """What JsonLines writes into: bytes are handed to the event loop, which sends them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter, on_stuck: Callable[[], None]):
        self._loop = loop
        self._writer = writer
        self._on_stuck = on_stuck

    def write(self, line: bytes) -> int:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._send, line)
        return len(line)

    def flush(self) -> None:
        """Bytes are on their way already."""

    def _send(self, line: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        self._writer.write(line)
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._on_stuck()


class SocketServer:
    """Serves a listening socket until `stop`.

    Args:
        listening: from `bind`, or from the service manager.
        ready: the fields of the `ready` event; its `model` is also what clients may ask for.
        status: what a `status` request is answered.
    """

    def __init__(
        self,
        listening: socket.socket,
        loop: StreamLoop,
        defaults: StreamOptions,
        *,
        ready: dict[str, Any],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._listening = listening
        self._stream_loop = loop
        self._defaults = defaults
        self._ready = ready
        self._status = status
        self._n_clients = 0
        self._clients: set[asyncio.Task[None]] = set()
        self._subscribers: set[asyncio.Task[None]] = set()
        self._events = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name="socket", daemon=True)

    def start(self) -> None:
        """Begin; a `stop` that came before this has returned is to be repeated."""
        self._server = self._events.run_until_complete(
            asyncio.start_unix_server(self._serve, sock=self._listening, backlog=BACKLOG, **KEEP_PATH)
        )
        self._thread.start()

    def stop(self) -> None:
        """Accept nobody any more and read no further; streams end with what was heard."""
        with suppress(RuntimeError):
            self._events.call_soon_threadsafe(self._end_reading)

    def close(self) -> None:
        """End the thread once all events have been written."""
        with suppress(RuntimeError):
            self._events.call_soon_threadsafe(self._end)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._events)
        self._events.run_forever()
        writing = asyncio.all_tasks(self._events)
        if writing:
            self._events.run_until_complete(asyncio.wait(writing, timeout=LAST_WORDS_S))
        self._events.close()

    def _end_reading(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()

    def _end(self) -> None:
        for task in self._subscribers:
            task.cancel()
        self._events.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._n_clients += 1
        name = f"client-{self._n_clients}"
        lines = JsonLines(cast(BinaryIO, Outbox(self._events, writer, on_stuck=lambda: _cut_off(writer, name))))
        try:
            self._clients.add(task)
            try:
                header, data = await _read_header(reader)
                await self._answer(reader, writer, header, data, name, lines)
            except (UsageError, TimeoutError) as exc:
                self._stream_loop.tally.add_refusal(UsageError.code)
                message = str(exc) or "the header was not finished in time"
                events = StreamEvents(lines, stream=name, source="socket")
                events.error("usage", message)
                events.done(reason="error", audio_s=0.0, truncated=False)
            finally:
                self._clients.discard(task)
            await asyncio.sleep(0)  # the last lines are in the queue before us
            with suppress(ConnectionError):
                await writer.drain()
        except ConnectionError:  # the client has gone
            pass
        finally:
            with suppress(ConnectionError, OSError):
                writer.close()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        header: Header,
        data: bytes,
        name: str,
        lines: JsonLines,
    ) -> None:
        if header.request == "status":
            lines.write("status", **self._status())
            return
        if header.request == "subscribe":
            await self._tell_everything(reader, header.streams, lines)
            return
        if header.model not in (None, self._ready["model"]):
            raise UsageError(f"this daemon runs the model {self._ready['model']}, not {header.model}")
        if header.delay_ms is not None:
            delay_tokens(header.delay_ms)
        decoder = AudioDecoder.from_options(header.format, rate=header.rate, channels=header.channels)
        options = _options(header, self._defaults)
        delay_ms = options.delay_ms or self._ready["delay_ms"]
        lines.write("ready", **{**self._ready, "delay_ms": delay_ms})
        ended = asyncio.Event()

        def end() -> None:
            ended.set()
            writer.close()  # now: one that was refused may go on sending for ever

        def on_end() -> None:
            with suppress(RuntimeError):  # the event loop has ended
                self._events.call_soon_threadsafe(end)

        stream = Stream(
            header.name or name,
            header.source or "socket",
            lines,
            options,
            on_audio=self._stream_loop.wakeup.set,
            on_end=on_end,
        )
        task = asyncio.current_task()
        assert task is not None
        try:
            data = data or await reader.read(READ_BYTES)
            if not data:
                self._stream_loop.refuse(stream, AudioError(f"no audio came in; {REMEDY}"))
                return
            self._stream_loop.announce(stream)
            chunks = ChunkReader() if header.framing == CHUNKS else None
            await _read_audio(reader, data, decoder, stream, chunks, on_flush=self._stream_loop.tally.add_flush)
        except asyncio.CancelledError:  # `stop`: decode what was heard
            if not data:
                self._stream_loop.refuse(stream, None)
                return
        except VoxpipeError as exc:
            stream.error = exc
        except ConnectionError:
            pass
        except Exception:
            log.exception("a defect of voxpipe, in %s", name)
            stream.error = defect()
        finally:
            self._clients.discard(task)  # from here on `stop` has nothing to cancel
        stream.audio.close()
        self._stream_loop.wakeup.set()
        await ended.wait()

    async def _tell_everything(self, reader: asyncio.StreamReader, names: tuple[str, ...], lines: JsonLines) -> None:
        """Pass events on until the client closes its side or we end; one that does not read is cut off as any other."""
        task = asyncio.current_task()
        assert task is not None
        self._clients.discard(task)  # `stop` ends no subscription: the last words are still to come
        self._subscribers.add(task)

        def tell(event: Event) -> None:
            if not names or is_named(event["stream"], names):
                lines.write(**event)

        lines.write("ready", **self._ready)
        self._stream_loop.broadcast.subscribe(tell)
        try:
            while await reader.read(READ_BYTES):
                pass
        except asyncio.CancelledError:  # the end of us
            return
        finally:
            self._subscribers.discard(task)
            self._stream_loop.broadcast.unsubscribe(tell)


async def _read_header(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The client's wishes, and the bytes of audio that came with them."""
    data = await reader.read(READ_BYTES)
    while data and len(data) < len(MAGIC) and MAGIC.startswith(data):
        more = await asyncio.wait_for(reader.read(READ_BYTES), HEADER_WAIT_S)
        if not more:
            break
        data += more
    if not data.startswith(MAGIC):
        return Header(), data
    while b"\n" not in data[:MAX_HEADER_BYTES]:
        if len(data) >= MAX_HEADER_BYTES:
            raise UsageError(f"the header has no end within {MAX_HEADER_BYTES} bytes; it is one line of JSON")
        more = await asyncio.wait_for(reader.read(READ_BYTES), HEADER_WAIT_S)
        if not more:
            raise UsageError("the header has no end; it is one line of JSON")
        data += more
    line, _, rest = data.partition(b"\n")
    return Header.decode(line), rest


async def _read_audio(
    reader: asyncio.StreamReader,
    data: bytes,
    decoder: AudioDecoder,
    stream: Stream,
    chunks: ChunkReader | None,
    *,
    on_flush: Callable[[], None],
) -> None:
    n_samples = 0
    while data and not stream.audio.closed:
        for part in [data] if chunks is None else chunks.push(data):
            if chunks is not None and not part:
                on_flush()
                stream.audio.flush()
                continue
            samples = decoder.push(part)
            n_samples += len(samples)
            await _push(samples, stream)
        data = await reader.read(READ_BYTES)
    if stream.audio.closed:  # it was refused
        return
    samples = decoder.finish()
    await _push(samples, stream)
    stream.odd_ends = odd_ends(decoder)
    if n_samples + len(samples) == 0:
        raise AudioError(f"no audio came in; {REMEDY}")


async def _push(samples: Samples, stream: Stream) -> None:
    """Queue (n,) samples, in pieces that `Stream.push` need never wait with: other clients are served by this thread."""
    options = stream.options
    for first in range(0, len(samples), MAX_PIECE_SAMPLES):
        while (
            options.max_lag_s is None
            and stream.audio.buffered_s > options.buffer_s - 2 * MAX_PIECE_SAMPLES / SAMPLE_RATE
            and not stream.audio.closed
        ):
            await asyncio.sleep(FULL_WAIT_S)
        stream.push(samples[first : first + MAX_PIECE_SAMPLES])


def _options(header: Header, defaults: StreamOptions) -> StreamOptions:
    pause_ms = header.segment_pause_ms
    return StreamOptions(
        delay_ms=header.delay_ms or defaults.delay_ms,
        segment_pause_s=defaults.segment_pause_s if pause_ms is None else pause_ms / 1000,
        heartbeat_s=header.heartbeat_s or defaults.heartbeat_s,
        realtime=header.realtime or defaults.realtime,
        max_lag_s=header.max_lag_s or defaults.max_lag_s,
        logprobs=header.logprobs or defaults.logprobs,
        n_alternatives=header.alternatives or defaults.n_alternatives,
    )


def _cut_off(writer: asyncio.StreamWriter, name: str) -> None:
    log.warning("%s does not read its events; it is cut off", name)
    writer.transport.abort()
