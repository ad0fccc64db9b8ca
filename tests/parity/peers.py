"""The other implementations of the model, float32 on the CPU, behind one small interface each.

Their packages are imported when one is made: without them the parity tests fail, and nothing else does.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.model.offline import padded, prompt
from tests.random_checkpoints import Floats


class Peer(Protocol):
    """What is compared."""

    def mel(self, samples: Floats, n_delay_tokens: int) -> Floats:
        """(n_frames, n_mels) of the padded audio."""

    def audio_embeds(self, mel: Floats) -> Floats:
        """(8 T, n_mels) -> (T, dim)."""

    def logits(self, mel: Floats, tokens: NDArray[np.int64], n_delay_tokens: int) -> Floats:
        """Teacher-forced, (T, vocab_size)."""

    def generate(self, samples: Floats, delay_ms: int) -> list[int]:
        """Greedily sampled ids."""


class Transformers:
    """`VoxtralRealtimeForConditionalGeneration`."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import VoxtralRealtimeFeatureExtractor, VoxtralRealtimeForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._torch = torch
        self.model, info = VoxtralRealtimeForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
        problems = {key: value for key, value in info.items() if value and key != "error_msgs"}
        assert not problems, problems
        self.model.eval()
        self._features = VoxtralRealtimeFeatureExtractor()

    def mel(self, samples: Floats, n_delay_tokens: int) -> Floats:
        features = self._features(padded(samples, n_delay_tokens), sampling_rate=16_000, return_tensors="pt")
        return np.ascontiguousarray(features["input_features"][0].numpy().T)

    def audio_embeds(self, mel: Floats) -> Floats:
        with self._torch.no_grad():
            return np.asarray(self.model.get_audio_features(self._input(mel)).pooler_output[0])

    def logits(self, mel: Floats, tokens: NDArray[np.int64], n_delay_tokens: int) -> Floats:
        ids = self._torch.tensor(tokens[None])
        with self._torch.no_grad():
            output = self.model(input_ids=ids, input_features=self._input(mel), num_delay_tokens=n_delay_tokens)
        return np.asarray(output.logits[0])

    def generate(self, samples: Floats, delay_ms: int) -> list[int]:
        n_delay_tokens = delay_ms // 80
        given = prompt(n_delay_tokens)
        with self._torch.no_grad():
            output = self.model.generate(
                input_ids=self._torch.tensor([given]),
                input_features=self._input(self.mel(samples, n_delay_tokens)),
                num_delay_tokens=n_delay_tokens,
                do_sample=False,
            )
        return [int(token) for token in output[0, len(given) :]]

    def _input(self, mel: Floats) -> Any:
        return self._torch.tensor(mel.T[None])


class MlxAudio:
    """mlx-audio's `Model`.

    Patched in one point: its adapter is 3072 wide whatever the decoder is.
    """

    def __init__(self, directory: Path) -> None:
        import mlx.nn as nn
        from mlx_audio.stt.models.voxtral_realtime.config import ModelConfig
        from mlx_audio.stt.models.voxtral_realtime.voxtral_realtime import Model

        model = Model(ModelConfig.from_dict(json.loads((directory / "config.json").read_text())))
        encoder, dim = model.encoder, model.config.decoder.dim
        encoder.audio_language_projection_0 = nn.Linear(4 * model.config.encoder_args.dim, dim, bias=False)
        encoder.audio_language_projection_2 = nn.Linear(dim, dim, bias=False)
        weights = mx.load(str(directory / "model.safetensors"))
        assert isinstance(weights, dict)
        model.load_weights(list(weights.items()), strict=True)
        mx.eval(model.parameters())
        self.model = Model.post_load_hook(model, directory)
        self._ids = _Ids()
        self.model._tokenizer = self._ids

    def mel(self, samples: Floats, n_delay_tokens: int) -> Floats:
        mel, n_delay = self.model._prepare_mel(samples, 80 * n_delay_tokens)
        assert n_delay == n_delay_tokens
        return np.array(mel.T)

    def audio_embeds(self, mel: Floats) -> Floats:
        return np.array(self.model.encoder(mx.array(mel.T)))

    def logits(self, mel: Floats, tokens: NDArray[np.int64], n_delay_tokens: int) -> Floats:
        """The prompt at once, as it does, and then step by step."""
        self.model._ensure_ada_scales(80 * n_delay_tokens)
        decoder = self.model.decoder
        x = mx.array(self.audio_embeds(mel)) + decoder.embed_tokens(mx.array(tokens))
        n_prompt = len(prompt(n_delay_tokens))
        hidden, cache = decoder.forward(x[:n_prompt])
        parts = [hidden]
        for position in range(n_prompt, len(tokens)):
            hidden, cache = decoder.forward(x[position : position + 1], start_pos=position, cache=cache)
            parts.append(hidden)
        return np.array(decoder.logits(mx.concatenate(parts)))

    def generate(self, samples: Floats, delay_ms: int) -> list[int]:
        self.model.generate(mx.array(samples), transcription_delay_ms=delay_ms)
        return self._ids.last


class _Ids:
    """In the tokenizer's place: it keeps the ids that `generate` does not return."""

    def __init__(self) -> None:
        self.last: list[int] = []

    def decode(self, ids: list[int]) -> str:
        self.last = list(ids)
        return ""
