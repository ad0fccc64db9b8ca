"""Write any checkpoint in the mlx-audio layout, at another precision if asked.

What is quantized is what a step reads: the linear maps and the tied embedding. Convolutions, norms, biases and the delay
modulation stay plain (the modulation decides over every layer and costs nothing).
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from voxpipe.checkpoints.layouts import MLX_AUDIO
from voxpipe.checkpoints.load import GROUP_SIZES, build_network, read_checkpoint
from voxpipe.errors import OutputError, UsageError
from voxpipe.model.voxtral import VoxtralRealtime

BITS = (4, 6, 8)
# 8 % of `tiny`'s weights, which do half of the harm that 6 bits do
SENSITIVE = re.compile(r"^decoder\.embed_tokens|^encoder\.adapter|^decoder\.layers\.\d+\.attention")
SHARD_BYTES = 4 << 30


def convert(
    source: Path,
    target: Path,
    *,
    bits: int | None = None,
    group_size: int = 64,
    mixed: bool = False,
    dtype: mx.Dtype | None = None,
) -> Path:
    """Convert the model in `source` into the new directory `target` and return it.

    Args:
        bits: 4, 6 or 8 to quantize; None keeps the weights plain, dequantizing those that are not.
        mixed: 8 bits for what is small and matters most (`SENSITIVE`), whatever `bits` says of the rest.
        dtype: of everything that is not quantized; by default as in `source`.

    Raises:
        ModelError: `source` is not a model.
        OutputError: `target` exists and holds files, or cannot be written.
    """
    if bits is not None and bits not in BITS:
        raise UsageError(f"{bits} bits are not possible; choose one of {', '.join(map(str, BITS))}")
    if bits is not None and group_size not in GROUP_SIZES:
        raise UsageError(
            f"a group size of {group_size} is not possible; choose one of {', '.join(map(str, GROUP_SIZES))}"
        )
    if mixed and bits is None:
        raise UsageError("mixed precision needs the bits of the rest; add --bits 4 or --bits 6")
    checkpoint = read_checkpoint(source)
    tekken = source / "tekken.json"
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise OutputError(f"{target} is not empty; name a new directory")
        with mx.stream(mx.cpu):
            network = build_network(checkpoint, dtype=dtype or checkpoint.dtype, dequantize=True)
            quantization = None if bits is None else quantize(network, bits=bits, group_size=group_size, mixed=mixed)
            write_network(network, target, quantization=quantization)
        if tekken.exists():
            shutil.copyfile(tekken, target / "tekken.json")
    except OSError as exc:
        if isinstance(exc, OutputError):
            raise
        raise OutputError(f"cannot write {target}: {exc.strerror or exc}") from exc
    return target


def quantize(network: VoxtralRealtime, *, bits: int, group_size: int = 64, mixed: bool = False) -> dict[str, Any]:
    """Quantize, in place, what a step reads; returns what the configuration says of it, single modules by their stored names."""
    is_quantized = _is_quantized(group_size)
    said: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}

    def how(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not is_quantized(path, module):
            return False
        if not (mixed and SENSITIVE.search(path)):
            return True
        more = {"group_size": group_size, "bits": max(BITS)}
        said[MLX_AUDIO.their_name(f"{path}.weight").removesuffix(".weight")] = more
        return more

    nn.quantize(network, group_size=group_size, bits=bits, class_predicate=how)
    return said


def write_network(network: VoxtralRealtime, target: Path, *, quantization: Mapping[str, Any] | None = None) -> None:
    """Write weights and configuration into `target` in the mlx-audio layout, as they are; makes the directory."""
    target.mkdir(parents=True, exist_ok=True)
    raw = replace(network.config, quantization=quantization or {}).to_json()
    (target / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    _write_weights(network, target)


def _is_quantized(group_size: int) -> Callable[[str, nn.Module], bool]:
    def predicate(path: str, module: nn.Module) -> bool:
        if not hasattr(module, "to_quantized") or ".ada." in path:
            return False
        return bool(module.weight.shape[-1] % group_size == 0)

    return predicate


def _write_weights(network: nn.Module, target: Path) -> None:
    tensors = {MLX_AUDIO.their_name(name): tensor for name, tensor in tree_flatten(network.parameters())}
    shards = list(_shards(tensors))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        try:
            mx.save_safetensors(str(target / name), shard, metadata={"format": "mlx"})
        except RuntimeError as exc:  # MLX's only word for a full disk
            raise OutputError(f"cannot write {target / name}: {exc}") from exc
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: dict[str, mx.array]) -> Iterator[dict[str, mx.array]]:
    shard: dict[str, mx.array] = {}
    n_bytes = 0
    for name, tensor in tensors.items():
        if shard and n_bytes + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, n_bytes = {}, 0
        shard[name] = tensor
        n_bytes += tensor.nbytes
    yield shard
