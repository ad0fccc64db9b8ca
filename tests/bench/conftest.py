"""A small random checkpoint, and one run of `voxpipe bench` on it, which is measured once for all that look at it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from voxpipe.bench.checkpoint import write_random
from voxpipe.bench.long import N_SPECIAL, SMALL
from voxpipe.cli.main import cli

CLIP = Path(__file__).parents[1] / "data/speech/beach.wav"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory."""
    directory = tmp_path_factory.mktemp("small")
    write_random(SMALL, directory, n_special=N_SPECIAL)
    return directory


@pytest.fixture(scope="session")
def numbers(small: Path) -> dict[str, Any]:
    """What --json printed for 1 and 3 streams, 2 s of a clip and a delay of 240 ms."""
    arguments = ["--model", str(small), "--streams", "3,1,3", "--seconds", "2", "--context", "4", "--delay", "240"]
    done = CliRunner().invoke(cli, ["bench", *arguments, "--json", str(CLIP)], catch_exceptions=False)
    assert done.exit_code == 0
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed
