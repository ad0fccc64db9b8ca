"""The manual pages leave nothing out."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import click
import pytest

from voxpipe import errors
from voxpipe.cli.main import cli
from voxpipe.service.settings import FifoSettings, Settings
from voxpipe.watch.folder import WatchOptions

MAN = Path(__file__).parents[2] / "voxpipe" / "man"


def commands(name: str, command: click.Command) -> dict[str, click.Command]:
    """It and everything below it, by the name of its page."""
    found = {name: command}
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            found |= commands(f"{name}-{word}", child)
    return found


def read(name: str) -> str:
    """Write the pages again with: python -m tests.services.make_man"""
    return (MAN / f"man{name[-1]}" / name).read_text("utf-8").replace("\\-", "-")


PAGES = commands("voxpipe", cli)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_and_option_is_there(name: str) -> None:
    page = read(f"{name}.1")
    options = [name for one in PAGES[name].params if isinstance(one, click.Option) for name in one.opts]
    assert [option for option in options if option not in page] == []


@pytest.mark.parametrize("page", sorted(MAN.glob("man?/*")), ids=lambda path: path.name)
def test_names_are_whole_and_dates_do_not_change(page: Path) -> None:
    heading, name, about = page.read_text("utf-8").splitlines()[:3]
    assert re.match(r'\.TH ".*" "[15]" "" "[\d.]+" ".* Manual"$', heading)
    assert name == ".SH NAME"
    assert re.match(r"voxpipe\S* \\- \S.*[^.]$", about)


def test_no_page_is_left_over() -> None:
    assert {page.stem for page in MAN.glob("man1/*.1")} == set(PAGES)
    assert {page.name for page in MAN.glob("man?/*")} == {*(f"{name}.1" for name in PAGES), "voxpipe.toml.5"}


def test_statuses_signals_variables_and_files() -> None:
    page = read("voxpipe.1")
    section = {part.partition("\n")[0]: part for part in page.split("\n.SH ")}
    statuses = {value for name, value in vars(errors).items() if name.startswith("EX_")}
    documented = re.findall(r"^\\fB(\d[\d, ]*)\\fP$", section["EXIT STATUS"], re.M)
    assert {int(number) for row in documented for number in row.split(",")} == {*statuses, 130, 143}
    assert [name for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if name not in section["SIGNALS"]] == []
    source = "".join(path.read_text("utf-8") for path in MAN.parent.rglob("*.py"))
    variables = set(re.findall(r'"(VOXPIPE_[A-Z]+)"', source))
    assert {"VOXPIPE_MODEL", "VOXPIPE_SOCKET", "VOXPIPE_EVENTS"} <= variables
    assert [name for name in variables if name not in section["ENVIRONMENT"]] == []
    assert "voxpipe.toml" in section["FILES"]


def test_every_setting_is_there() -> None:
    page = read("voxpipe.toml.5")
    keys = {one.name for kind in (Settings, FifoSettings, WatchOptions) for one in fields(kind)}
    assert [key for key in keys if not re.search(rf"\b{key}\b", page)] == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", ["voxpipe.1", "voxpipe-serve.1", "voxpipe.toml.5"])
def test_pages_can_be_set(name: str) -> None:
    command = ["groff", "-Kutf8", "-Tutf8", "-ww", "-man", MAN / f"man{name[-1]}" / name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\\f" not in done.stdout
