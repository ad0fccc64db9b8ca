"""Click's shell completion, through our group that need not be given a command."""

import pytest

from tests.cli.process import environment, run


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("voxpipe serv", {"serve", "service"}),
        ("voxpipe service inst", {"install"}),
        ("voxpipe service install --dry", {"--dry-run"}),
        ("voxpipe --segment-pause 800 --heart", {"--heartbeat"}),
        ("voxpipe listen --format s16", {"s16le", "s16be"}),
    ],
)
def test_offers_what_fits(typed: str, offered: set[str]) -> None:
    words = typed.split()
    env = environment(_VOXPIPE_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    done = run(env=env)
    assert {line.split(",")[1] for line in done.stdout.decode().splitlines()} == offered
