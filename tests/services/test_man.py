"""The manual pages leave nothing out."""

from pathlib import Path

import click
import pytest

from voxpipe.cli.main import cli

MAN = Path(__file__).parents[2] / "voxpipe" / "man"


def commands(name: str, command: click.Command) -> dict[str, click.Command]:
    """It and everything below it, by the name of its page."""
    found = {name: command}
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            found |= commands(f"{name}-{word}", child)
    return found


PAGES = commands("voxpipe", cli)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_and_option_is_there(name: str) -> None:
    """Write the pages again with: python -m tests.services.make_man"""
    page = (MAN / f"{name}.1").read_text("utf-8").replace("\\-", "-")
    options = [name for one in PAGES[name].params if isinstance(one, click.Option) for name in one.opts]
    assert [option for option in options if option not in page] == []


def test_no_page_is_left_over() -> None:
    assert {page.stem for page in MAN.glob("*.1")} == set(PAGES)
