"""`voxpipe bench`: its numbers are there, positive, and agree with each other; how large they are is not tested."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from tests.bench.conftest import CLIP
from voxpipe.bench import machine, plot
from voxpipe.bench.cost import cost_of
from voxpipe.bench.long import SMALL
from voxpipe.bench.report import FileResult, LiveResult, Report, StreamsResult, table
from voxpipe.bench.sound import noise_bursts, read_clip
from voxpipe.cli.main import cli
from voxpipe.errors import EX_CANTCREAT, EX_NOINPUT, EX_UNAVAILABLE, EX_USAGE
from voxpipe.runtime.transcriber import load
from voxpipe.service import process

MAY_BE_ZERO = {"resident_bytes_per_stream", "most_streams", "n_right", "right_share", "n_guesses"}
QUICK = ["--seconds", "2", "--streams", "1"]


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def report_of(numbers: dict[str, Any]) -> Report:
    parts = {
        "file": FileResult(**numbers["file"]),
        "live": LiveResult(**numbers["live"]),
        "streams": [StreamsResult(**one) for one in numbers["streams"]],
    }
    return Report(**{**numbers, **parts})


def test_every_number_is_there_and_positive(numbers: dict[str, Any]) -> None:
    for path, value in leaves(numbers):
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert np.isfinite(value), path
            assert value > 0 or path.rpartition(".")[2] in MAY_BE_ZERO, path
        else:
            assert isinstance(value, bool) or value, path


def test_options_are_obeyed(numbers: dict[str, Any]) -> None:
    assert [one["n"] for one in numbers["streams"]] == [1, 3]
    assert numbers["audio_s"] == 2.0
    assert numbers["context_s"] == 4.0
    assert numbers["delay_ms"] == 240
    assert numbers["dtype"] == "float32"
    assert numbers["audio"] == "beach.wav"
    assert numbers["live"]["n_ticks"] == 25 - 4


def test_numbers_agree_with_each_other(numbers: dict[str, Any]) -> None:
    file = numbers["file"]
    assert file["rtf"] == pytest.approx(file["wall_s"] / file["audio_s"])
    assert file["ms_per_token"] == pytest.approx(1000 * file["wall_s"] / (25 + 3 + 1 + 10))  # delay, shift, last word
    assert file["right_share"] == pytest.approx(file["n_right"] / max(1, file["n_guesses"]))
    assert 1.0 <= file["tokens_per_call"] <= 8.0
    for one in numbers["streams"]:
        assert one["ratio"] == pytest.approx(one["audio_s_per_s"] / one["in_turn_audio_s_per_s"])
        assert one["p50_ms"] <= one["p95_ms"]
        assert one["is_real_time"] == (one["p95_ms"] <= 80)
        # a tray of two rows for each of two cores holds three streams: one row more than is used
        assert one["active_bytes_per_stream"] <= 1.4 * one["ring_bytes_per_stream"] + 20_000
    carried = [one["n"] for one in numbers["streams"] if one["is_real_time"]]
    assert numbers["most_streams"] == max(carried, default=0)


def test_rings_hold_the_context(numbers: dict[str, Any]) -> None:
    """Both windows are shorter than 4 s, so the rings are as large as they get, one chunk more than the window."""
    encoder, decoder = SMALL.encoder, SMALL.decoder
    frames, positions = encoder.sliding_window + 16 * 4 - 1, decoder.sliding_window + 32 - 1
    wanted = 8 * (
        frames * encoder.n_layers * encoder.n_kv_heads * encoder.head_dim
        + positions * decoder.n_layers * decoder.n_kv_heads * decoder.head_dim
    )
    assert numbers["streams"][0]["ring_bytes_per_stream"] == wanted


def test_cost_counts_what_a_call_reads(small: Path) -> None:
    network = load(small).network
    cost = cost_of(network)
    decoder = SMALL.decoder
    matrices = decoder.dim * (
        (decoder.n_heads + 2 * decoder.n_kv_heads + decoder.n_heads) * decoder.head_dim + 3 * decoder.hidden_dim
    )
    norms = 2 * decoder.dim + decoder.dim
    assert cost.decoder_bytes == 4 * (matrices + norms + decoder.vocab_size * decoder.dim)
    per_position = 2 * decoder.n_kv_heads * decoder.head_dim * 4
    assert cost.decoder_position_bytes == per_position
    weights = cost.read_bytes(n_streams=0, heard_s=1.0)
    assert weights == cost.decoder_bytes + cost.encoder_bytes
    one, two, full = (cost.read_bytes(n_streams=1, heard_s=s) - weights for s in (0.8, 1.6, 3600.0))
    assert one == 10 * per_position + 40 * cost.encoder_frame_bytes
    assert two == 20 * per_position + 50 * cost.encoder_frame_bytes  # the encoder's window is full
    assert full == 60 * per_position + 50 * cost.encoder_frame_bytes


def test_counts_quantized_weights_as_what_they_stand_for(tmp_path: Path) -> None:
    from tests.random_checkpoints import EVEN, Quantization, write_checkpoint
    from voxpipe.checkpoints.load import build_network, read_checkpoint

    plain = read_checkpoint(write_checkpoint(tmp_path / "plain", sizes=EVEN))
    packed = read_checkpoint(write_checkpoint(tmp_path / "packed", sizes=EVEN, quantization=Quantization(bits=4)))
    counts = [cost_of(build_network(one, dequantize=False)).n_parameters for one in (plain, packed)]
    assert counts[0] == counts[1] == sum(tensor.size for tensor in plain.tensors.values())


def test_table_has_a_row_for_every_number_of_streams(numbers: dict[str, Any]) -> None:
    lines = table(report_of(numbers)).splitlines()
    assert "small" in lines[0] or numbers["model"] in lines[0]
    assert "float32, delay 240 ms; 2 s of beach.wav; context 4 s" in lines[0]
    rows = [line for line in lines if line[:7].strip() in ("1", "3")]
    assert len(rows) == 2
    head = next(line for line in lines if line.startswith("streams"))
    assert {len(row) for row in rows} == {len(head)}


def test_without_audio_it_says_what_it_listens_to(small: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", "--model", str(small), *QUICK], catch_exceptions=False)
    assert done.exit_code == 0
    assert "2 s of noise bursts made for this (no AUDIO was given)" in done.stdout
    assert "carried in real time" in done.stdout


def test_noise_is_always_the_same_and_pauses() -> None:
    samples = noise_bursts(5.0)
    assert samples.dtype == np.float32
    assert len(samples) == 80_000
    assert 0.1 < np.abs(samples).max() <= 0.2 + 1e-6
    assert not samples[int(2.45 * 16_000) : int(2.95 * 16_000)].any()
    np.testing.assert_array_equal(samples, noise_bursts(5.0))


def test_clip_is_cut_or_repeated() -> None:
    whole = read_clip(CLIP)
    np.testing.assert_array_equal(read_clip(CLIP, 1.0), whole[:16_000])
    longer = read_clip(CLIP, len(whole) / 16_000 + 1)
    np.testing.assert_array_equal(longer, np.concatenate([whole, whole[:16_000]]))


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml")])
def test_plot_is_a_picture(numbers: dict[str, Any], tmp_path: Path, suffix: str, head: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    plot.check_plot(path)
    plot.plot(report_of(numbers), path)
    assert path.read_bytes().startswith(head)


def run(arguments: list[str]) -> tuple[int, str]:
    code = "from voxpipe.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "bench", *arguments], capture_output=True, text=True)
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--streams", "1,x"], EX_USAGE, "'1,x' is not a list of numbers like 1,4,16"),
        (["--streams", "0,4"], EX_USAGE, "0 is not a number of streams; the least is 1"),
        (["--seconds", "1"], EX_USAGE, "--seconds"),
        (["--delay", "100"], EX_USAGE, "a transcription delay of 100 ms is not possible"),
        (["--plot", "plot.pdf"], EX_USAGE, "name a file that ends in .png or .svg"),
        (["nowhere.wav"], EX_NOINPUT, "nowhere.wav"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], status: int, message: str) -> None:
    returned, line = run(arguments)
    assert returned == status
    assert line.startswith("voxpipe: ")
    assert message in line


def test_plot_names_its_extra_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from voxpipe.cli import main

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest)
    )
    assert main.run(["bench", "--plot", "plot.png"]) == EX_UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.err == "voxpipe: the plot needs matplotlib; install it with: pip install 'voxpipe[plot]'\n"
    assert not captured.out


def test_plot_wants_a_directory_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxpipe.cli import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name)
    assert main.run(["bench", "--plot", str(tmp_path / "nowhere" / "plot.png")]) == EX_CANTCREAT


def test_bandwidth_and_memory_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_BYTES", 8 << 20)
    monkeypatch.setattr(machine, "GPU_BYTES", 8 << 20)
    assert machine.memory_bandwidth(mx.float32, [mx.default_stream(mx.default_device())]) > 0
    assert process.resident_bytes() > 1_000_000
    assert f"{machine.n_cores()} cores" in machine.machine_name()


def test_json_is_nothing_but_one_object(numbers: dict[str, Any]) -> None:
    assert set(json.loads(json.dumps(numbers))) == set(Report.__dataclass_fields__)
