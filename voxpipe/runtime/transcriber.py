"""What `load` returns: a model with its tokenizer, and the ways to transcribe with it.

A file is a stream fed fast: every way in goes through one `StreamingSession`.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxpipe.accelerate import BLAS
from voxpipe.audio.files import read_blocks
from voxpipe.checkpoints.hub import Choice, resolve
from voxpipe.checkpoints.load import DTYPES, build_network, load_tokenizer, read_checkpoint
from voxpipe.config import ModelConfig
from voxpipe.errors import AudioError, UsageError
from voxpipe.model.kernels import BaseTwoKernels
from voxpipe.model.linear import use_blocks
from voxpipe.model.tokenizer import Tokenizer
from voxpipe.model.voxtral import VoxtralRealtime
from voxpipe.output.transcript import Delta, Transcript, segments
from voxpipe.runtime.engine import Engine
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import StreamingSession
from voxpipe.runtime.source import BLOCK_SAMPLES, StreamingAudioSource, as_samples

STEP_TOKENS = 16  # decoder calls between two looks at the queue
Floats = NDArray[np.float32]
Audio = str | PathLike[str] | ArrayLike


class _Streams:
    """MLX's streams of a thread: the process is aborted at its end if any of them outlives the thread (MLX 0.32)."""

    def __del__(self) -> None:
        mx.clear_streams()


_of_this_thread = threading.local()  # is forgotten, by the thread itself, when the thread ends


def load(model: str | PathLike[str] = "auto", *, dtype: str | None = None) -> "Transcriber":
    """Load a model, on the thread that is going to use it.

    Args:
        model: "auto" (the 4-bit model if it is in the local cache, else "tiny"), "tiny", "4bit", "fp16", "bf16",
            a directory, or a repository, which is fetched if it is not in the cache.
        dtype: "bf16", "fp16" or "f32"; by default the checkpoint's own on a GPU and float32 on the CPU.

    Raises:
        ModelError: there is no such model, or it is damaged.
        UnavailableError: it has to be fetched and cannot be.
    """
    return load_choice(resolve(model), dtype=dtype)


def load_choice(choice: Choice, *, dtype: str | None = None) -> "Transcriber":
    """Load a model that has been found; otherwise as `load`."""
    if threading.current_thread() is not threading.main_thread():
        _of_this_thread.streams = _Streams()
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    checkpoint = read_checkpoint(choice.directory)
    tokenizer = load_tokenizer(checkpoint)
    network = build_network(checkpoint, dtype=None if dtype is None else DTYPES[dtype])
    network.fuse()
    if BLAS is not None and mx.default_device() == mx.cpu and network.dtype == mx.float32:
        use_blocks(network, network.lanes[-1])
        network.use_kernels(BaseTwoKernels())
    return Transcriber(network, tokenizer, name=choice.name)


class Transcriber:
    """A loaded model. It holds no stream: any number of sessions share it, on the thread that loaded it."""

    def __init__(self, network: VoxtralRealtime, tokenizer: Tokenizer, *, name: str) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.runner = Runner(network)
        self.name = name

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    def create_streaming_session(
        self,
        *,
        transcription_delay_ms: int | None = None,
        max_tokens: int | None = None,
        source: StreamingAudioSource | None = None,
        keep_tokens: bool = False,
        n_alternatives: int = 0,
    ) -> StreamingSession:
        """Begin a stream; arguments as for `StreamingSession`."""
        return StreamingSession(
            self.runner,
            self.tokenizer,
            delay_ms=transcription_delay_ms,
            max_tokens=max_tokens,
            source=source,
            keep_tokens=keep_tokens,
            n_alternatives=n_alternatives,
        )

    def create_engine(self, *, n_expected: int = 1, max_streams: int | None = None) -> Engine:
        """An engine to carry several sessions at once.

        Args:
            n_expected: how many there will usually be; the caches of new sessions are laid out for it.
            max_streams: how many live ones at most.
        """
        self.network.expect_streams(n_expected)
        return Engine(self.runner, max_streams=max_streams)

    @overload
    def generate(
        self,
        audio: Audio,
        *,
        stream: Literal[False] = False,
        transcription_delay_ms: int | None = None,
        max_tokens: int | None = None,
    ) -> Transcript: ...

    @overload
    def generate(
        self,
        audio: Audio,
        *,
        stream: Literal[True],
        transcription_delay_ms: int | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[Delta]: ...

    def generate(
        self,
        audio: Audio,
        *,
        stream: bool = False,
        transcription_delay_ms: int | None = None,
        max_tokens: int | None = None,
    ) -> Transcript | Iterator[Delta]:
        """Transcribe a file or an array.

        Args:
            audio: a path, or (n_samples,) of 16 kHz mono audio. Files are read in blocks, at any rate, of any length.
            stream: return an iterator over deltas instead of the whole.
            transcription_delay_ms: one of `DELAYS_MS`; by default the checkpoint's (480).
            max_tokens: stop after so many tokens of 80 ms; by default never.

        Raises:
            AudioError, InputError: the audio is empty, corrupt or missing.
            UsageError: the delay is not one of the allowed ones.
        """
        session = self.create_streaming_session(
            transcription_delay_ms=transcription_delay_ms, max_tokens=max_tokens, keep_tokens=not stream
        )
        deltas = transcribe(_blocks(audio), session)
        if stream:
            return deltas
        started_at = time.monotonic()
        collected = list(deltas)
        return Transcript(
            text="".join(collected).strip(),
            segments=segments(collected),
            tokens=session.tokens,
            deltas=collected,
            delay_ms=session.delay_ms,
            audio_s=session.audio_s,
            wall_s=time.monotonic() - started_at,
            truncated=session.truncated,
        )

    def generate_streaming(
        self,
        source: StreamingAudioSource,
        *,
        transcription_delay_ms: int | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[Delta]:
        """Yield deltas while another thread fills `source`, until it is closed and everything said is out."""
        session = self.create_streaming_session(
            transcription_delay_ms=transcription_delay_ms, max_tokens=max_tokens, source=source
        )
        while not session.done:
            yield from session.step(STEP_TOKENS)
            if session.starved and not session.done:
                source.wait()


def transcribe(blocks: Iterable[Floats], session: StreamingSession) -> Iterator[Delta]:
    """Feed blocks of audio to a session, each when the one before has been decoded, and yield its deltas.

    Raises:
        AudioError: the blocks hold no sample at all.
    """
    for block in blocks:
        session.feed(block)
        while not session.starved:
            yield from session.step(STEP_TOKENS)
        if session.done:
            return
    session.close()
    while not session.done:
        yield from session.step(STEP_TOKENS)
    if session.audio_s == 0:
        raise AudioError("there is no audio in it")


def _blocks(audio: Audio) -> Iterable[Floats]:
    if isinstance(audio, str | PathLike):
        return read_blocks(Path(audio))
    if isinstance(audio, mx.array) and mx.issubdtype(audio.dtype, mx.floating):
        audio = audio.astype(mx.float32)  # numpy has no bfloat16
    samples = np.asarray(audio)
    if samples.ndim != 1:
        samples = as_samples(samples)
    return (samples[first : first + BLOCK_SAMPLES] for first in range(0, max(1, len(samples)), BLOCK_SAMPLES))
