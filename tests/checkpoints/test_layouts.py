"""One set of tensors in every layout comes to the same network; the table knows all 711 names and no others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.model.offline import greedy_tokens, load_network
from tests.random_checkpoints import (
    AWKWARD,
    EVEN,
    LAYOUTS,
    Quantization,
    Sizes,
    Tensors,
    lay_out,
    params_json,
    random_audio,
    random_tensors,
    write_checkpoint,
)
from voxpipe.checkpoints import layouts
from voxpipe.checkpoints.load import read_checkpoint
from voxpipe.config import ModelConfig
from voxpipe.model.voxtral import VoxtralRealtime

OURS = {
    "mistral": layouts.MISTRAL,
    "mlx-audio": layouts.MLX_AUDIO,
    "voxmlx": layouts.VOXMLX,
    "hugging-face": layouts.HUGGING_FACE,
    "hugging-face-export": layouts.HUGGING_FACE,
}
REAL = Sizes(
    encoder_dim=1_280,
    encoder_layers=32,
    encoder_heads=32,
    encoder_head_dim=64,
    encoder_hidden=5_120,
    encoder_window=750,
    decoder_dim=3_072,
    decoder_layers=26,
    decoder_heads=32,
    decoder_kv_heads=8,
    decoder_head_dim=128,
    decoder_hidden=9_216,
    decoder_window=8_192,
    vocab_size=131_072,
)
# as many layers, and nothing else of the real size
DEEP = replace(AWKWARD, encoder_layers=32, decoder_layers=26, encoder_dim=2, encoder_hidden=2, decoder_dim=2)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors(AWKWARD, seed=4)


@pytest.fixture(scope="module")
def write(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("layouts")
    return lambda layout: write_checkpoint(directory / layout, layout, tensors=tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_the_same(layout: str, write: Callable[[str], Path]) -> None:
    expected = read_checkpoint(write("mlx-audio"))
    checkpoint = read_checkpoint(write(layout))
    assert checkpoint.layout is OURS[layout]
    assert checkpoint.config == expected.config
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(np.array(tensor), np.array(expected.tensors[name]), err_msg=name)


def test_convolutions_and_rotary_pairs_are_laid_out_as_mlx_and_mistral(
    write: Callable[[str], Path], tensors: Tensors
) -> None:
    """Not merely the same everywhere: (out, kernel, in), and rows as in Mistral's file."""
    whisper = "mm_streams_embeddings.embedding_module.whisper_encoder."
    ours = read_checkpoint(write("hugging-face")).tensors
    conv = tensors[whisper + "conv_layers.0.conv.weight"]
    np.testing.assert_array_equal(np.array(ours["encoder.conv1.weight"]), conv.transpose(0, 2, 1))
    for our_name, name in (
        ("encoder.layers.1.attention.q_proj.weight", whisper + "transformer.layers.1.attention.wq.weight"),
        ("encoder.layers.1.attention.q_proj.bias", whisper + "transformer.layers.1.attention.wq.bias"),
        ("encoder.layers.0.attention.k_proj.weight", whisper + "transformer.layers.0.attention.wk.weight"),
        ("encoder.layers.0.attention.v_proj.bias", whisper + "transformer.layers.0.attention.wv.bias"),
        ("decoder.layers.2.attention.k_proj.weight", "layers.2.attention.wk.weight"),
        ("decoder.layers.2.attention.v_proj.weight", "layers.2.attention.wv.weight"),
    ):
        np.testing.assert_array_equal(np.array(ours[our_name]), tensors[name], err_msg=name)


def test_tokens_are_the_same(write: Callable[[str], Path]) -> None:
    samples = random_audio(17_017, seed=4)
    tokens = [greedy_tokens(load_network(write(layout)), samples, 240) for layout in LAYOUTS]
    assert len(set(tokens[0])) > 8
    assert all(other == tokens[0] for other in tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_both_ways(layout: str) -> None:
    names = set(lay_out(random_tensors(DEEP), layout, DEEP)) - set(OURS[layout].tied)
    our_names = {name: OURS[layout].our_name(name) for name in names}
    assert len(names) == len(set(our_names.values())) == 711
    expected = {
        name for name, _ in tree_flatten(VoxtralRealtime(ModelConfig.from_json(params_json(DEEP))).parameters())
    }
    assert set(our_names.values()) == expected
    if layout != "hugging-face":  # written without the `model.` that current releases put in front
        back = {OURS[layout].their_name(str(ours)) for ours in our_names.values()}
        assert back == {name.replace("language_model.model.", "language_model.") for name in names}


def test_size_of_the_real_model() -> None:
    """4,429,679,360 parameters in 711 tensors; MLX makes none of them before it is asked to."""
    network = VoxtralRealtime(ModelConfig.from_json(params_json(REAL)))
    parameters = tree_flatten(network.parameters())
    assert len(parameters) == 711
    assert sum(array.size for _, array in parameters) == 4_429_679_360
    encoder = [array for name, array in parameters if name.startswith("encoder.") and ".adapter." not in name]
    assert len(encoder) == 421
    assert sum(array.size for array in encoder) == 970_395_392


def test_older_mistral_prefix(tensors: Tensors, tmp_path: Path) -> None:
    """`mm_whisper_embeddings.` was the name before `mm_streams_embeddings.embedding_module.`."""
    renamed = {
        name.replace("mm_streams_embeddings.embedding_module.", "mm_whisper_embeddings."): tensor
        for name, tensor in tensors.items()
    }
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", "mistral", tensors=renamed))
    assert checkpoint.layout is layouts.MISTRAL
    assert len(checkpoint.tensors) == len(tensors)


@pytest.mark.parametrize("layout", ["mistral", "hugging-face"])
def test_copies_of_the_tied_embedding_are_left_out(layout: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", layout)
    weights = next(directory.glob("*.safetensors"))
    loaded = mx.load(str(weights))
    assert isinstance(loaded, dict)
    mx.eval(loaded)
    copy = {"mistral": "output.weight", "hugging-face": "lm_head.weight"}[layout]
    mx.save_safetensors(str(weights), {**loaded, copy: mx.zeros((300, 56))})
    assert len(read_checkpoint(directory).tensors) == len(loaded)


def test_names_decide_and_not_the_configuration(tmp_path: Path, tensors: Tensors) -> None:
    """A config.json of one dialect beside names of another, as some forks have it."""
    directory = write_checkpoint(tmp_path / "model", "mlx-audio", tensors=tensors)
    voxmlx = write_checkpoint(tmp_path / "voxmlx", "voxmlx", tensors=tensors)
    (voxmlx / "config.json").write_text((directory / "config.json").read_text())
    assert read_checkpoint(voxmlx).layout is layouts.VOXMLX


@pytest.mark.parametrize("modules", ["old", "new", "voxmlx"])
def test_names_of_quantized_tensors(modules: str, tmp_path: Path) -> None:
    layout = "voxmlx" if modules == "voxmlx" else "mlx-audio"
    quantization = Quantization(4, modules=modules)
    ours = read_checkpoint(write_checkpoint(tmp_path / "model", layout, sizes=EVEN, quantization=quantization)).tensors
    quantized = {name.removesuffix(".scales") for name in ours if name.endswith(".scales")}
    layers = [f"encoder.layers.{i}" for i in range(EVEN.encoder_layers)]
    layers += [f"decoder.layers.{i}" for i in range(EVEN.decoder_layers)]
    matrices = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]
    matrices += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    expected = {f"{layer}.{matrix}" for layer in layers for matrix in matrices}
    if modules != "old":
        expected |= {"decoder.embed_tokens", "encoder.adapter.linear_1", "encoder.adapter.linear_2"}
    if modules == "voxmlx":
        expected |= {f"decoder.layers.{i}.ada.down" for i in range(EVEN.decoder_layers)}
    assert quantized == expected
