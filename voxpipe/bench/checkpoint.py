"""Checkpoints that are made to be measured: vocabularies, random weights, and the layout that only voxmlx reads."""

import base64
import json
from itertools import product
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from voxpipe.checkpoints.convert import quantize, write_network
from voxpipe.checkpoints.layouts import VOXMLX
from voxpipe.config import DecoderConfig, EncoderConfig, ModelConfig
from voxpipe.errors import OutputError
from voxpipe.model.voxtral import VoxtralRealtime

# Voxtral-Mini-4B-Realtime-2602
FULL_SIZE = ModelConfig(
    encoder=EncoderConfig(
        dim=1280, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=64, hidden_dim=5120, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=750,
    ),
    decoder=DecoderConfig(
        dim=3072, n_layers=26, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=9216, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=8192,
    ),
)  # fmt: skip
N_SPECIAL = 1_000


@click.command("random")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--bits", type=click.Choice(["4", "6", "8"]), help="Quantize in groups of 64; by default plain bfloat16.")
def random_model(target: Path, bits: str | None) -> None:
    """Write a model of full size with random weights into the new directory TARGET, as large as the real one.

    What the full model will cost on a machine can be measured with it before anything is fetched:
    voxpipe bench --model TARGET.
    """
    if target.exists():
        raise OutputError(f"{target} is there already; name a new directory")
    write_random(FULL_SIZE, target, n_special=N_SPECIAL, dtype=mx.bfloat16, bits=None if bits is None else int(bits))


def write_random(
    config: ModelConfig, target: Path, *, n_special: int, dtype: mx.Dtype = mx.float32, bits: int | None = None
) -> None:
    """Write random weights, the same every time, whose tokens follow audio and context, in mlx-audio's layout.

    The final norm's weight is signed, or the tied head would repeat the token before; end of sequence never wins.
    """
    mx.random.seed(6)
    network = VoxtralRealtime(config)
    for path, module in network.named_modules():
        for name, array in list(module.items()):
            if isinstance(array, mx.array):
                module[name] = _random(f"{path}.{name}", array.shape, config).astype(dtype)
    quantization = None if bits is None else quantize(network, bits=bits)
    write_network(network, target, quantization=quantization)
    (target / "tekken.json").write_text(json.dumps(tekken(config.decoder.vocab_size, n_special=n_special)))


def _random(name: str, shape: tuple[int, ...], config: ModelConfig) -> mx.array:
    normal: mx.array = mx.random.normal(shape)
    if name == "decoder.norm.weight":
        return mx.sign(normal)
    if len(shape) == 1:
        return mx.ones(shape) if "norm" in name else mx.multiply(normal, 0.1)
    if name == "decoder.embed_tokens.weight":
        return mx.where((mx.arange(shape[0]) == config.eos_id)[:, None], 0.0, normal)
    return mx.multiply(normal, 2.0 * int(np.prod(shape[1:])) ** -0.5)


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
    words = (f" {''.join(word)}".encode() for n in (3, 4) for word in product(letters, repeat=n))
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
