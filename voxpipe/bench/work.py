"""The work that is timed, in a process of its own: one engine, one checkpoint, one clip, as a file and as a stream.

Each engine runs as its users run it: voxpipe chooses its own precision and BLAS; mlx-audio takes the checkpoint's
precision and the BLAS that MLX ships. This file is run by its path, and nothing of voxpipe is imported for a peer.
"""

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
    def session(self) -> Session: ...


class Voxpipe:
    def __init__(self, directory: Path) -> None:
        from voxpipe.runtime.transcriber import load

        self._model = load(directory)

    def transcribe(self, samples: Floats) -> str:
        return self._model.generate(samples).text

    def session(self) -> Session:
        return self._model.create_streaming_session()


class MlxAudio:
    """mlx-audio's Voxtral Realtime, patched in one point: its adapter is 3072 wide whatever the decoder is."""

    def __init__(self, directory: Path) -> None:
        import mlx.core as mx
        import mlx.nn as nn
        from mlx_audio.stt.models.voxtral_realtime.config import ModelConfig
        from mlx_audio.stt.models.voxtral_realtime.voxtral_realtime import Model

        model = Model(ModelConfig.from_dict(json.loads((directory / "config.json").read_text())))
        width, dim = model.config.encoder_args.dim, model.config.decoder.dim
        model.encoder.audio_language_projection_0 = nn.Linear(4 * width, dim, bias=False)
        model.encoder.audio_language_projection_2 = nn.Linear(dim, dim, bias=False)
        model.load_weights(str(directory / "model.safetensors"), strict=True)
        mx.eval(model.parameters())
        self._mx = mx
        self._model = Model.post_load_hook(model, directory)

    def transcribe(self, samples: Floats) -> str:
        return str(self._model.generate(self._mx.array(samples)).text)

    def session(self) -> Session:
        session: Session = self._model.create_streaming_session()
        return session


ENGINES: dict[str, Callable[[Path], Engine]] = {"voxpipe": Voxpipe, "mlx-audio": MlxAudio}


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


if __name__ == "__main__":
    name, checkpoint, clip = sys.argv[1:]
    json.dump(measure(ENGINES[name](Path(checkpoint)), np.load(clip)), sys.stdout)
