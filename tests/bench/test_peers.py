"""The comparison with other implementations: what it writes for them, and what it says where they are not installed."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from tests.bench.conftest import CLIP
from voxpipe.bench import peers
from voxpipe.bench.__main__ import bench
from voxpipe.bench.checkpoint import tekken, write_voxmlx
from voxpipe.checkpoints.load import build_network, load_tokenizer, read_checkpoint
from voxpipe.errors import UnavailableError


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else find_spec(name, *rest)
    )


def test_voxmlx_gets_the_same_weights(small: Path, tmp_path: Path) -> None:
    ours = read_checkpoint(small)
    write_voxmlx(build_network(ours), tmp_path / "voxmlx")
    theirs = read_checkpoint(tmp_path / "voxmlx")
    assert theirs.layout.name == "voxmlx"
    assert (theirs.config.encoder, theirs.config.decoder) == (ours.config.encoder, ours.config.decoder)
    assert theirs.tensors.keys() == ours.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert mx.array_equal(theirs.tensors[name], tensor), name


def test_vocabulary_has_every_token_once(small: Path) -> None:
    tokens = [entry["token_bytes"] for entry in tekken(3584, n_special=1000)["vocab"]]
    assert len(tokens) == len(set(tokens)) == 2584
    load_tokenizer(read_checkpoint(small))


def test_without_any_peer_it_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "mlx_audio", "voxmlx")
    with pytest.raises(UnavailableError, match="pip install mlx-audio voxmlx"):
        CliRunner().invoke(bench, ["peers", str(CLIP)], catch_exceptions=False)


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine stands in for two; what is printed are the medians, their ratios, and whether the texts agree."""
    without(monkeypatch, "voxmlx")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "mlx_audio" else find_spec(name))
    monkeypatch.setattr(peers, "version", lambda name: "1.0")
    monkeypatch.setattr(peers, "_write_model", lambda model, directory: directory)
    calls: list[list[str]] = []

    class Done:
        def __init__(self, figures: dict[str, Any]) -> None:
            self.stdout = json.dumps(figures)

    def work(command: list[str], **_: Any) -> Done:
        calls.append(command)
        assert np.load(command[-1]).shape == (32_000,)
        factor = 4.0 if command[3] == "mlx-audio" else 1.0
        text = "four times as slow" if command[3] == "mlx-audio" else "at once"
        return Done({**dict.fromkeys(peers.FIGURES, factor * len(calls)), "file_text": text, "stream_text": text})

    monkeypatch.setattr(peers.subprocess, "run", work)
    arguments = ["peers", str(CLIP), "--seconds", "2", "--rounds", "3", "--model", "tiny"]
    done = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    assert "voxmlx is left out: it is not installed (pip install voxmlx)" in done.stderr
    assert [command[3] for command in calls] == ["voxpipe", "mlx-audio"] * 3
    result = json.loads(done.stdout)["models"]["tiny"]
    assert set(result["engines"]) == {"voxpipe", "mlx-audio"}
    for figure in peers.FIGURES:
        assert result["engines"]["voxpipe"][figure] == 3.0
        assert result["engines"]["mlx-audio"][figure] == 16.0
        assert result["ratio"]["mlx-audio"][figure] == 16 / 3
    assert result["same_text"] == {"mlx-audio": False}
    calls.clear()
    table = CliRunner().invoke(bench, arguments, catch_exceptions=False).stdout
    assert "mlx-audio / ours" in table
    assert "  no\n" in table


def test_files_instead_of_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """voxpipe itself, twice, the second time as a peer: one row each, with the same text."""
    without(monkeypatch, "voxmlx")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "mlx_audio" else find_spec(name))
    monkeypatch.setattr(peers, "version", lambda name: "1.0")
    run = peers.subprocess.run
    folders: list[list[str]] = []

    def work(command: list[str], **options: Any) -> Any:
        folders.append(sorted(path.name for path in Path(command[-1]).iterdir()))
        return run([*command[:3], "voxpipe", *command[4:]], **options)

    monkeypatch.setattr(peers.subprocess, "run", work)
    arguments = ["peers", str(CLIP), "--files", "3", "--seconds", "7", "--rounds", "1", "--model", "tiny"]
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert folders == [["0000.wav", "0001.wav", "0002.wav", "long.wav"]] * 2
    assert "3 short files and one of 7 s of audio" in done.stdout
    assert re.search(r"^tiny +voxpipe( +\d+\.\d{3}){3}$", done.stdout, re.M)
    assert re.search(r"^tiny +mlx-audio( +\d+\.\d{3}){3}  yes$", done.stdout, re.M)
    assert re.search(r"^tiny +mlx-audio / ours( +\d+\.\dx){3}$", done.stdout, re.M)
