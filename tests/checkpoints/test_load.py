"""Loading is strict: whatever is wrong with a model directory is said in one line, before anything runs."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.model.offline import audio_embeds, load_network, logits, padded_mel
from tests.random_checkpoints import (
    AWKWARD,
    EVEN,
    Quantization,
    random_audio,
    random_tensors,
    tekken_json,
    write_checkpoint,
    write_weights,
)
from voxpipe.checkpoints.load import build_network, load_tokenizer, read_checkpoint
from voxpipe.errors import EX_CONFIG, ModelError
from voxpipe.model.voxtral import VoxtralRealtime


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A whole mlx-audio checkpoint, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def load_all(directory: Path) -> None:
    """Everything that `voxpipe.load` does with a directory."""
    checkpoint = read_checkpoint(directory)
    load_tokenizer(checkpoint)
    build_network(checkpoint)


def refusal(directory: Path, load: Callable[[Path], object] = load_all) -> str:
    """The one line with which the directory is refused."""
    with pytest.raises(ModelError) as error:
        load(directory)
    assert error.value.status == EX_CONFIG
    message = str(error.value)
    assert "\n" not in message
    return message


def rewritten(directory: Path, change: Callable[[dict[str, mx.array]], Any], name: str = "model.safetensors") -> None:
    """Change the tensors of a file."""
    tensors = mx.load(str(directory / name))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(directory / name), tensors)


def test_whole(directory: Path) -> None:
    load_all(directory)


# --- files -------------------------------------------------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    assert refusal(path) == f"there is no model directory {path}"


def test_a_file_is_no_directory(directory: Path) -> None:
    path = directory / "config.json"
    assert refusal(path) == f"there is no model directory {path}"


def test_no_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    assert refusal(directory) == f"{directory} has no config.json or params.json: it is not a model directory"


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}}', "nonsense"])
def test_bad_json(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    message = refusal(directory)
    assert message.startswith(f"{directory}/config.json is not valid JSON (")
    assert message.endswith("; fetch it again")


def test_json_in_another_encoding(directory: Path) -> None:
    (directory / "config.json").write_bytes(b'{"model_type": "\xff"}')
    assert refusal(directory).startswith(f"{directory}/config.json is not valid JSON (")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"config"'])
def test_json_that_is_no_object(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    assert refusal(directory) == f"{directory}/config.json is not a JSON object; fetch it again"


def test_config_is_a_directory(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    assert refusal(directory) == f"cannot read {directory}/config.json: Is a directory"


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert refusal(directory) == f"{directory} has no .safetensors file"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "model.pkl"])
def test_pickle_only(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory / name)
    assert refusal(directory) == (
        f"{directory} holds {name}, a pickle, which can run code; only safetensors are loaded"
    )


def test_pickle_beside_safetensors_is_left_alone(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    load_all(directory)


def test_truncated(directory: Path) -> None:
    """A download that broke off: at any point of the header or the data."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    cuts = [
        0,
        1,
        7,
        8,
        9,
        100,
        header_end - 1,
        header_end,
        header_end + 1,
        len(data) // 2,
        len(data) - 4,
        len(data) - 1,
    ]
    for cut in cuts:
        path.write_bytes(data[:cut])
        expected = (
            f"{path} is not a safetensors file; fetch it again"
            if cut < 8
            else f"{path} is truncated or damaged ({cut} bytes); fetch it again"
        )
        assert refusal(directory) == expected


def test_longer_than_its_header_says(directory: Path) -> None:
    path = directory / "model.safetensors"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0" * 3)
    assert refusal(directory) == f"{path} is truncated or damaged ({size + 3} bytes); fetch it again"


GARBAGE = {
    "html": b"<!DOCTYPE html><html><body>Sign in to continue</body></html>" * 20,
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 8859462744\n",
    "random": random.Random(1).randbytes(5_000),
    "zeros": bytes(5_000),
    "header is no JSON": (20).to_bytes(8, "little") + b"{" * 200,
    "header is a list": (2).to_bytes(8, "little") + b"[]",
    "entry without offsets": (16).to_bytes(8, "little") + b'{"a":{"x":"y"}} ',
    "offsets are words": (40).to_bytes(8, "little") + b'{"a":{"data_offsets":["x","y"]}}'.ljust(40),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage(directory: Path, kind: str) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(GARBAGE[kind])
    assert refusal(directory) == f"{path} is not a safetensors file; fetch it again"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
    ids=["too short", "unknown type", "no shape", "negative shape"],
)
def test_header_that_lies(directory: Path, entry: dict[str, Any]) -> None:
    path = directory / "model.safetensors"
    header = json.dumps({"decoder.norm.weight": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    message = refusal(directory)
    assert str(directory) in message


def test_sharded(tmp_path: Path) -> None:
    whole = read_checkpoint(write_checkpoint(tmp_path / "whole", seed=2))
    for layout in ("mlx-audio", "hugging-face"):
        sharded = read_checkpoint(write_checkpoint(tmp_path / layout, layout, seed=2, n_shards=3))
        assert sharded.tensors.keys() == whole.tensors.keys()
        assert all(mx.array_equal(tensor, whole.tensors[name]) for name, tensor in sharded.tensors.items())


def test_missing_shard(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", n_shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert refusal(directory) == (
        f"{directory} lacks model-00002-of-00003.safetensors, which model.safetensors.index.json names; "
        "fetch the model again"
    )


def test_truncated_shard(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", n_shards=3)
    path = directory / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert refusal(directory) == f"{path} is truncated or damaged ({len(data) - 1} bytes); fetch it again"


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}'])
def test_index_without_a_map(tmp_path: Path, text: str) -> None:
    directory = write_checkpoint(tmp_path / "model", n_shards=2)
    index = directory / "model.safetensors.index.json"
    index.write_text(text)
    assert refusal(directory) == f"{index} has no weight_map; fetch it again"


def test_consolidated_is_preferred_where_both_exports_lie(tmp_path: Path) -> None:
    """Mistral's own repository carries both, with one params.json and one config.json."""
    directory = write_checkpoint(tmp_path / "model", "mistral", seed=1)
    write_checkpoint(directory, "hugging-face", seed=1)
    checkpoint = read_checkpoint(directory)
    assert checkpoint.layout.name == "Mistral"
    load_all(directory)


# --- tensors -----------------------------------------------------------------------------------------------------------


def test_missing_tensor(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors.pop("decoder.norm.weight"))
    assert refusal(directory) == f"{directory} lacks the tensor decoder.norm.weight; fetch the model again"


@pytest.mark.parametrize(
    ("layout", "file", "name"),
    [
        ("mistral", "consolidated.safetensors", "layers.2.feed_forward.w2.weight"),
        ("voxmlx", "model.safetensors", "adapter.w_in.weight"),
        ("hugging-face", "model.safetensors", "language_model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_missing_tensor_is_called_by_its_own_name(layout: str, file: str, name: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", layout)
    prefix = "model." if layout == "hugging-face" else ""
    rewritten(directory, lambda tensors: tensors.pop(prefix + name), file)
    assert refusal(directory) == f"{directory} lacks the tensor {name}; fetch the model again"


def test_missing_layer_is_listed_in_short(directory: Path) -> None:
    rewritten(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "decoder.layers.2." in name])
    assert refusal(directory) == (
        f"{directory} lacks 11 tensors decoder.layers.2.ada_rms_norm_t_cond.ada_down.weight, "
        "decoder.layers.2.ada_rms_norm_t_cond.ada_up.weight, decoder.layers.2.attention.wk.weight, "
        "decoder.layers.2.attention.wo.weight, …; fetch the model again"
    )


def test_unknown_tensor(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors.update({"decoder.layers.0.attention.wq.lora_a": mx.zeros(3)}))
    assert refusal(directory) == (
        f"{directory} has the tensor decoder.layers.0.attention.wq.lora_a unknown to Voxtral Realtime "
        "in the mlx-audio layout"
    )


def test_another_model_altogether(directory: Path) -> None:
    names = {f"model.layers.{i}.mlp.experts.weight": mx.zeros(1) for i in range(7)}

    def replace_all(tensors: dict[str, mx.array]) -> None:
        tensors.clear()
        tensors.update(names)

    rewritten(directory, replace_all)
    message = refusal(directory)
    assert message.startswith(f"{directory} has 7 tensors model.layers.0.mlp.experts.weight, ")
    assert message.endswith(" layout")


@pytest.mark.parametrize("name", ["decoder.layers.3.ffn_norm.weight", "decoder.layers.0.attention.wq.bias"])
def test_tensor_without_a_place(directory: Path, name: str) -> None:
    """The layer after the last, or a bias where there is none."""
    rewritten(directory, lambda tensors: tensors.update({name: mx.zeros(56)}))
    assert refusal(directory) == f"{directory} has the tensor {name} that its configuration has no place for"


def test_wrong_shape(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors.update({"decoder.norm.weight": mx.zeros(57)}))
    assert refusal(directory) == f"{directory}: decoder.norm.weight has shape (57,), not (56,)"


def test_config_of_another_size(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["decoder"]["hidden_dim"] = 96
    (directory / "config.json").write_text(json.dumps(config))
    assert refusal(directory) == (
        f"{directory}: decoder.layers.0.feed_forward_w2.weight has shape (56, 88), not (56, 96)"
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.language_model.layers.0.self_attn.q_proj.weight", (71, 56)),
        ("model.audio_tower.embedder.conv1.weight", (40, 128)),
    ],
)
def test_wrong_shape_where_the_layout_is_changed(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", "hugging-face")
    rewritten(directory, lambda tensors: tensors.update({name: mx.zeros(shape)}))
    theirs = name.removeprefix("model.")
    assert refusal(directory) == f"{directory}: {theirs} has the wrong shape {shape}"


@pytest.mark.parametrize("dtype", [mx.uint8, mx.int32])
def test_weights_that_are_no_floats(directory: Path, dtype: mx.Dtype) -> None:
    """An fp8 checkpoint, which MLX reads as bytes."""
    name = "decoder.layers.0.attention.wq.weight"
    rewritten(directory, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))
    assert refusal(directory) == (
        f"{directory}: {name} is {str(dtype).split('.')[-1]}; only float32, float16 and bfloat16 can be loaded"
    )


# --- tekken.json -------------------------------------------------------------------------------------------------------


def test_no_tekken(directory: Path) -> None:
    (directory / "tekken.json").unlink()
    assert refusal(directory) == f"{directory} has no tekken.json"


def test_tekken_too_small(directory: Path) -> None:
    (directory / "tekken.json").write_text(json.dumps(tekken_json(299)))
    assert refusal(directory) == "tekken.json has 299 tokens; the model needs 300"


def test_tekken_malformed(directory: Path) -> None:
    (directory / "tekken.json").write_text('{"vocab": []}')
    assert refusal(directory) == "tekken.json is malformed (KeyError('config')); fetch it again"


# --- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("wanted", [mx.float32, mx.float16, mx.bfloat16])
def test_everything_is_cast(stored: mx.Dtype, wanted: mx.Dtype, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", dtype=stored)
    assert read_checkpoint(directory).dtype == stored
    network = load_network(directory, dtype=wanted)
    assert {array.dtype for _, array in tree_flatten(network.parameters())} == {wanted}
    state = network.make_state(6)
    assert network.delay_scales(6).dtype == wanted
    (embeds,) = network.encode([(state, np.zeros((8, 128), np.float32))])
    assert embeds.dtype == wanted
    assert network.decode([embeds], [[1]], [state]).dtype == wanted
    caches = [array for ring in (state.encoder.ring, state.decoder) for array in ring.tray.arrays()]
    assert len(caches) == 2 * (AWKWARD.encoder_layers + AWKWARD.decoder_layers)
    assert {array.dtype for array in caches} == {wanted}


def test_mixed_types_are_cast(directory: Path) -> None:
    """The published 4-bit repository holds float32 beside float16."""

    def half(tensors: dict[str, mx.array]) -> None:
        tensors.update({name: array.astype(mx.float16) for name, array in tensors.items() if "norm" not in name})

    rewritten(directory, half)
    network = load_network(directory, dtype=mx.float16)
    assert {array.dtype for _, array in tree_flatten(network.parameters())} == {mx.float16}


# --- quantized ---------------------------------------------------------------------------------------------------------


def write_quantized(directory: Path, quantization: Quantization, *, dtype: mx.Dtype = mx.float32) -> Path:
    layout = "voxmlx" if quantization.modules == "voxmlx" else "mlx-audio"
    return write_checkpoint(directory, layout, sizes=EVEN, dtype=dtype, quantization=quantization)


def outputs(network: VoxtralRealtime) -> tuple[np.ndarray, np.ndarray]:
    """Audio embeddings, and logits over fixed tokens."""
    mel = padded_mel(random_audio(4_001), 2)
    embeds = audio_embeds(network, mel)
    tokens = np.arange(len(mel) // 8) * 37 % 300
    return np.array(embeds), logits(network, embeds, tokens, 2)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("modules", ["old", "new", "voxmlx"])
def test_quantized_equals_dequantized(modules: str, bits: int, tmp_path: Path) -> None:
    """The same numbers through a quantized product and a plain one: float32 rounding apart."""
    directory = write_quantized(tmp_path / "model", Quantization(bits, modules=modules))
    quantized = load_network(directory, dequantize=False)
    plain = load_network(directory, dequantize=True)
    kinds = {type(module) for _, module in quantized.named_modules()}
    assert nn.QuantizedLinear in kinds
    assert (nn.QuantizedEmbedding in kinds) == (modules != "old")
    assert not {nn.QuantizedLinear, nn.QuantizedEmbedding} & {type(module) for _, module in plain.named_modules()}
    for got, expected in zip(outputs(quantized), outputs(plain), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_dequantized_is_what_was_quantized(bits: int, tmp_path: Path) -> None:
    """Weight by weight within a step of the float checkpoint, and not equal to it."""
    quantization = Quantization(bits, group_size=32)
    plain = load_network(write_checkpoint(tmp_path / "plain", sizes=EVEN), fuse=False)
    got = load_network(write_quantized(tmp_path / "model", quantization), fuse=False)
    expected = dict(tree_flatten(plain.parameters()))
    n_changed = 0
    for name, array in tree_flatten(got.parameters()):
        difference = float(mx.abs(array - expected[name]).max())
        step = float(expected[name].max() - expected[name].min()) / (2**bits - 1)
        assert difference <= step, name  # half of one, and MLX moves scales so that an edge is kept
        n_changed += difference > 0
    assert n_changed == 7 * (EVEN.encoder_layers + EVEN.decoder_layers) + 3


def test_more_bits_are_nearer(tmp_path: Path) -> None:
    plain = outputs(load_network(write_checkpoint(tmp_path / "plain", sizes=EVEN)))[1]
    errors = []
    for bits in (4, 6, 8):
        quantized = outputs(load_network(write_quantized(tmp_path / str(bits), Quantization(bits))))[1]
        errors.append(np.abs(quantized - plain).mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize("stored", [mx.float16, mx.bfloat16])
def test_low_precision_scales_are_not_rounded_again(stored: mx.Dtype, tmp_path: Path) -> None:
    """Dequantized in 16 bits and then widened, the weights would be off by 2^-9 (bf16)."""
    directory = write_quantized(tmp_path / "model", Quantization(4), dtype=stored)
    quantized, plain = load_network(directory, dequantize=False), load_network(directory, dequantize=True)
    for got, expected in zip(outputs(quantized), outputs(plain), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("group_size", [32, 64])
def test_group_size_is_read_from_the_shapes(group_size: int, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path / "model", Quantization(4, group_size=group_size))
    network = load_network(directory, dequantize=False)
    assert network.decoder.embed_tokens.group_size == group_size
    assert network.encoder.layers[0].mlp.down_proj.group_size == group_size


def test_bits_of_single_modules(tmp_path: Path) -> None:
    """Mixed precision, as converters write it: the head and one projection at 8 bits, the rest at 4."""
    overrides = (("decoder.tok_embeddings", 8), ("encoder.transformer_layers.1.attention.wq", 6))
    directory = write_quantized(tmp_path / "model", Quantization(4, overrides=overrides))
    network = load_network(directory, dequantize=False, fuse=False)
    assert network.decoder.embed_tokens.bits == 8
    assert network.encoder.layers[1].attention.q_proj.bits == 6
    assert network.encoder.layers[0].attention.q_proj.bits == 4
    network.fuse()
    assert [one.bits for one in network.encoder.layers[1].attention.qkv.maps] == [6, 4, 4]
    assert network.encoder.layers[0].attention.qkv.bits == 4
    for got, expected in zip(outputs(network), outputs(load_network(directory)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_scales_decide_and_not_the_configuration(tmp_path: Path) -> None:
    directory = write_quantized(tmp_path / "model", Quantization(4))
    expected = outputs(load_network(directory))
    config = json.loads((directory / "config.json").read_text())
    for quantization in (None, {"group_size": 32, "bits": 8}):
        config["quantization"] = quantization
        (directory / "config.json").write_text(json.dumps(config))
        for got, plain in zip(outputs(load_network(directory)), expected, strict=True):
            np.testing.assert_array_equal(got, plain)


def test_quantized_sets_agree(tmp_path: Path) -> None:
    """Whatever was left plain, 8 bits are near the float checkpoint; the sets differ from each other."""
    plain = outputs(load_network(write_checkpoint(tmp_path / "plain", sizes=EVEN)))[1]
    got = {
        modules: outputs(load_network(write_quantized(tmp_path / modules, Quantization(8, modules=modules))))[1]
        for modules in ("old", "new", "voxmlx")
    }
    for modules, values in got.items():
        assert 0 < np.abs(values - plain).mean() < 0.05 * plain.std(), modules
    assert np.abs(got["old"] - got["new"]).max() > 1e-3
    assert np.abs(got["new"] - got["voxmlx"]).max() > 1e-3


def test_type_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", sizes=EVEN, dtype=mx.bfloat16, quantization=Quantization(4))
    assert read_checkpoint(directory).dtype == mx.bfloat16
    network = load_network(directory, dtype=mx.float16, dequantize=False)
    types = {array.dtype for name, array in tree_flatten(network.parameters()) if array.dtype != mx.uint32}
    assert types == {mx.float16}


QUANTIZED_NAME = "decoder.layers.0.attention.wq"


def test_unknown_quantization_mode(tmp_path: Path) -> None:
    """mxfp4 and its like have no biases."""
    directory = write_quantized(tmp_path / "model", Quantization(4))
    rewritten(directory, lambda tensors: tensors.pop(f"{QUANTIZED_NAME}.biases"))
    assert refusal(directory) == (
        f"{directory}: {QUANTIZED_NAME} is quantized in another mode than 'affine'; convert it again"
    )


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("weight", (64, 2), mx.uint32),
        ("weight", (64, 0), mx.uint32),
        ("weight", (63, 16), mx.uint32),
        ("weight", (64, 17), mx.uint32),
        ("weight", (64, 128), mx.float32),
        ("scales", (64, 1), mx.float32),
        ("scales", (63, 2), mx.float32),
        ("scales", (64, 3), mx.float32),
        ("scales", (64, 0), mx.float32),
        ("scales", (64, 2), mx.uint8),
        ("biases", (64, 1), mx.float32),
        ("biases", (64,), mx.float32),
    ],
)
def test_quantized_tensor_of_a_wrong_shape(
    kind: str, shape: tuple[int, ...], dtype: mx.Dtype, dequantize: bool, tmp_path: Path
) -> None:
    directory = write_quantized(tmp_path / "model", Quantization(4))
    rewritten(directory, lambda tensors: tensors.update({f"{QUANTIZED_NAME}.{kind}": mx.zeros(shape, dtype)}))
    message = refusal(directory, lambda path: build_network(read_checkpoint(path), dequantize=dequantize))
    assert message == (
        f"{directory}: the quantized tensors of {QUANTIZED_NAME} do not fit together; convert the model again"
    )


@pytest.mark.parametrize("name", ["decoder.norm", "encoder.conv_layers_0_conv.conv"])
def test_scales_where_nothing_is_quantized(name: str, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path / "model", Quantization(4))
    rewritten(
        directory, lambda tensors: tensors.update({f"{name}.{kind}": mx.zeros((2, 2)) for kind in ("scales", "biases")})
    )
    assert (
        refusal(directory)
        == f"{directory}: the quantized tensors of {name} do not fit together; convert the model again"
    )


def test_biases_without_scales(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors.update({"decoder.layers.0.attention.wq.biases": mx.zeros((72, 1))}))
    assert refusal(directory) == (
        f"{directory} has the tensor decoder.layers.0.attention.wq.biases that its configuration has no place for"
    )


def test_random_checkpoint_files_are_read_by_name(tmp_path: Path) -> None:
    """Several safetensors files without an index are read together."""
    directory = write_checkpoint(tmp_path / "model")
    tensors = mx.load(str(directory / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    write_weights(directory, "a.safetensors", {name: tensors[name] for name in names[::2]})
    write_weights(directory, "b.safetensors", {name: tensors[name] for name in names[1::2]})
    assert len(read_checkpoint(directory).tensors) == len(random_tensors(AWKWARD))
