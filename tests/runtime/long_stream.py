"""A stream of any length through a small model, and what each part of it cost.

    python -m tests.runtime.long_stream MODEL MINUTES FIRST_TOKEN FEED_SAMPLES OUTPUT.npz

It runs in a process of its own, so that resident memory is the stream's, and keeps nothing but a few numbers per token,
for which it makes room beforehand (written room: untouched pages would count later).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.random_checkpoints import Floats, random_audio
from tests.runtime.models import clip, drain, sizes_held
from voxpipe import load
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, StreamState, VoxtralRealtime
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import StreamingSession

RATE = 16_000
TOKENS_PER_MINUTE = 750
FIRST_SAMPLED = 38  # position of the first token: left padding and delay
SPARE_TOKENS = 20  # a stream has 11 tokens more than 80 ms of audio


def varied_audio(n_samples: int, feed_samples: int) -> Iterator[Floats]:
    """Noise, tones, glides, syllables, speech and silence in a fixed random order, in pieces of `feed_samples`."""
    seconds = np.arange(5 * RATE + 77) / RATE
    noise = np.random.Generator(np.random.PCG64(1)).standard_normal(4 * RATE + 123) * 0.1
    pool: list[Floats] = [
        noise.astype(np.float32),
        np.sign(noise).astype(np.float32) * 0.3,
        (0.4 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32),
        (0.3 * np.sin(2 * np.pi * 300 * seconds**2)).astype(np.float32),
        random_audio(9 * RATE + 11, seed=1),
        random_audio(6 * RATE + 5, seed=2),
        clip("beach.wav"),
        clip("hall.flac"),
        clip("future.flac"),
        np.zeros(7 * RATE + 31, np.float32),
        np.zeros(25 * RATE, np.float32),
    ]
    order = np.random.PCG64(2)
    left, gain, rest = n_samples, np.float32(1.0), pool[0]
    while left > 0:
        wanted = min(feed_samples, left)
        left -= wanted
        parts = []
        while wanted > 0:
            if not len(rest):
                word = int(order.random_raw())
                gain, rest = np.float32((1.0, 0.3, 0.05)[word // 97 % 3]), pool[word % len(pool)]
            parts.append(rest[:wanted] * gain)
            wanted, rest = wanted - len(parts[-1]), rest[wanted:]
        yield np.concatenate(parts)


def fixed_work() -> None:
    """About 0.1 ms of what a step does, but without MLX and streams: it tells how fast the machine is just now."""
    window = np.ones((8, 400), np.float32)
    for _ in range(3):
        window = np.abs(np.fft.irfft(np.fft.rfft(window, axis=-1), axis=-1)).astype(np.float32)
    sum(len(str(number)) for number in range(200))


class MarginNetwork:
    """Notes by how much the best logit of each position lay above the second best; a position taken back is overwritten."""

    def __init__(self, network: VoxtralRealtime, n_positions: int) -> None:
        self._network = network
        self.margins = np.full(n_positions, np.nan, np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def decode(
        self, embeds: Sequence[mx.array], tokens: Sequence[Sequence[int]], states: Sequence[StreamState]
    ) -> mx.array:
        (state,), first = states, states[0].decoder.length
        logits = self._network.decode(embeds, tokens, states)
        best = np.partition(np.asarray(logits), -2, axis=-1)[:, -2:]
        self.margins[first : state.decoder.length] = best[:, 1] - best[:, 0]
        return logits


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) * 1_024


def stream(directory: str, minutes: int, first_token: int, feed_samples: int) -> dict[str, Any]:
    """Decode so many minutes as they come, and return the figures."""
    model = load(directory)
    n_room = minutes * TOKENS_PER_MINUTE + SPARE_TOKENS
    network = MarginNetwork(model.network, n_room + FIRST_SAMPLED + DECODER_CHUNK_TOKENS)
    runner = Runner(network)  # type: ignore[arg-type]
    session = StreamingSession(runner, model.tokenizer, keep_tokens=True, first_token=first_token)
    tokens = np.full(n_room, 65_535, np.uint16)
    wall_ms, cpu_ms, work_ms = np.full((3, n_room), np.nan, np.float32)  # per token, in the order of the pieces
    resident, held, n_characters = np.zeros((3, minutes), np.int64)
    n_tokens = n_pieces = n_text = minute = 0

    def collect() -> None:
        nonlocal n_tokens
        tokens[n_tokens : n_tokens + len(session.tokens)] = session.tokens
        n_tokens += len(session.tokens)
        session.tokens.clear()

    n_fed = 0
    for part in varied_audio(minutes * 60 * RATE, feed_samples):
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        session.feed(part)
        for delta in drain(session):
            n_text += len(delta)
        tokens_in_part = len(part) / 1_280
        wall_ms[n_pieces] = (time.perf_counter() - started_at) / tokens_in_part * 1e3
        cpu_ms[n_pieces] = (time.process_time() - cpu_started_at) / tokens_in_part * 1e3
        started_at = time.perf_counter()
        fixed_work()
        work_ms[n_pieces] = (time.perf_counter() - started_at) * 1e3
        n_pieces += 1
        n_fed += len(part)
        if n_fed >= (minute + 1) * 60 * RATE:
            collect()
            resident[minute] = resident_bytes()
            held[minute] = sum(sizes_held(session, without=[network, model.tokenizer]).values())
            n_characters[minute] = n_text
            n_text = 0
            minute += 1
    session.close()
    drain(session)
    collect()
    return {
        "tokens": tokens[:n_tokens],
        "margins": network.margins[FIRST_SAMPLED : FIRST_SAMPLED + n_tokens],
        "wall_ms": wall_ms[:n_pieces],
        "cpu_ms": cpu_ms[:n_pieces],
        "work_ms": work_ms[:n_pieces],
        "resident": resident,
        "held": held,
        "n_characters": n_characters,
        "n_guarded": session.n_guarded,
        "truncated": session.truncated,
    }


if __name__ == "__main__":
    directory, minutes, first_token, feed_samples, output = sys.argv[1:]
    np.savez(output, **stream(directory, int(minutes), int(first_token), int(feed_samples)))
