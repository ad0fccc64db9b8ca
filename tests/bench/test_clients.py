"""Live clients of one daemon, at the pace of speech: each gets what it gets alone. When, only a calm machine can say."""

import json
import subprocess
import sys

from tests.cli.clips import BEACH, FUTURE
from tests.cli.process import PATIENCE_S, environment


def test_eight_live_clients_get_what_each_gets_alone() -> None:
    command = [sys.executable, "-m", "voxpipe.bench", "clients", "--seconds", "2", "--json", FUTURE, BEACH]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), timeout=PATIENCE_S, check=True)
    result = json.loads(done.stdout)
    assert (result["clients"], result["n_equal"]) == (8, 8)
    assert result["late_ms"]["words"]["n"] >= 8 * 2
    assert result["late_ms"]["words"]["p50"] > 480  # the delay: nobody can know earlier
    assert result["late_ms"]["deltas"]["n"] > result["late_ms"]["words"]["n"]
