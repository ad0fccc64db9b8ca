"""From a directory to a network: strict, in any of the four layouts, quantized or not.

Every tensor of the checkpoint must have a place and every place a tensor; what does not fit stops the load and is
listed. A module is quantized when its `.scales` exist, whatever the JSON says. Where a backend gains nothing from
quantized weights (the CPU), they are dequantized once, here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from voxpipe.checkpoints.files import check_safetensors, config_file, read_json, weight_files
from voxpipe.checkpoints.layouts import Layout, recognise
from voxpipe.config import ModelConfig
from voxpipe.errors import ModelError
from voxpipe.model.linear import replace_module
from voxpipe.model.tokenizer import Tokenizer
from voxpipe.model.voxtral import VoxtralRealtime

DTYPES = {"f32": mx.float32, "fp16": mx.float16, "bf16": mx.bfloat16}
FLOATS = (mx.float32, mx.float16, mx.bfloat16)
QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)  # MLX has kernels for these,
GROUP_SIZES = (32, 64, 128)  # and these


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a model directory under our names."""

    directory: Path
    layout: Layout
    config: ModelConfig
    tensors: dict[str, mx.array]

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its activations: that of the embedding, or of the scales where it is quantized."""
        kind = "scales" if "decoder.embed_tokens.scales" in self.tensors else "weight"
        return self.tensors[f"decoder.embed_tokens.{kind}"].dtype


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and rename the tensors of a model directory (lazily: bytes are read when they are used).

    Raises:
        ModelError: a file is missing or damaged, or a tensor has no place in this model.
    """
    config = ModelConfig.from_json(read_json(config_file(directory)))
    raw: dict[str, mx.array] = {}
    for path in weight_files(directory):
        check_safetensors(path)
        try:
            loaded = mx.load(str(path))
        except (RuntimeError, ValueError) as exc:
            raise ModelError(f"cannot load {path}: {exc}") from exc
        assert isinstance(loaded, dict)
        raw.update(loaded)
    layout, our_names = _rename(directory, raw)
    tensors = {ours: _laid_out(layout, ours, raw[theirs], config, directory) for ours, theirs in our_names.items()}
    return Checkpoint(directory, layout, config, tensors)


def check_tensors(where: object, config: ModelConfig, names: Iterable[str]) -> Layout:
    """Say by the names of a checkpoint's tensors alone in which layout it is.

    Raises:
        ModelError: there are too many of them or too few; names `where`.
    """
    layout, our_names = _rename(where, names)
    _check_places(where, layout, set(our_names), VoxtralRealtime(config))
    return layout


def _rename(where: object, names: Iterable[str]) -> tuple[Layout, dict[str, str]]:
    """The layout, and our name of each tensor -> theirs."""
    names = list(names)
    layout = recognise(names)
    translated = {name: layout.our_name(name) for name in names if name not in layout.tied}
    unknown = [name for name, ours in translated.items() if ours is None]
    if unknown:
        raise ModelError(f"{where} has {_list(unknown)} unknown to Voxtral Realtime in the {layout.name} layout")
    return layout, {ours: name for name, ours in translated.items() if ours is not None}


def _laid_out(layout: Layout, our_name: str, tensor: mx.array, config: ModelConfig, directory: Path) -> mx.array:
    try:
        return layout.to_ours(our_name, tensor, config)
    except ValueError as exc:  # the shape does not divide
        raise ModelError(f"{directory}: {layout.their_name(our_name)} has the wrong shape {tensor.shape}") from exc


def build_network(
    checkpoint: Checkpoint, *, dtype: mx.Dtype | None = None, dequantize: bool | None = None
) -> VoxtralRealtime:
    """Make the network and fill it; arguments and errors as for `assemble_network`."""
    network = assemble_network(checkpoint, dtype=dtype, dequantize=dequantize)
    mx.eval(network.parameters())
    return network


def assemble_network(
    checkpoint: Checkpoint, *, dtype: mx.Dtype | None = None, dequantize: bool | None = None
) -> VoxtralRealtime:
    """Make the network and put every tensor into its place, reading none of them yet.

    Args:
        dtype: of weights and activations; by default the checkpoint's own on a GPU, float32 on the CPU, whose
            16-bit arithmetic is emulated.
        dequantize: make quantized weights plain; by default on the CPU only.

    Raises:
        ModelError: tensors are missing or have the wrong shape.
    """
    on_cpu = mx.default_device() == mx.cpu
    dtype = dtype or (mx.float32 if on_cpu else checkpoint.dtype)
    dequantize = on_cpu if dequantize is None else dequantize
    network = VoxtralRealtime(checkpoint.config)
    tensors = dict(checkpoint.tensors)
    _check_places(checkpoint.directory, checkpoint.layout, set(tensors), network)
    for path, module in network.named_modules():
        if f"{path}.scales" not in tensors:
            continue
        theirs = checkpoint.layout.their_name(f"{path}.weight").removesuffix(".weight")
        weight, scales, biases = (tensors.pop(f"{path}.{kind}", None) for kind in ("weight", "scales", "biases"))
        if weight is None or scales is None or biases is None:
            raise ModelError(
                f"{checkpoint.directory}: {theirs} is quantized in another mode than 'affine'; convert it again"
            )
        quantization = _quantization(module, weight, scales, biases)
        if quantization is None:
            raise ModelError(
                f"{checkpoint.directory}: the quantized tensors of {theirs} do not fit together; convert the model again"
            )
        bits, group_size = quantization
        scales, biases = scales.astype(dtype), biases.astype(dtype)  # first: the product must not be rounded to 16 bits
        if dequantize or ".ada." in path:
            tensors[f"{path}.weight"] = mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits)
        else:
            replace_module(network, path, _quantized(module, weight, scales, biases, bits, group_size))
    expected = dict(tree_flatten(network.parameters()))
    for name in sorted(tensors):
        tensor, theirs = tensors[name], checkpoint.layout.their_name(name)
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{checkpoint.directory}: {theirs} has shape {tensor.shape}, not {expected[name].shape}")
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).rpartition(".")[2]
            raise ModelError(
                f"{checkpoint.directory}: {theirs} is {kind}; only float32, float16 and bfloat16 can be loaded"
            )
        tensors[name] = tensor.astype(dtype)
    network.load_weights(list(tensors.items()), strict=False)  # quantized modules hold theirs already
    network.freeze()
    return network


def quantization_of(checkpoint: Checkpoint) -> tuple[int, int, int] | None:
    """The fewest and the most bits of its quantized weights and the smallest group size, by their shapes; None without any."""
    network = VoxtralRealtime(checkpoint.config)
    found = []
    for path, module in network.named_modules():
        parts = [checkpoint.tensors.get(f"{path}.{kind}") for kind in ("weight", "scales", "biases")]
        weight, scales, biases = parts
        if weight is not None and scales is not None and biases is not None:
            quantization = _quantization(module, weight, scales, biases)
            found += [quantization] if quantization else []
    if not found:
        return None
    bits, group_sizes = zip(*found, strict=True)
    return min(bits), max(bits), min(group_sizes)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the checkpoint's tekken.json."""
    return Tokenizer.from_json(
        read_json(checkpoint.directory / "tekken.json"), vocab_size=checkpoint.config.decoder.vocab_size
    )


def _check_places(where: object, layout: Layout, our_names: set[str], network: VoxtralRealtime) -> None:
    expected = {name for name, _ in tree_flatten(network.parameters())}
    known = expected | {name for name in our_names if name.endswith(".scales")}
    missing = [layout.their_name(name) for name in sorted(expected - our_names)]
    extra = [
        layout.their_name(name)
        for name in sorted(our_names - expected)
        if not (name.endswith((".scales", ".biases")) and {_sibling(name, "weight"), _sibling(name, "scales")} <= known)
    ]
    if missing:
        raise ModelError(f"{where} lacks {_list(missing)}; fetch the model again")
    if extra:
        raise ModelError(f"{where} has {_list(extra)} that its configuration has no place for")


def _sibling(name: str, kind: str) -> str:
    return f"{name.rpartition('.')[0]}.{kind}"


def _quantization(module: nn.Module, weight: mx.array, scales: mx.array, biases: mx.array) -> tuple[int, int] | None:
    """(bits, group size), which the shapes tell: weights are packed into 32-bit words, one scale per group.

    None where they contradict each other or the module.
    """
    if not hasattr(module, "to_quantized") or weight.ndim != 2 or scales.ndim != 2 or scales.shape[1] == 0:
        return None
    n_outputs, n_inputs = module.weight.shape
    bits, group_size = weight.shape[1] * 32 // n_inputs, n_inputs // scales.shape[1]
    fits = (
        weight.dtype == mx.uint32
        and scales.dtype in FLOATS
        and biases.dtype in FLOATS
        and weight.shape == (n_outputs, n_inputs * bits // 32)
        and scales.shape == biases.shape == (n_outputs, n_inputs // group_size)
        and bits in QUANTIZED_BITS
        and group_size in GROUP_SIZES
    )
    return (bits, group_size) if fits else None


def _quantized(
    module: nn.Module, weight: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int
) -> nn.Module:
    if isinstance(module, nn.Embedding):
        quantized: nn.Module = nn.QuantizedEmbedding(*module.weight.shape, group_size=group_size, bits=bits)
    else:
        n_outputs, n_inputs = module.weight.shape
        quantized = nn.QuantizedLinear(n_inputs, n_outputs, bias="bias" in module, group_size=group_size, bits=bits)
    quantized["weight"], quantized["scales"], quantized["biases"] = weight, scales, biases
    return quantized


def _list(names: list[str]) -> str:
    noun = "the tensor" if len(names) == 1 else f"{len(names)} tensors"
    shown = ", ".join(sorted(names)[:4])
    return f"{noun} {shown}{', …' if len(names) > 4 else ''}"
