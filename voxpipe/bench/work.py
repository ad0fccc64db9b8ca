"""The work that is timed, in a process of its own: one engine, one checkpoint, and one clip, as a file and as a stream, or
a folder of files.

Each engine runs as its users run it: voxpipe chooses its own precision and BLAS; the peers take the checkpoint's
precision and the BLAS that MLX ships. This file is run by its path, and nothing of voxpipe is imported for a peer.

    python -P voxpipe/bench/work.py ENGINE CHECKPOINT CLIP.npy|FOLDER
"""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
CHUNK_SAMPLES = 1_280  # 80 ms, one token
N_FILES_AT_ONCE = 4  # what --jobs is by default
MAX_TOKENS = 1 << 30
LONG_FILE = "long.wav"  # in a folder of files
Floats = NDArray[np.float32]


class Session(Protocol):
    """What a stream of either engine can do."""

    def feed(self, samples: Floats) -> None: ...
    def close(self) -> None: ...
    def step(self, *, max_decode_tokens: int = 4) -> Sequence[str]: ...
    @property
    def done(self) -> bool: ...


class Engine(Protocol):
    def transcribe(self, samples: Floats) -> str: ...
    def transcribe_files(self, paths: Sequence[Path]) -> list[str]: ...
    def session(self) -> Session: ...


class Voxpipe:
    def __init__(self, directory: Path) -> None:
        from voxpipe.runtime.transcriber import load

        self._model = load(directory)

    def transcribe(self, samples: Floats) -> str:
        return self._model.generate(samples).text

    def transcribe_files(self, paths: Sequence[Path]) -> list[str]:
        """As `voxpipe transcribe` does."""
        from voxpipe.runtime.files import transcribe_together
        from voxpipe.runtime.jobs import FileJob

        texts = [""] * len(paths)
        for progress in transcribe_together([FileJob(str(path)) for path in paths], self._model, jobs=N_FILES_AT_ONCE):
            if progress.error is not None:
                raise progress.error
            texts[progress.index] += "".join(progress.deltas)
        return texts

    def session(self) -> Session:
        return self._model.create_streaming_session()


class MlxAudio:
    """mlx-audio's Voxtral Realtime, patched in one point: its adapter is 3072 wide whatever the decoder is."""

    def __init__(self, directory: Path) -> None:
        import mlx.core as mx
        import mlx.nn as nn
        from mlx_audio.stt.models.voxtral_realtime.config import ModelConfig
        from mlx_audio.stt.models.voxtral_realtime.voxtral_realtime import Model

        self._mx = mx
        config = ModelConfig.from_dict(json.loads((directory / "config.json").read_text()))
        if config.decoder.dim == 3072:
            from mlx_audio.stt import load_model

            self._model = load_model(directory)
            return
        model = Model(config)
        width, dim = model.config.encoder_args.dim, model.config.decoder.dim
        model.encoder.audio_language_projection_0 = nn.Linear(4 * width, dim, bias=False)
        model.encoder.audio_language_projection_2 = nn.Linear(dim, dim, bias=False)
        model.load_weights(str(directory / "model.safetensors"), strict=True)
        mx.eval(model.parameters())
        self._model = Model.post_load_hook(model, directory)

    def transcribe(self, samples: Floats) -> str:
        return str(self._model.generate(self._mx.array(samples)).text)

    def transcribe_files(self, paths: Sequence[Path]) -> list[str]:
        """One after the other, without the limit of 4096 tokens that would end each after five minutes."""
        return [str(self._model.generate(str(path), max_tokens=MAX_TOKENS).text) for path in paths]

    def session(self) -> Session:
        session: Session = self._model.create_streaming_session()
        return session


class Voxmlx:
    """voxmlx, which knows the delay of 480 ms only."""

    def __init__(self, directory: Path) -> None:
        import voxmlx

        self._model, self._tokenizer, _ = voxmlx.load_model(str(directory / "voxmlx"))
        self._prompt, self._n_delay_tokens = voxmlx._build_prompt_tokens(self._tokenizer)

    def transcribe(self, samples: Floats) -> str:
        import soundfile

        file = io.BytesIO()  # it reads files only
        soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
        file.seek(0)
        return self._transcribe(file)

    def transcribe_files(self, paths: Sequence[Path]) -> list[str]:
        return [self._transcribe(str(path)) for path in paths]

    def _transcribe(self, file: Any) -> str:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from voxmlx.generate import generate

        eos_id = self._tokenizer.eos_id
        ids = generate(self._model, file, self._prompt, n_delay_tokens=self._n_delay_tokens, eos_token_id=eos_id)
        return str(self._tokenizer.decode(ids, special_token_policy=SpecialTokenPolicy.IGNORE))

    def session(self) -> Session:
        return VoxmlxSession(self._model, self._tokenizer, self._prompt, self._n_delay_tokens)


class VoxmlxSession:
    """The loop of voxmlx's `stream_transcribe`, fed by us in place of its microphone, and without its pauses.

    Source: voxmlx 0.0.2, stream.py, faults included: what its encoder loses between chunks is lost here too.
    """

    N_LEFT_PAD_TOKENS = 32
    N_RIGHT_PAD_TOKENS = 17
    SLIDING_WINDOW = 8192

    def __init__(self, model: Any, tokenizer: Any, prompt: list[int], n_delay_tokens: int) -> None:
        import mlx.core as mx

        self._mx = mx
        self._model = model
        self._tokenizer = tokenizer
        self._t_cond = model.time_embedding(mx.array([n_delay_tokens], dtype=mx.float32))
        self._prompt_embeds = model.language_model.embed(mx.array([prompt]))[0]
        mx.eval(self._t_cond, self._prompt_embeds)
        self.done = False
        self._closed = False
        self._is_first = True
        self._pending = np.zeros(0, np.float32)
        self._reset()

    def feed(self, samples: Floats) -> None:
        self._pending = np.append(self._pending, samples)

    def close(self) -> None:
        self._closed = True

    def step(self, *, max_decode_tokens: int = 4) -> list[str]:
        """One cycle, which decodes all there is."""
        if self._closed:
            return self._finish()
        n_feed = len(self._pending) // CHUNK_SAMPLES * CHUNK_SAMPLES
        if n_feed:
            chunk, self._pending = self._pending[:n_feed], self._pending[n_feed:]
            self._n_fed += n_feed
            if self._is_first:
                chunk = np.concatenate([np.zeros(self.N_LEFT_PAD_TOKENS * CHUNK_SAMPLES, np.float32), chunk])
                self._is_first = False
            self._encode(chunk)
        if self._embeds is None or (self._token is None and not self._prefill()):
            return []
        n_safe = self.N_LEFT_PAD_TOKENS + self._n_fed // CHUNK_SAMPLES - self._n_decoded
        return self._decode(min(0 if self._embeds is None else len(self._embeds), n_safe))

    def _reset(self) -> None:
        self._tail: Any = None
        self._encoder_state: tuple[Any, ...] = (None, None, None, None)
        self._embeds: Any = None
        self._cache: Any = None
        self._token: Any = None
        self._n_fed = self._n_decoded = 0
        self._is_first = True

    def _encode(self, chunk: Floats) -> None:
        from voxmlx.audio import log_mel_spectrogram_step

        mel, self._tail = log_mel_spectrogram_step(chunk, self._tail)
        embeds, *state = self._model.encode_step(mel, *self._encoder_state)
        self._encoder_state = tuple(state)
        if embeds is not None:
            self._mx.eval(embeds)
            self._embeds = embeds if self._embeds is None else self._mx.concatenate([self._embeds, embeds])

    def _prefill(self) -> bool:
        from voxmlx.cache import RotatingKVCache

        mx = self._mx
        n_prompt = len(self._prompt_embeds)
        if len(self._embeds) < n_prompt:
            return False
        self._cache = [RotatingKVCache(self.SLIDING_WINDOW) for _ in self._model.language_model.layers]
        embeds = (self._prompt_embeds + self._embeds[:n_prompt])[None]
        logits = self._model.decode(embeds, self._t_cond, "causal", self._cache)
        mx.eval(logits, *[x for layer in self._cache for x in (layer.keys, layer.values)])
        self._token = mx.argmax(logits[0, -1:], axis=-1).squeeze()
        mx.async_eval(self._token)
        self._embeds = self._embeds[n_prompt:] if len(self._embeds) > n_prompt else None
        self._n_decoded = n_prompt
        return True

    def _decode(self, n: int) -> list[str]:
        mx = self._mx
        pieces: list[str] = []
        for i in range(n):
            token_embed = self._model.language_model.embed(self._token.reshape(1, 1))[0, 0]
            embed = (self._embeds[i] + token_embed)[None, None]
            logits = self._model.decode(embed, self._t_cond, mask=None, cache=self._cache)
            following = mx.argmax(logits[0, -1:], axis=-1).squeeze()
            mx.async_eval(following)
            if self._token.item() == self._tokenizer.eos_id:
                self._reset()
                return pieces
            pieces.append(self._text())
            self._token = following
        self._n_decoded += n
        self._embeds = None if self._embeds is None or len(self._embeds) <= n else self._embeds[n:]
        return pieces

    def _finish(self) -> list[str]:
        self.done = True
        if self._token is None:
            return []
        self._encode(np.append(self._pending, np.zeros(self.N_RIGHT_PAD_TOKENS * CHUNK_SAMPLES, np.float32)))
        pieces = self._decode(0 if self._embeds is None else len(self._embeds))
        return pieces if self._token is None else [*pieces, self._text()]

    def _text(self) -> str:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return str(self._tokenizer.decode([self._token.item()], special_token_policy=SpecialTokenPolicy.IGNORE))


ENGINES: dict[str, Callable[[Path], Engine]] = {"voxpipe": Voxpipe, "mlx-audio": MlxAudio, "voxmlx": Voxmlx}


def measure(engine: Engine, samples: Floats) -> dict[str, Any]:
    """Time one file and one stream of 80 ms chunks, after a second of warming up.

    Returns:
        Real-time factors (seconds of work per second of audio), the 50th and 95th percentile of a chunk's work in ms,
        and the text of each.
    """
    engine.transcribe(samples[:SAMPLE_RATE])
    audio_s = len(samples) / SAMPLE_RATE
    started_at = time.perf_counter()
    file_text = engine.transcribe(samples)
    file_s = time.perf_counter() - started_at
    session = engine.session()
    pieces: list[str] = []
    chunks_s = []
    for first in range(0, len(samples), CHUNK_SAMPLES):
        started_at = time.perf_counter()
        session.feed(samples[first : first + CHUNK_SAMPLES])
        pieces += session.step()
        chunks_s.append(time.perf_counter() - started_at)
    started_at = time.perf_counter()
    session.close()
    while not session.done:
        pieces += session.step()
    closing_s = time.perf_counter() - started_at
    return {
        "file_rtf": file_s / audio_s,
        "stream_rtf": (sum(chunks_s) + closing_s) / audio_s,
        "step_ms_p50": float(np.percentile(chunks_s, 50)) * 1000,
        "step_ms_p95": float(np.percentile(chunks_s, 95)) * 1000,
        "file_text": file_text.strip(),
        "stream_text": "".join(pieces).strip(),
    }


def measure_files(engine: Engine, folder: Path) -> dict[str, Any]:
    """Time the short files of a folder, and then its long one, after one file of warming up.

    Returns:
        Real-time factors, the seconds that the short files took, and the texts.
    """
    import soundfile

    long_file = folder / LONG_FILE
    short_files = sorted(path for path in folder.glob("*.wav") if path != long_file)
    engine.transcribe_files(short_files[:1])
    started_at = time.perf_counter()
    texts = engine.transcribe_files(short_files)
    files_s = time.perf_counter() - started_at
    started_at = time.perf_counter()
    long_text = engine.transcribe_files([long_file])[0]
    long_s = time.perf_counter() - started_at
    return {
        "files_s": files_s,
        "files_rtf": files_s / sum(soundfile.info(path).duration for path in short_files),
        "long_rtf": long_s / soundfile.info(long_file).duration,
        "files_text": "\n".join(text.strip() for text in texts),
        "long_text": long_text.strip(),
    }


if __name__ == "__main__":
    name, checkpoint, sound = sys.argv[1:]
    chosen = ENGINES[name](Path(checkpoint))
    is_folder = Path(sound).is_dir()
    json.dump(measure_files(chosen, Path(sound)) if is_folder else measure(chosen, np.load(sound)), sys.stdout)
