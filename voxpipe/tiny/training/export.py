"""Checkpoints: from a training state to the mlx-audio layout and back.

A checkpoint folder holds config.json, model.safetensors (float16, convolutions as (out, kernel, in)) and tekken.json.
Quantization is the loader's or packager's work; `round_as_stored` shows here what it does to the weights. `ada_down`
stays unquantized everywhere: mlx-audio casts the delay vector to that weight's type.

    python -m training.export PIECES.json CHECKPOINT_DIR STATE[=SHARE] ...
"""

import argparse
import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .network import LEFT_PAD, Network, NetworkConfig
from .text import N_SPECIAL_TOKENS, WordPieces

GROUP_SIZE = 64
DEFAULT_DELAY_MS = 480
SPECIAL_NAMES = {0: "<unk>", 1: "<s>", 2: "</s>", 11: "<pad>", 32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"}


def write_checkpoint(network: Network, pieces: WordPieces, directory: Path) -> None:
    """Write config.json, model.safetensors and tekken.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, weight in network.state_dict().items():
        if not name.startswith("aux."):
            turned = weight.permute(0, 2, 1) if name.endswith("conv.weight") else weight
            tensors[name] = turned.detach().cpu().half().contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(model_config(network.c), indent=1))
    (directory / "tekken.json").write_text(json.dumps(tekken(pieces)))


def read_config(stored: dict[str, Any]) -> NetworkConfig:
    """Return the sizes that a config.json's content tells."""
    audio, text = stored["encoder_args"], stored["decoder"]
    return NetworkConfig(
        dim=audio["dim"],
        enc_layers=audio["n_layers"],
        enc_heads=audio["n_heads"],
        enc_ffn=audio["hidden_dim"],
        enc_window=audio["sliding_window"],
        dec_dim=text["dim"],
        dec_layers=text["n_layers"],
        dec_heads=text["n_heads"],
        dec_kv=text["n_kv_heads"],
        dec_ffn=text["hidden_dim"],
        dec_window=text["sliding_window"],
        vocab=text["vocab_size"],
        ada=text["ada_rms_norm_t_cond_dim"],
        phoneme_layer=min(8, audio["n_layers"]),
    )


def read_checkpoint(directory: Path, *, bits: int = 0) -> Network:
    """Return the network of a checkpoint folder in eval mode; fresh auxiliary heads."""
    network = Network(read_config(json.loads((directory / "config.json").read_text())))
    load_tensors(network, load_file(directory / "model.safetensors"), bits=bits)
    return network.eval()


def load_tensors(network: Network, tensors: dict[str, Tensor], *, bits: int = 0) -> None:
    """Load tensors in checkpoint layout, plain or quantized, into a network; every exported weight must be there."""
    own = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{stem}.scales" in tensors:
            tensor = dequantize(tensor, tensors[f"{stem}.scales"], tensors[f"{stem}.biases"])
        weight = tensor.float()
        if bits and weight.dim() == 2 and weight.shape[1] % GROUP_SIZE == 0 and "ada_" not in name:
            weight = round_as_stored(weight, bits)
        own[name] = weight.permute(0, 2, 1) if name.endswith("conv.weight") else weight
    missing, unexpected = network.load_state_dict(own, strict=False)
    missing = [name for name in missing if not name.startswith("aux.")]
    if missing or unexpected:
        raise ValueError(f"missing weights {missing}, unexpected weights {unexpected}")


def dequantize(packed: Tensor, scales: Tensor, lows: Tensor) -> Tensor:
    """Return a matrix stored as levels of so many bits, one behind the other, with a scale and a low for each group of 64."""
    stored = np.unpackbits(packed.numpy().view(np.uint8), axis=1, bitorder="little")
    n_bits = stored.shape[1] // (scales.shape[1] * GROUP_SIZE)
    levels = torch.from_numpy(stored).reshape(*scales.shape, GROUP_SIZE, n_bits).float() @ 2.0 ** torch.arange(n_bits)
    return (levels * scales.float()[..., None] + lows.float()[..., None]).flatten(1)


def round_as_stored(weight: Tensor, bits: int) -> Tensor:
    """Round a matrix as affine quantization in groups of 64 with float16 scales does."""
    groups = weight.reshape(-1, GROUP_SIZE)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-7).half().float()
    low = low.half().float()
    levels = torch.round((groups - low) / scale).clamp(0, 2**bits - 1)
    return (levels * scale + low).reshape(weight.shape)


def model_config(c: NetworkConfig) -> dict[str, Any]:
    """Return config.json's content."""
    audio_encoding = {
        "sampling_rate": 16000,
        "frame_rate": 12.5,
        "num_mel_bins": 128,
        "hop_length": 160,
        "window_size": 400,
        "global_log_mel_max": 1.5,
        "transcription_format": "streaming",
    }
    shared = {"head_dim": c.head_dim, "norm_eps": 1e-5, "rope_theta": c.theta}
    return {
        "model_type": "voxtral_realtime",
        "transcription_delay_ms": DEFAULT_DELAY_MS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "streaming_pad_token_id": 32,
        "n_left_pad_tokens": LEFT_PAD,
        "encoder_args": {
            "audio_encoding_args": audio_encoding,
            "dim": c.dim,
            "n_layers": c.enc_layers,
            "hidden_dim": c.enc_ffn,
            "n_heads": c.enc_heads,
            "n_kv_heads": c.enc_heads,
            "sliding_window": c.enc_window,
            "causal": True,
            "use_biases": True,
            "downsample_factor": 4,
            **shared,
        },
        "decoder": {
            "dim": c.dec_dim,
            "n_layers": c.dec_layers,
            "hidden_dim": c.dec_ffn,
            "n_heads": c.dec_heads,
            "n_kv_heads": c.dec_kv,
            "vocab_size": c.vocab,
            "sliding_window": c.dec_window,
            "tied_embeddings": True,
            "ada_rms_norm_t_cond": True,
            "ada_rms_norm_t_cond_dim": c.ada,
            **shared,
        },
    }


def tekken(pieces: WordPieces) -> dict[str, Any]:
    """Return tekken.json's content."""
    vocab = []
    for rank, token in enumerate(pieces.tokens):
        try:
            text = token.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        vocab.append({"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": text})
    special = [
        {"rank": i, "token_str": SPECIAL_NAMES.get(i, f"<SPECIAL_{i}>"), "is_control": True}
        for i in range(N_SPECIAL_TOKENS)
    ]
    return {
        "config": {
            "pattern": r" ?[a-z']+",
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": pieces.vocab_size,
            "default_num_special_tokens": N_SPECIAL_TOKENS,
            "version": "v11",
        },
        "vocab": vocab,
        "special_tokens": special,
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "transcription_delay_ms": DEFAULT_DELAY_MS,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": LEFT_PAD,
            "transcription_format": "streaming",
        },
    }


def save_state(path: Path, network: Network, extra: dict[str, Any]) -> None:
    """Write a training state from which a run can be continued: float16 weights with auxiliary heads, and extras."""
    weights = {name: weight.half() for name, weight in network.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    torch.save({"config": asdict(network.c), "weights": weights, **extra}, temporary)
    temporary.rename(path)


def read_state(path: Path) -> tuple[Network, dict[str, Any]]:
    """Return the network, auxiliary heads included, and the extras of a training state."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = Network(NetworkConfig(**state.pop("config")))
    weights = {name: weight.float() for name, weight in state.pop("weights").items()}
    missing, _ = network.load_state_dict(weights, strict=False)
    if any(not name.startswith("aux.") for name in missing):
        raise ValueError(f"{path} lacks weights: {missing}")
    return network, state


@torch.no_grad()
def widen(network: Network, dec_ffn: int, like: Network | None = None) -> Network:
    """Return a network that computes the same, with wider feed-forward layers in the decoder.

    Nothing is read yet of what the new units say; what they listen to is random, or as in `like`.
    """
    wide = Network(replace(network.c, dec_ffn=dec_ffn))
    if like:
        wide.load_state_dict(like.state_dict())
    weights = wide.state_dict()
    for name, weight in network.state_dict().items():
        if weights[name].shape != weight.shape and name.endswith("w2.weight"):
            weights[name].zero_()
        weights[name][tuple(slice(n) for n in weight.shape)] = weight
    return wide


def average_states(paths: list[Path], shares: list[float]) -> Network:
    """Return the network whose weights are the mean of states or checkpoints, weighed by shares that sum to 1."""
    networks = [read_state(path)[0] if path.suffix == ".pt" else read_checkpoint(path) for path in paths]
    widest = max(networks, key=lambda network: network.c.dec_ffn)
    states = [
        (network if network.c == widest.c else widen(network, widest.c.dec_ffn, widest)).state_dict()
        for network in networks
    ]
    mean = {
        name: torch.stack([share * state[name] for share, state in zip(shares, states, strict=True)]).sum(0)
        for name in states[0]
    }
    widest.load_state_dict(mean)
    return widest


def main() -> None:
    parser = argparse.ArgumentParser(description="export one training state or the mean of several")
    parser.add_argument("pieces", type=Path, help="BPE merges")
    parser.add_argument("out", type=Path, help="checkpoint folder")
    parser.add_argument("states", nargs="+", help="STATE.pt or a checkpoint folder, or either with =SHARE behind it")
    parser.add_argument("--state", type=Path, help="also write the mean as a training state")
    options = parser.parse_args()
    split = [state.partition("=") for state in options.states]
    shares = [float(share) if share else 1 / len(split) for _, _, share in split]
    network = average_states([Path(path) for path, _, _ in split], shares)
    write_checkpoint(network, WordPieces.load(options.pieces), options.out)
    if options.state:
        save_state(options.state, network, {})
    n_weights = sum(weight.numel() for name, weight in network.named_parameters() if not name.startswith("aux."))
    print(f"{n_weights} weights, {n_weights * 8.5 / 8e6:.1f} MB at 8 bits, {n_weights * 6.5 / 8e6:.1f} MB at 6")


if __name__ == "__main__":
    main()
