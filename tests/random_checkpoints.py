"""Random checkpoints with awkward sizes: one set of tensors, written in every layout that voxpipe reads.

Names, transpositions and the rotary permutation are written here from the specification's table (section 6.2), apart
from `voxpipe.checkpoints.layouts`, so that one checks the other. The tensors are made in Mistral's names and layout.

Weights are uniform and come from PCG64's raw words, the only stream numpy promises never to change, so a seed means the
same checkpoint for ever. They are scaled so that audio, delay, attention and windows all sway the tokens: the final
norm's weight is signed (a plain one over a tied head repeats the previous token), and the end-of-sequence row is zero,
because the other implementations stop there.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Tensors = dict[str, Floats]
LAYOUTS = ("mistral", "mlx-audio", "voxmlx", "hugging-face", "hugging-face-export")
EOS = 2
N_SPECIAL = 40  # BOS, EOS, STREAMING_PAD (32) and STREAMING_WORD (33) are among them
EMBEDDING_MODULE = "mm_streams_embeddings.embedding_module."
WHISPER = EMBEDDING_MODULE + "whisper_encoder."


@dataclass(frozen=True)
class Sizes:
    """No size is equal to another by accident; attention widths differ from the model's."""

    encoder_dim: int = 40
    encoder_layers: int = 2
    encoder_heads: int = 3
    encoder_head_dim: int = 16
    encoder_hidden: int = 72
    encoder_window: int = 22  # frames of 20 ms: 5.5 tokens
    decoder_dim: int = 56
    decoder_layers: int = 3
    decoder_heads: int = 6
    decoder_kv_heads: int = 2
    decoder_head_dim: int = 12
    decoder_hidden: int = 88
    decoder_window: int = 30
    vocab_size: int = 300
    ada_dim: int = 32  # fixed in transformers
    n_mels: int = 128  # fixed in mlx-audio
    norm_eps: float = 1e-5
    rope_theta: float = 1e6


AWKWARD = Sizes()
# every matrix has inputs in multiples of 64, as quantization wants
EVEN = Sizes(
    encoder_dim=64,
    encoder_heads=4,
    encoder_head_dim=32,
    encoder_hidden=192,
    decoder_dim=128,
    decoder_layers=2,
    decoder_heads=4,
    decoder_kv_heads=2,
    decoder_head_dim=16,
    decoder_hidden=256,
)


# --- tensors ---------------------------------------------------------------------------------------------------------


class Uniform:
    """Uniform numbers of mean 0 and standard deviation 1 from PCG64's raw words."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.PCG64(seed)

    def __call__(self, *shape: int, std: float = 1.0) -> Floats:
        words = self._words.random_raw(int(np.prod(shape))) >> np.uint64(40)  # 24 bits: exact in float32
        unit = words.astype(np.float64) / 2**23 - 1.0
        result: Floats = (unit * 3.0**0.5 * std).astype(np.float32).reshape(shape)
        return result


def random_tensors(sizes: Sizes = AWKWARD, *, seed: int = 0) -> Tensors:
    """All tensors of a checkpoint, as Mistral names and lays them out."""
    uniform = Uniform(seed)
    tensors: Tensors = {}

    def linear(name: str, n_outputs: int, n_inputs: int, *, gain: float = 1.0, bias: bool = False) -> None:
        tensors[f"{name}.weight"] = uniform(n_outputs, n_inputs, std=gain * n_inputs**-0.5)
        if bias:
            tensors[f"{name}.bias"] = uniform(n_outputs, std=0.3)

    def norm(name: str, dim: int) -> None:
        tensors[f"{name}.weight"] = 1.0 + uniform(dim, std=0.2)

    def layer(prefix: str, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, hidden: int, *, bias: bool) -> None:
        norm(f"{prefix}.attention_norm", dim)
        linear(f"{prefix}.attention.wq", n_heads * head_dim, dim, gain=1.6, bias=bias)
        linear(f"{prefix}.attention.wk", n_kv_heads * head_dim, dim, gain=1.6)
        linear(f"{prefix}.attention.wv", n_kv_heads * head_dim, dim, gain=1.5, bias=bias)
        linear(f"{prefix}.attention.wo", dim, n_heads * head_dim, gain=1.5, bias=bias)
        norm(f"{prefix}.ffn_norm", dim)
        linear(f"{prefix}.feed_forward.w1", hidden, dim, gain=1.5)
        linear(f"{prefix}.feed_forward.w3", hidden, dim)
        linear(f"{prefix}.feed_forward.w2", dim, hidden, gain=1.5, bias=bias)

    s = sizes
    for index, n_inputs in enumerate((s.n_mels, s.encoder_dim)):
        name = f"{WHISPER}conv_layers.{index}.conv"
        tensors[f"{name}.weight"] = uniform(s.encoder_dim, n_inputs, 3, std=1.5 * (3 * n_inputs) ** -0.5)
        tensors[f"{name}.bias"] = uniform(s.encoder_dim, std=0.3)
    for i in range(s.encoder_layers):
        heads = (s.encoder_heads, s.encoder_heads, s.encoder_head_dim)
        layer(f"{WHISPER}transformer.layers.{i}", s.encoder_dim, *heads, s.encoder_hidden, bias=True)
    norm(f"{WHISPER}transformer.norm", s.encoder_dim)
    linear(f"{EMBEDDING_MODULE}audio_language_projection.0", s.decoder_dim, 4 * s.encoder_dim, gain=1.5)
    linear(f"{EMBEDDING_MODULE}audio_language_projection.2", s.decoder_dim, s.decoder_dim, gain=1.5)
    embedding = uniform(s.vocab_size, s.decoder_dim, std=1.5)
    embedding[EOS] = 0.0
    tensors[f"{EMBEDDING_MODULE}tok_embeddings.weight"] = embedding
    for i in range(s.decoder_layers):
        heads = (s.decoder_heads, s.decoder_kv_heads, s.decoder_head_dim)
        layer(f"layers.{i}", s.decoder_dim, *heads, s.decoder_hidden, bias=False)
        linear(f"layers.{i}.ada_rms_norm_t_cond.0", s.ada_dim, s.decoder_dim, gain=2.0)
        linear(f"layers.{i}.ada_rms_norm_t_cond.2", s.decoder_dim, s.ada_dim)
    sign = np.where(uniform(s.decoder_dim) < 0.0, -1.0, 1.0)
    tensors["norm.weight"] = (sign * (1.0 + uniform(s.decoder_dim, std=0.2))).astype(np.float32)
    return tensors


def fingerprint(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


# --- names (specification, section 6.2) -------------------------------------------------------------------------------


def _renamed(tensors: Mapping[str, Floats], rename: Callable[[str], str]) -> Tensors:
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    return renamed


def _with_mlx_convs(tensors: Mapping[str, Floats]) -> Tensors:
    return {
        name: np.ascontiguousarray(tensor.transpose(0, 2, 1)) if tensor.ndim == 3 else tensor
        for name, tensor in tensors.items()
    }


def _to_mlx_audio(name: str) -> str:
    is_decoder_layer = name.startswith(("layers.", "norm."))
    name = name.replace("feed_forward.w", "feed_forward_w")
    if is_decoder_layer:
        name = name.replace("ada_rms_norm_t_cond.0", "ada_rms_norm_t_cond.ada_down")
        return "decoder." + name.replace("ada_rms_norm_t_cond.2", "ada_rms_norm_t_cond.ada_up")
    name = name.removeprefix(EMBEDDING_MODULE).removeprefix("whisper_encoder.")
    if name.startswith("tok_embeddings"):
        return "decoder." + name
    for before, after in (
        ("conv_layers.0.conv", "conv_layers_0_conv.conv"),
        ("conv_layers.1.conv", "conv_layers_1_conv.conv"),
        ("transformer.layers", "transformer_layers"),
        ("transformer.norm", "transformer_norm"),
        ("audio_language_projection.", "audio_language_projection_"),
    ):
        name = name.replace(before, after)
    return "encoder." + name


def _short_names(name: str, attention: str) -> str:
    for before, after in (
        ("attention.w", f"{attention}.w"),
        (".wq.", ".q_proj."),
        (".wk.", ".k_proj."),
        (".wv.", ".v_proj."),
        (".wo.", ".o_proj."),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
    ):
        name = name.replace(before, after)
    return name


def _to_voxmlx(name: str) -> str:
    name = _short_names(name, "attention").replace("attention_norm", "attn_norm")
    name = name.replace("ada_rms_norm_t_cond.0", "ada_norm.linear_in")
    name = name.replace("ada_rms_norm_t_cond.2", "ada_norm.linear_out")
    if name.startswith(("layers.", "norm.")):
        return "language_model." + name
    name = name.removeprefix(EMBEDDING_MODULE)
    if name.startswith("tok_embeddings"):
        return name.replace("tok_embeddings", "language_model.embed_tokens")
    if name.startswith("audio_language_projection"):
        return "adapter." + {"0": "w_in", "2": "w_out"}[name.split(".")[1]] + ".weight"
    name = name.removeprefix("whisper_encoder.").removeprefix("transformer.")
    return "encoder." + name.replace("conv_layers.0.conv", "conv1").replace("conv_layers.1.conv", "conv2")


def _to_hugging_face(name: str) -> str:
    name = _short_names(name, "self_attn")
    if name.startswith(("layers.", "norm.")):
        for before, after in (
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ada_rms_norm_t_cond.0", "ada_rms_norm.linear1"),
            ("ada_rms_norm_t_cond.2", "ada_rms_norm.linear2"),
        ):
            name = name.replace(before, after)
        return "model.language_model." + name
    name = name.removeprefix(EMBEDDING_MODULE)
    if name.startswith("tok_embeddings"):
        return name.replace("tok_embeddings", "model.language_model.embed_tokens")
    if name.startswith("audio_language_projection"):
        return "model.multi_modal_projector." + {"0": "linear_1", "2": "linear_2"}[name.split(".")[1]] + ".weight"
    name = name.removeprefix("whisper_encoder.").removeprefix("transformer.")
    for before, after in (
        ("conv_layers.0.conv", "embedder.conv1"),
        ("conv_layers.1.conv", "embedder.conv2"),
        ("attention_norm", "self_attn_layer_norm"),
        ("ffn_norm", "final_layer_norm"),
    ):
        name = name.replace(before, after)
    return "model.audio_tower." + name


def _split_rotary_pairs(tensor: Floats, head_dim: int) -> Floats:
    """Row order 0, 2, 4, ... then 1, 3, 5, ... within each head."""
    within = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    rows = np.concatenate([start + within for start in range(0, len(tensor), head_dim)])
    return np.ascontiguousarray(tensor[rows])


def lay_out(tensors: Tensors, layout: str, sizes: Sizes = AWKWARD) -> Tensors:
    """The same tensors under the names and in the form of another layout."""
    if layout == "mistral":
        return dict(tensors)
    if layout == "mlx-audio":
        return _renamed(_with_mlx_convs(tensors), _to_mlx_audio)
    if layout == "voxmlx":
        return _renamed(_with_mlx_convs(tensors), _to_voxmlx)
    turned = {}
    for name, tensor in tensors.items():
        head_dim = sizes.encoder_head_dim if name.startswith(WHISPER) else sizes.decoder_head_dim
        turned[name] = _split_rotary_pairs(tensor, head_dim) if ".wq." in name or ".wk." in name else tensor
    laid_out = _renamed(turned, _to_hugging_face)
    if layout == "hugging-face":
        return laid_out
    assert layout == "hugging-face-export", layout
    exported = {}
    for name, tensor in laid_out.items():
        name = name.removeprefix("model.")
        exported[name.replace("language_model.", "language_model.model.", 1)] = tensor
    exported["language_model.lm_head.weight"] = exported["language_model.model.embed_tokens.weight"]
    return exported


# --- configurations ---------------------------------------------------------------------------------------------------

AUDIO_ENCODING = {
    "sampling_rate": 16_000,
    "frame_rate": 12.5,
    "num_mel_bins": 128,
    "hop_length": 160,
    "window_size": 400,
    "chunk_length_s": None,
    "global_log_mel_max": 1.5,
    "transcription_format": "streaming",
}


def _encoder_args(s: Sizes) -> dict[str, Any]:
    return {
        "audio_encoding_args": {**AUDIO_ENCODING, "num_mel_bins": s.n_mels},
        "dim": s.encoder_dim,
        "n_layers": s.encoder_layers,
        "head_dim": s.encoder_head_dim,
        "hidden_dim": s.encoder_hidden,
        "n_heads": s.encoder_heads,
        "n_kv_heads": s.encoder_heads,
        "vocab_size": s.vocab_size,
        "use_biases": True,
        "use_cache": False,
        "rope_theta": s.rope_theta,
        "causal": True,
        "norm_eps": s.norm_eps,
        "pos_embed": "rope",
        "max_source_positions": None,
        "ffn_type": "swiglu",
        "norm_type": "rms_norm",
        "sliding_window": s.encoder_window,
    }


def _decoder_args(s: Sizes) -> dict[str, Any]:
    return {
        "dim": s.decoder_dim,
        "n_layers": s.decoder_layers,
        "head_dim": s.decoder_head_dim,
        "hidden_dim": s.decoder_hidden,
        "n_heads": s.decoder_heads,
        "n_kv_heads": s.decoder_kv_heads,
        "rope_theta": s.rope_theta,
        "norm_eps": s.norm_eps,
        "vocab_size": s.vocab_size,
        "tied_embeddings": True,
        "sliding_window": s.decoder_window,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": s.ada_dim,
    }


def params_json(sizes: Sizes = AWKWARD) -> dict[str, Any]:
    """Mistral's params.json."""
    return {
        **_decoder_args(sizes),
        "use_biases": False,
        "causal": True,
        "model_max_length": 131_072,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": _encoder_args(sizes),
                "downsample_args": {"downsample_factor": 4},
            }
        },
    }


def mlx_audio_json(sizes: Sizes = AWKWARD) -> dict[str, Any]:
    """mlx-audio's config.json."""
    return {
        "model_type": "voxtral_realtime",
        "encoder_args": {**_encoder_args(sizes), "downsample_factor": 4},
        "decoder": _decoder_args(sizes),
    }


def hugging_face_json(sizes: Sizes = AWKWARD) -> dict[str, Any]:
    """transformers' config.json."""
    s = sizes
    rope = {"rope_theta": s.rope_theta, "rope_type": "default"}
    return {
        "architectures": ["VoxtralRealtimeForConditionalGeneration"],
        "model_type": "voxtral_realtime",
        "audio_config": {
            "model_type": "voxtral_realtime_encoder",
            "hidden_size": s.encoder_dim,
            "intermediate_size": s.encoder_hidden,
            "num_hidden_layers": s.encoder_layers,
            "num_attention_heads": s.encoder_heads,
            "head_dim": s.encoder_head_dim,
            "num_mel_bins": s.n_mels,
            "rms_norm_eps": s.norm_eps,
            "sliding_window": s.encoder_window,
            "max_position_embeddings": 1500,
            "hidden_act": "silu",
            "activation_function": "gelu",
            "rope_parameters": rope,
            "vocab_size": s.vocab_size,
        },
        "text_config": {
            "model_type": "voxtral_realtime_text",
            "hidden_size": s.decoder_dim,
            "intermediate_size": s.decoder_hidden,
            "num_hidden_layers": s.decoder_layers,
            "num_attention_heads": s.decoder_heads,
            "num_key_value_heads": s.decoder_kv_heads,
            "head_dim": s.decoder_head_dim,
            "vocab_size": s.vocab_size,
            "rms_norm_eps": s.norm_eps,
            "sliding_window": s.decoder_window,
            "max_position_embeddings": 131_072,
            "hidden_act": "silu",
            "rope_parameters": rope,
            "tie_word_embeddings": True,
        },
        "audio_length_per_tok": 8,
        "default_num_delay_tokens": 6,
        "downsample_factor": 4,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
    }


CONFIG_FILES: dict[str, tuple[str, str, Callable[[Sizes], dict[str, Any]]]] = {
    "mistral": ("consolidated.safetensors", "params.json", params_json),
    "mlx-audio": ("model.safetensors", "config.json", mlx_audio_json),
    "voxmlx": ("model.safetensors", "config.json", params_json),
    "hugging-face": ("model.safetensors", "config.json", hugging_face_json),
    "hugging-face-export": ("model.safetensors", "config.json", hugging_face_json),
}


# --- quantization -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantization:
    """How a converter quantized a checkpoint.

    Attributes:
        modules: "old" leaves embedding and adapter plain, "new" takes them too, "voxmlx" takes everything whose inputs
            divide by the group size, the delay's down projection included.
        overrides: bits of single modules, by the layout's module path.
    """

    bits: int
    group_size: int = 64
    modules: str = "new"
    overrides: tuple[tuple[str, int], ...] = ()

    def takes(self, mistral_name: str, tensor: Floats) -> bool:
        if tensor.ndim != 2 or tensor.shape[1] % self.group_size:
            return False
        is_head_or_adapter = "tok_embeddings" in mistral_name or "audio_language_projection" in mistral_name
        if "ada_rms_norm_t_cond" in mistral_name:
            return self.modules == "voxmlx"
        return not (is_head_or_adapter and self.modules == "old")

    def json(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"group_size": self.group_size, "bits": self.bits}
        if self.modules != "voxmlx":
            raw["mode"] = "affine"
        raw.update({path: {"group_size": self.group_size, "bits": bits} for path, bits in self.overrides})
        return raw


def _quantized(
    tensors: Tensors, plain_names: Mapping[str, str], quantization: Quantization, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """`plain_names` tells each tensor's Mistral name."""
    arrays: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        array = mx.array(tensor).astype(dtype)
        if not quantization.takes(plain_names[name], tensor):
            arrays[name] = array
            continue
        module = name.removesuffix(".weight")
        bits = dict(quantization.overrides).get(module, quantization.bits)
        parts = mx.quantize(array, group_size=quantization.group_size, bits=bits)
        for kind, part in zip(("weight", "scales", "biases"), parts, strict=True):
            arrays[f"{module}.{kind}"] = part
    return arrays


# --- files ------------------------------------------------------------------------------------------------------------


def tekken_json(vocab_size: int, *, n_special: int = N_SPECIAL) -> dict[str, Any]:
    """A small tekken.json: the 256 bytes, then pairs of letters."""
    vocab = [bytes([byte]) for byte in range(256)]
    vocab += [b" " + bytes([97 + i // 26 % 26, 97 + i % 26]) for i in range(max(0, vocab_size - n_special - 256))]
    vocab = vocab[: max(0, vocab_size - n_special)]
    return {
        "config": {
            "pattern": "",
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": vocab_size,
            "default_num_special_tokens": n_special,
            "version": "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(vocab)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": f"<SPECIAL_{rank}>", "is_control": True} for rank in range(n_special)
        ],
    }


def write_checkpoint(
    directory: Path,
    layout: str = "mlx-audio",
    *,
    sizes: Sizes = AWKWARD,
    tensors: Tensors | None = None,
    seed: int = 0,
    dtype: mx.Dtype = mx.float32,
    quantization: Quantization | None = None,
    n_shards: int = 1,
    n_special: int = N_SPECIAL,
) -> Path:
    """Write a whole model directory and return it."""
    tensors = random_tensors(sizes, seed=seed) if tensors is None else tensors
    laid_out = lay_out(tensors, layout, sizes)
    weights_name, config_name, make_config = CONFIG_FILES[layout]
    config = make_config(sizes)
    if quantization is None:
        arrays = {name: mx.array(tensor).astype(dtype) for name, tensor in laid_out.items()}
    else:
        names = dict(zip(laid_out, tensors, strict=True))
        arrays = _quantized(laid_out, names, quantization, dtype)
        config["quantization"] = quantization.json()
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory, weights_name, arrays, n_shards=n_shards)
    (directory / config_name).write_text(json.dumps(config))
    (directory / "tekken.json").write_text(json.dumps(tekken_json(sizes.vocab_size, n_special=n_special)))
    return directory


def write_weights(directory: Path, name: str, arrays: dict[str, mx.array], *, n_shards: int = 1) -> None:
    """One safetensors file, or several and their index."""
    metadata = {"format": "pt"}  # transformers asks for it
    if n_shards == 1:
        mx.save_safetensors(str(directory / name), arrays, metadata)
        return
    weight_map = {}
    stem = name.removesuffix(".safetensors")
    for shard in range(n_shards):
        file = f"{stem}-{shard + 1:05}-of-{n_shards:05}.safetensors"
        part = {key: arrays[key] for key in sorted(arrays)[shard::n_shards]}
        mx.save_safetensors(str(directory / file), part, metadata)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{name}.index.json").write_text(json.dumps(index))


# --- audio ------------------------------------------------------------------------------------------------------------


def random_audio(n_samples: int, *, seed: int = 0) -> Floats:
    """Syllables: a gliding voice with overtones, hiss, and pauses, at most about 0.5 loud."""
    uniform = Uniform(1_000 + seed)
    seconds = np.arange(n_samples) / 16_000
    pitch_hz = 140 + 60 * np.sin(2 * np.pi * (0.7 * seconds + float(uniform(1)[0])))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.maximum(0.0, np.sin(2 * np.pi * 3.1 * seconds + float(uniform(1)[0])))
    hiss = uniform(n_samples) * np.maximum(0.0, np.sin(2 * np.pi * 1.7 * seconds))
    samples: Floats = (0.15 * voice * syllables + 0.05 * hiss).astype(np.float32)
    return samples


def chunks(samples: Floats, size: int) -> Iterator[Floats]:
    """Consecutive pieces of `size`, the last one shorter."""
    return (samples[start : start + size] for start in range(0, len(samples), size))
