"""`voxpipe convert`: any layout and precision into mlx-audio's, which says the same."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.cli.process import Result, environment, run
from tests.random_checkpoints import (
    EVEN,
    LAYOUTS,
    Quantization,
    Tensors,
    lay_out,
    mlx_audio_json,
    random_audio,
    random_tensors,
    write_checkpoint,
)
from voxpipe import load
from voxpipe.checkpoints import convert as convert_module
from voxpipe.checkpoints.convert import convert
from voxpipe.checkpoints.load import DTYPES, build_network, read_checkpoint
from voxpipe.cli import main
from voxpipe.errors import EX_CANTCREAT, EX_CONFIG, EX_OK, EX_USAGE, OutputError, UsageError

AUDIO = random_audio(48_000)
ADA = ".ada_rms_norm_t_cond."


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors(EVEN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors) -> dict[str, Path]:
    """The same float32 model in every layout, and at 8 bits."""
    folder = tmp_path_factory.mktemp("sources")
    directories = {layout: write_checkpoint(folder / layout, layout, sizes=EVEN, tensors=tensors) for layout in LAYOUTS}
    quantization = Quantization(bits=8)
    directories["8bit"] = write_checkpoint(folder / "8bit", sizes=EVEN, tensors=tensors, quantization=quantization)
    return directories


@pytest.fixture(scope="module")
def tokens(sources: dict[str, Path]) -> list[int]:
    return tokens_of(sources["mistral"])


def tokens_of(directory: Path) -> list[int]:
    return load(directory).generate(AUDIO).tokens


def command(*arguments: str | Path) -> int:
    return main.run(["convert", *map(str, arguments)])


def tensors_in(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        assert not found.keys() & loaded.keys()
        found.update(loaded)
    return found


def config_in(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    assert isinstance(config, dict)
    return config


def quantized_modules(directory: Path) -> set[str]:
    return {name.removesuffix(".scales") for name in tensors_in(directory) if name.endswith(".scales")}


def assert_agrees(expected: dict[str, Any], found: dict[str, Any], *, ignored: Sequence[str] = ()) -> None:
    """Every key that mlx-audio's own converter writes and `found` has, says the same."""
    for key in (expected.keys() & found.keys()) - set(ignored):
        if isinstance(expected[key], dict):
            assert_agrees(expected[key], found[key], ignored=ignored)
        else:
            assert expected[key] == found[key], key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_mlx_audio_s(
    layout: str, sources: dict[str, Path], tensors: Tensors, tokens: list[int], tmp_path: Path
) -> None:
    target = tmp_path / "new" / "model"
    assert command(sources[layout], target) == EX_OK
    expected = lay_out(tensors, "mlx-audio", EVEN)
    found = tensors_in(target)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(np.asarray(found[name]), tensor), name
    config = config_in(target)
    required = {key: value for key, value in mlx_audio_json(EVEN).items() if key != "encoder_args"}
    assert required.keys() <= config.keys()
    assert_agrees(mlx_audio_json(EVEN), config)
    assert "quantization" not in config
    assert (target / "tekken.json").read_bytes() == (sources[layout] / "tekken.json").read_bytes()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(sorted(found), "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert {path.name for path in target.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tekken.json",
    }
    assert tokens_of(target) == tokens
    assert len(set(tokens)) > 10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (6, 64), (8, 64)])
def test_every_layout_at_fewer_bits(
    layout: str, bits: int, group_size: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "quantized"
    assert command(sources[layout], target, "--bits", str(bits), "--group-size", str(group_size)) == EX_OK
    assert config_in(target)["quantization"] == {"group_size": group_size, "bits": bits, "mode": "affine"}
    modules = quantized_modules(target)
    assert "decoder.tok_embeddings" in modules
    assert "encoder.audio_language_projection_0" in modules
    assert "encoder.transformer_layers.0.feed_forward_w1" in modules
    assert not any(ADA in f"{module}." or "conv" in module or "norm" in module for module in modules)
    original = build_network(read_checkpoint(sources[layout]))
    network = build_network(read_checkpoint(target))
    for name, weight in (
        ("decoder.embed_tokens", original.decoder.embed_tokens.weight),
        ("encoder.layers.1.mlp.down_proj", original.encoder.layers[1].mlp.down_proj.weight),
    ):
        part = network
        for attribute in name.split("."):
            part = part[int(attribute)] if attribute.isdigit() else getattr(part, attribute)
        step = float(np.ptp(np.asarray(weight))) / (2**bits - 1)
        assert float(np.abs(np.asarray(part.weight - weight)).max()) <= step, (
            name
        )  # MLX keeps the largest exact and clips the other end


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_logits_stay_close(bits: int, group_size: int, sources: dict[str, Path], tmp_path: Path) -> None:
    """Teacher-forced by the plain model's tokens, whose probabilities fewer bits change only so much."""
    target = convert(sources["mistral"], tmp_path / "target", bits=bits, group_size=group_size)
    assert {name.rpartition(".")[2] for name in tensors_in(target) if ADA in name} == {"weight"}
    plain, quantized = (last_logits(directory) for directory in (sources["mistral"], target))
    correlation = float(np.corrcoef(plain.ravel(), quantized.ravel())[0, 1])
    assert correlation > {4: 0.9, 6: 0.99, 8: 0.999}[bits], correlation


def last_logits(directory: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(vocabulary,) after one pass over fixed ids and embeddings; random weights make anything longer chaotic."""
    network = build_network(read_checkpoint(directory))
    network.fuse()
    mel = np.random.default_rng(1).normal(0, 0.5, (64, EVEN.n_mels)).astype(np.float32)
    state = network.make_state(6)
    (embeds,) = network.encode([(state, mel)])
    logits = network.decode([embeds], [list(range(40, 40 + len(embeds)))], [state])
    return np.asarray(logits[-1].astype(mx.float32))


@pytest.mark.parametrize("dtype", ["f32", "fp16", "bf16"])
@pytest.mark.parametrize("bits", [None, "8"])
def test_the_type_of_what_is_not_quantized(
    dtype: str, bits: str | None, sources: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["--dtype", dtype, *([] if bits is None else ["--bits", bits])]
    assert command(sources["voxmlx"], tmp_path / "target", *arguments) == EX_OK
    types = {tensor.dtype for tensor in tensors_in(tmp_path / "target").values()}
    assert types == {DTYPES[dtype]} | (set() if bits is None else {mx.uint32})
    assert len(tokens_of(tmp_path / "target")) > 10


def test_plain_again_from_quantized(sources: dict[str, Path], tmp_path: Path) -> None:
    """And at other bits, by way of plain weights."""
    assert command(sources["8bit"], tmp_path / "plain") == EX_OK
    assert quantized_modules(tmp_path / "plain") == set()
    assert "quantization" not in config_in(tmp_path / "plain")
    assert tokens_of(tmp_path / "plain") == tokens_of(sources["8bit"])
    assert command(sources["8bit"], tmp_path / "4bit", "--bits", "4") == EX_OK
    assert command(tmp_path / "plain", tmp_path / "4bit too", "--bits", "4") == EX_OK
    found, expected = tensors_in(tmp_path / "4bit"), tensors_in(tmp_path / "4bit too")
    assert found.keys() == expected.keys()
    assert all(bool(mx.array_equal(found[name], expected[name]).item()) for name in found)
    assert command(tmp_path / "4bit", tmp_path / "4bit once more") == EX_OK  # reads what it wrote


def test_the_embedded_model_is_a_source(tmp_path: Path) -> None:
    assert command("tiny", tmp_path / "tiny 4bit", "--bits", "4") == EX_OK
    assert len(load(tmp_path / "tiny 4bit").generate(AUDIO).tokens) > 10


def test_big_models_come_in_shards(
    sources: dict[str, Path], tokens: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "SHARD_BYTES", 300_000)
    target = convert(sources["hugging-face"], tmp_path / "target")
    shards = sorted(target.glob("*.safetensors"))
    assert len(shards) > 3
    assert [path.name for path in shards] == [
        f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
    ]
    weight_map = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    for path in shards:
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        assert {name for name, file in weight_map.items() if file == path.name} == loaded.keys()
        assert len(loaded) == 1 or sum(tensor.nbytes for tensor in loaded.values()) <= 300_000
    assert tokens_of(target) == tokens


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(result: Result) -> tuple[str, int]:
    assert result.stdout == b""
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("voxpipe: ").removesuffix("\n"), result.status


def test_the_command_in_a_process(sources: dict[str, Path], tmp_path: Path) -> None:
    """What it prints; and a target that holds files stays as it is."""
    target = tmp_path / "target"
    first = run("convert", sources["voxmlx"], target, "--bits", "6")
    assert (first.status, first.stdout.decode(), first.stderr) == (EX_OK, f"{target}\n", "")
    before = {path: path.read_bytes() for path in target.iterdir()}
    assert refusal(run("convert", sources["voxmlx"], target)) == (
        f"{target} is not empty; name a new directory",
        EX_CANTCREAT,
    )
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    heard = run("--model", target, stdin=bytes(6_400), env=environment())
    assert heard.events[0]["model"] == "target"


def test_mixed_precision(tmp_path: Path) -> None:
    """The embedding, the adapter and the decoder's attention at 8 bits, as the configuration says, and nearer."""
    plain = tmp_path / "plain"
    assert command("tiny", plain, "--dtype", "f32") == EX_OK  # dequantizes
    weights = dict(tree_flatten(build_network(read_checkpoint(plain)).parameters()))
    errors = {}
    for name, arguments in (("even", []), ("mixed", ["--mixed"])):
        target = tmp_path / name
        assert command(plain, target, "--bits", "4", *arguments) == EX_OK
        network = build_network(read_checkpoint(target), dequantize=False)
        assert network.encoder.layers[0].attention.q_proj.bits == network.decoder.layers[0].mlp.up_proj.bits == 4
        sensitive = [network.decoder.embed_tokens, network.encoder.adapter.linear_1]
        sensitive += [layer.attention.q_proj for layer in network.decoder.layers]
        assert {module.bits for module in sensitive} == {8 if arguments else 4}
        rounded = dict(tree_flatten(build_network(read_checkpoint(target), dequantize=True).parameters()))
        errors[name] = {k: float(mx.abs(rounded[k] - weights[k]).max()) for k in weights}
    quantization = config_in(tmp_path / "mixed")["quantization"]
    single = {name for name, value in quantization.items() if isinstance(value, dict)}
    assert quantization["bits"] == 4
    assert {quantization[name]["bits"] for name in single} == {8}
    assert {name for name in single if "attention" not in name} == {
        "decoder.tok_embeddings",
        "encoder.audio_language_projection_0",
        "encoder.audio_language_projection_2",
    }
    assert len(single) == 3 + 4 * 4
    better = {name for name in weights if errors["mixed"][name] < errors["even"][name] / 4}
    assert len(better) == len(single)
    assert all(errors["mixed"][name] == errors["even"][name] for name in weights.keys() - better)


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["{source}"], "Missing argument 'DST'. (see voxpipe convert --help)", EX_USAGE),
        (["{source}", "{tmp}/x", "--bits", "5"], None, EX_USAGE),
        (["{source}", "{tmp}/x", "--group-size", "48"], None, EX_USAGE),
        (
            ["{source}", "{tmp}/x", "--mixed"],
            "mixed precision needs the bits of the rest; add --bits 4 or --bits 6",
            EX_USAGE,
        ),
        (["{source}", "{tmp}/x", "--dtype", "f64"], None, EX_USAGE),
        (
            ["/no/such/model", "{tmp}/x"],
            "there is no model '/no/such/model': name one of tiny, 4bit, fp16, bf16, a directory, "
            "or OWNER/NAME on the hub",
            EX_CONFIG,
        ),
        (["{tmp}", "{tmp}/x"], "{tmp} has no config.json or params.json: it is not a model directory", EX_CONFIG),
        (["{source}", "{source}"], "{source} is not empty; name a new directory", EX_CANTCREAT),
        (["{source}", "{file}"], "cannot write {file}: File exists", EX_CANTCREAT),
        (["{source}", "{file}/x"], "cannot write {file}/x: Not a directory", EX_CANTCREAT),
    ],
)
def test_what_cannot_be_converted(
    arguments: list[str],
    message: str | None,
    status: int,
    sources: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    places = {"source": sources["mistral"], "tmp": tmp_path, "file": tmp_path / "file"}
    assert command(*(argument.format(**places) for argument in arguments)) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("voxpipe: ")
    assert captured.err.count("\n") == 1
    assert message is None or captured.err == f"voxpipe: {message.format(**places)}\n"
    assert not (tmp_path / "x").exists()


def test_a_disk_that_fills_up(sources: dict[str, Path], tmp_path: Path) -> None:
    """A limit on the size of files stands for it: writing fails half-way."""
    script = (
        "import resource, signal, sys; from voxpipe.cli.main import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "convert", sources["mistral"], tmp_path / "target"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == EX_CANTCREAT
    assert done.stdout == ""
    assert done.stderr.startswith(f"voxpipe: cannot write {tmp_path / 'target' / 'model.safetensors'}: ")
    assert done.stderr.count("\n") == 1


def test_the_library_refuses_what_the_command_line_cannot_name(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^5 bits are not possible; choose one of 4, 6, 8$"):
        convert(sources["mistral"], tmp_path / "x", bits=5)
    with pytest.raises(UsageError, match=r"^a group size of 48 is not possible; choose one of 32, 64, 128$"):
        convert(sources["mistral"], tmp_path / "x", bits=4, group_size=48)
    assert not (tmp_path / "x").exists()
    with pytest.raises(OutputError, match="is not empty"):
        convert(sources["mistral"], tmp_path.parent, bits=4)
