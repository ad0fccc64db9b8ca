"""Streams in lock-step: every tick, each gets 80 ms, and the clock stops when all of it is decoded.

It runs as fast as it can: there is no sleeping. What a real clock adds is waiting; the work of a tick is the same.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from voxpipe.bench.machine import give_back_memory
from voxpipe.config import MS_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN
from voxpipe.model.encoder import FRAMES_PER_TOKEN
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, ENCODER_GROUP_TOKENS
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.transcriber import Transcriber, transcribe
from voxpipe.service.process import resident_bytes

WARM_UP_TICKS = 4  # the first chunk alone is 2.5 ms short of a token
LEAST_TICKS = 12  # however slow they are
IN_TURN_TICKS = 25
BLOCK_SAMPLES = 10 * SAMPLE_RATE
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Load:
    """What is put on the machine.

    Attributes:
        samples: what every stream hears, each from another point on.
        context_s: how much each has heard before it is timed: its caches are that full, of nothing.
        delay_ms: of every stream; None is the checkpoint's.
    """

    samples: Floats
    context_s: float
    delay_ms: int | None


@dataclass(frozen=True)
class Ticks:
    """The times of one number of streams.

    Attributes:
        tick_s: of every tick.
        active_bytes, resident_bytes: by which MLX's memory and the process grew with the streams.
        ring_bytes: of the streams' caches.
    """

    n_streams: int
    tick_s: list[float]
    active_bytes: int
    resident_bytes: int
    ring_bytes: int

    @property
    def p50_ms(self) -> float:
        return 1000 * median(self.tick_s)

    @property
    def p95_ms(self) -> float:
        return 1000 * float(np.percentile(self.tick_s, 95))

    @property
    def audio_s_per_s(self) -> float:
        """Seconds of audio, of all streams together, in a second."""
        return self.n_streams * len(self.tick_s) * MS_PER_TOKEN / 1000 / sum(self.tick_s)


def together(transcriber: Transcriber, load: Load, *, n_streams: int, limit_s: float) -> Ticks:
    """Time `n_streams` as one batch of an engine, to the end of the samples or of `limit_s` seconds."""
    engine = transcriber.create_engine(n_expected=n_streams)

    def begin() -> list[StreamingSession]:
        sessions = _begin(transcriber, load, n_streams)
        for session in sessions:
            engine.add(session)
        return sessions

    def work(sessions: Sequence[StreamingSession]) -> None:
        while engine.turn():
            pass

    return _ticks(load, begin, work, limit_s=limit_s)


def in_turn(transcriber: Transcriber, load: Load, *, n_streams: int, limit_s: float) -> Ticks:
    """Time `n_streams` sessions, each stepped by itself, one after another."""
    transcriber.network.expect_streams(1)

    def work(sessions: Sequence[StreamingSession]) -> None:
        for session in sessions:
            while not session.starved:
                session.step()

    return _ticks(load, lambda: _begin(transcriber, load, n_streams), work, limit_s=limit_s)


def file(transcriber: Transcriber, runner: Runner, load: Load) -> float:
    """Seconds that the samples take as one file."""
    transcriber.network.expect_streams(1)
    session = StreamingSession(runner, transcriber.tokenizer, delay_ms=load.delay_ms)
    started_at = time.perf_counter()
    for _ in transcribe(_blocks(load.samples), session):
        pass
    return time.perf_counter() - started_at


def files_together(transcriber: Transcriber, load: Load, *, n_files: int, limit_s: float) -> float:
    """Seconds of audio per second that `n_files` give as one batch of an engine; what `limit_s` cuts off is left out."""
    engine = transcriber.create_engine(n_expected=n_files)
    sessions = [transcriber.create_streaming_session(transcription_delay_ms=load.delay_ms) for _ in range(n_files)]
    for session, samples in zip(sessions, _turned(load.samples, n_files), strict=True):
        session.feed(samples)
        session.close()
        engine.add(session, live=False)
    started_at = time.perf_counter()
    while engine.turn() and time.perf_counter() - started_at < limit_s:
        pass
    wall_s = time.perf_counter() - started_at
    heard_s = sum(min(session.audio_s, session.n_tokens * MS_PER_TOKEN / 1000) for session in sessions)
    return heard_s / wall_s


def _ticks(
    load: Load,
    begin: Callable[[], list[StreamingSession]],
    work: Callable[[Sequence[StreamingSession]], None],
    *,
    limit_s: float,
) -> Ticks:
    active, resident = _memory()
    sessions = begin()
    chunks = _turned(load.samples, len(sessions))
    tick_s: list[float] = []
    total_s = 0.0
    for first in range(0, len(load.samples) - SAMPLES_PER_TOKEN + 1, SAMPLES_PER_TOKEN):
        if len(tick_s) - WARM_UP_TICKS >= LEAST_TICKS and total_s > limit_s:
            break
        started_at = time.perf_counter()
        for session, samples in zip(sessions, chunks, strict=True):
            session.feed(samples[first : first + SAMPLES_PER_TOKEN])
        work(sessions)
        tick_s.append(time.perf_counter() - started_at)
        total_s += tick_s[-1]
    active_after, resident_after = _memory()
    return Ticks(
        n_streams=len(sessions),
        tick_s=tick_s[WARM_UP_TICKS:],
        active_bytes=active_after - active,
        resident_bytes=resident_after - resident,
        ring_bytes=sum(session.state.nbytes for session in sessions),
    )


def _begin(transcriber: Transcriber, load: Load, n: int) -> list[StreamingSession]:
    sessions = [transcriber.create_streaming_session(transcription_delay_ms=load.delay_ms) for _ in range(n)]
    for session in sessions:
        _age(session, load.context_s)
    return sessions


def _age(session: StreamingSession, context_s: float) -> None:
    """Fill the caches as `context_s` of audio does, but with zeros: a step takes the same time, and no hours pass."""
    n_tokens = round(context_s * 1000 / MS_PER_TOKEN)
    for ring, n_left, most in (
        (session.state.decoder, n_tokens, DECODER_CHUNK_TOKENS),
        (session.state.encoder.ring, n_tokens * FRAMES_PER_TOKEN, ENCODER_GROUP_TOKENS * FRAMES_PER_TOKEN),
    ):
        while n_left:
            ring.extend(min(n_left, most))
            n_left -= min(n_left, most)


def _turned(samples: Floats, n: int) -> list[Floats]:
    """The same samples for each of `n` streams, each beginning at another point."""
    return [np.roll(samples, -(len(samples) * i // n)) for i in range(n)]


def _blocks(samples: Floats) -> list[Floats]:
    return [samples[first : first + BLOCK_SAMPLES] for first in range(0, len(samples), BLOCK_SAMPLES)]


def _memory() -> tuple[int, int]:
    """Bytes that MLX's arrays hold, and that the process does, without what is kept for later use."""
    gc.collect()
    give_back_memory()
    return mx.get_active_memory(), resident_bytes()
