"""Checkpoints that are made to be measured: vocabularies, random weights, and the layout that only voxmlx reads."""

import base64
import json
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from voxpipe.checkpoints.convert import write_network
from voxpipe.checkpoints.layouts import VOXMLX
from voxpipe.config import ModelConfig
from voxpipe.model.voxtral import VoxtralRealtime


def write_random(config: ModelConfig, target: Path, *, n_special: int) -> None:
    """Write random float32 weights, the same every time, whose tokens follow audio and context, in mlx-audio's layout.

    The final norm's weight is signed, or the tied head would repeat the token before; end of sequence never wins.
    """
    random = np.random.Generator(np.random.PCG64(6))
    network = VoxtralRealtime(config)
    weights: list[tuple[str, mx.array]] = []
    for name, array in tree_flatten(network.parameters()):
        if name == "decoder.norm.weight":
            values = random.choice([-1.0, 1.0], array.shape)
        elif array.ndim == 1:
            values = np.ones(array.shape) if "norm" in name else 0.1 * random.standard_normal(array.shape)
        elif name == "decoder.embed_tokens.weight":
            values = random.standard_normal(array.shape)
            values[config.eos_id] = 0.0
        else:
            n_inputs = int(np.prod(array.shape[1:]))
            values = 2.0 * n_inputs**-0.5 * random.standard_normal(array.shape)
        weights.append((name, mx.array(values.astype(np.float32))))
    network.load_weights(weights)
    write_network(network, target)
    (target / "tekken.json").write_text(json.dumps(tekken(config.decoder.vocab_size, n_special=n_special)))


def write_voxmlx(network: VoxtralRealtime, target: Path) -> None:
    """Write weights, unquantized, and configuration into the new directory `target` in voxmlx's layout."""
    target.mkdir()
    tensors = {VOXMLX.their_name(name): tensor for name, tensor in tree_flatten(network.parameters())}
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    (target / "config.json").write_text(json.dumps(_params(network.config)))


def _params(config: ModelConfig) -> dict[str, Any]:
    """Mistral's params.json."""
    raw = config.to_json()
    encoder = {**raw["encoder_args"], "pos_embed": "rope", "ffn_type": "swiglu", "norm_type": "rms_norm"}
    factor = encoder.pop("downsample_factor")
    return {
        **raw["decoder"],
        "multimodal": {
            "whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": factor}}
        },
    }


def tekken(vocab_size: int, *, n_special: int) -> dict[str, Any]:
    """The contents of a tekken.json: control tokens, the 256 bytes, and words that are all different."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (f" {a}{b}{c}".encode() for a, b, c in product(letters, repeat=3))
    tokens = [bytes([byte]) for byte in range(256)] + [next(words) for _ in range(vocab_size - n_special - 256)]
    named = {0: "<unk>", 1: "<s>", 2: "</s>", 11: "<pad>", 32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"}
    return {
        "config": {
            "pattern": " ?[a-z]+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": vocab_size,
            "default_num_special_tokens": n_special,
            "version": "v11",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": named.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(n_special)
        ],
    }
