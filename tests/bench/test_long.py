"""`python -m voxpipe.bench long`: a few minutes, of which the table and the verdict must be whole."""

import json
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner

from tests.bench.conftest import CLIP
from voxpipe.bench.__main__ import bench


def run(*arguments: str) -> str:
    done = CliRunner().invoke(bench, ["long", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("n_streams", [1, 3])
def test_no_token_is_missed(n_streams: int) -> None:
    raw: dict[str, Any] = json.loads(
        run("--hours", "0.012", "--streams", str(n_streams), "--parts", "3", "--step-ms", "320", "--json")
    )
    parts = raw["parts"]
    assert [round(part["end_h"], 4) for part in parts] == [0.004, 0.008, 0.012]
    assert sum(part["n_tokens"] for part in parts) == n_streams * (540 + 11)
    assert raw["tokens_missed"] == 0
    assert raw["n_guarded"] == 0
    assert raw["step_ratio"] == parts[-1]["step_ms_p50"] / parts[0]["step_ms_p50"]
    assert raw["cpu_ratio"] == parts[-1]["cpu_ms"] / parts[0]["cpu_ms"]
    assert 0 < raw["least_text_share"] <= 1
    for part in parts:
        assert part["n_ids"] > 10
        assert part["n_characters"] > 100
        assert 0 < part["step_ms_p50"] <= part["step_ms_p95"]
        assert part["active_mb"] > 0
        assert part["resident_mb"] > (part["active_mb"] if mx.default_device() == mx.cpu else 0)


def test_table_says_how_it_went() -> None:
    head, columns, *parts, verdict = run("--hours", "0.01", "--parts", "2", "--step-ms", "1280", str(CLIP)).splitlines()
    assert "small random network; 0.01 h of audio through 1 stream, 1280 ms at a time" in head
    assert {len(part) for part in parts} == {len(columns)}
    assert len(parts) == 2
    assert "no token missed" in verdict


def test_steps_are_whole_tokens() -> None:
    from voxpipe.errors import UsageError

    with pytest.raises(UsageError, match="must be a multiple of 80, not 100"):
        run("--step-ms", "100")
