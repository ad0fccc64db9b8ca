"""`voxpipe service`: what it writes, what it leaves alone, and what it says when it cannot."""

import os
import sys
from pathlib import Path

import pytest

from tests.cli.process import Result, environment, run
from voxpipe.errors import (
    EX_CANTCREAT,
    EX_CONFIG,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    ConfigError,
    OutputError,
    UnavailableError,
)
from voxpipe.service import install as module
from voxpipe.service.install import MARK, Plan, Request, check_visible, install, make_plan, own_program, uninstall
from voxpipe.service.settings import read_settings

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")


def service(home: Path, *arguments: str, path: str | None = None) -> Result:
    env = environment(HOME=str(home), XDG_CONFIG_HOME=None, XDG_RUNTIME_DIR=str(home), PATH=path or os.environ["PATH"])
    return run("service", *arguments, env=env)


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@linux
def test_a_dry_run_shows_all_and_does_nothing(tmp_path: Path) -> None:
    done = service(tmp_path, "install", "--dry-run", "--fifo")
    assert done.status == EX_OK
    shown = done.stdout.decode()
    units = tmp_path / ".config/systemd/user"
    for path in (units / "voxpipe.service", units / "voxpipe.socket", tmp_path / ".config/voxpipe/voxpipe.toml"):
        assert f"+ {path}\n" in shown
    assert f"serve --config {tmp_path}/.config/voxpipe/voxpipe.toml" in shown
    assert "$ systemctl --user daemon-reload\n$ systemctl --user enable --now voxpipe-fifo.socket" in shown
    assert everything(tmp_path) == []


@linux
def test_without_a_service_manager_it_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for arguments in (("install",), ("status",)):
        done = service(tmp_path, *arguments, path=str(empty))
        assert done.status == EX_UNAVAILABLE
        assert done.stderr == "voxpipe: systemctl is not installed here; start the daemon with: voxpipe serve\n"
    assert everything(tmp_path) == []
    done = service(tmp_path, "uninstall", path=str(empty))
    assert done.status == EX_CONFIG
    assert done.stderr == "voxpipe: the service is not installed; install it with: voxpipe service install\n"


@linux
def test_a_broken_configuration_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("socket_mode = 600\n")
    done = service(tmp_path, "install", "--config", str(config))
    assert done.status == EX_CONFIG
    assert f"{config}, line 1: socket_mode is 600" in done.stderr
    assert everything(tmp_path) == [config]


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    assert service(tmp_path, "install", "--gpu", "--dry-run").status == EX_USAGE


def quiet(plan: Plan) -> Plan:
    """The same files with commands that any machine has."""
    return Plan(plan.files, plan.folders, (("true",),), (("false",),), (("true",),), ("true",))


@pytest.fixture(params=["linux", "linux --system", "darwin"])
def plan(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    platform, _, system = request.param.partition(" ")
    wish = Request(system=bool(system), program=own_program(), gpu=bool(system), home=tmp_path / "ann", root=tmp_path)
    if platform == "darwin":
        wish = Request(program=own_program(), home=tmp_path / "ann")
    plan = make_plan(wish, platform)
    return quiet(Plan(plan.files, (), plan.enable, plan.disable, plan.forget, plan.status))


def test_what_it_wrote_it_removes(plan: Plan, tmp_path: Path) -> None:
    # 1. all files are there, and say whose they are
    install(plan)
    assert {file.path for file in plan.files} == set(everything(tmp_path))
    assert all(MARK in file.path.read_text() for file in plan.files if not file.is_settings)
    # 2. a second time is an update, which keeps the settings as the user left them
    settings = next(file for file in plan.files if file.is_settings)
    settings.path.write_text("max_streams = 3\n")
    plan.files[0].path.write_text(f"# {MARK}\n# of an older version\n")
    install(plan)
    assert plan.files[0].path.read_text() == plan.files[0].text
    assert settings.path.read_text() == "max_streams = 3\n"
    # 3. and changed settings survive the end too
    assert settings.path not in uninstall(plan)
    assert everything(tmp_path) == [settings.path]
    settings.path.unlink()
    install(plan)
    assert set(uninstall(plan)) == {file.path for file in plan.files}
    assert everything(tmp_path) == []
    assert uninstall(plan) == []


def test_what_others_wrote_stays(plan: Plan, tmp_path: Path) -> None:
    theirs = plan.files[0].path
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(OutputError, match=r"was not written by voxpipe; move it away") as caught:
        install(plan)
    assert caught.value.status == EX_CANTCREAT
    assert uninstall(plan) == []
    assert everything(tmp_path) == [theirs]
    assert theirs.read_text() == "theirs"


def test_a_refusal_of_the_manager_is_one_line(plan: Plan) -> None:
    failing = Plan(plan.files, (), (("ls", "/nowhere at all"),), (), (), ("true",))
    with pytest.raises(UnavailableError, match=r"^`ls /nowhere at all` failed: ls: .*; mend that and run it again$"):
        install(failing)


def test_commands_for_launchd(tmp_path: Path) -> None:
    agent = make_plan(Request(program=("/opt/homebrew/bin/voxpipe",), home=tmp_path), "darwin")
    path = tmp_path / "Library/LaunchAgents/org.voxpipe.agent.plist"
    domain = f"gui/{os.getuid()}"
    assert agent.enable == (("launchctl", "bootstrap", domain, str(path)),)
    assert agent.disable == (("launchctl", "bootout", f"{domain}/org.voxpipe.agent"),)
    assert agent.status == ("launchctl", "print", f"{domain}/org.voxpipe.agent")
    daemon = make_plan(Request(system=True, program=("/opt/homebrew/bin/voxpipe",), home=tmp_path), "darwin")
    path = Path("/Library/LaunchDaemons/org.voxpipe.daemon.plist")
    assert daemon.enable == (("launchctl", "bootstrap", "system", str(path)),)


def test_the_daemon_of_a_mac_is_for_all_its_users(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"

    def settings(system: bool) -> str:
        plan = make_plan(Request(system=system, program=("/opt/voxpipe/bin/voxpipe",), home=tmp_path), "darwin")
        text = next(file.text for file in plan.files if file.is_settings)
        assert "@" not in text
        assert not any(word in text for word in ("systemctl", '"/run/', "/srv", ".service"))
        config.write_text(text)
        return text

    # 1. an agent's socket stays its user's
    assert f"gui/{os.getuid()}/org.voxpipe.agent" in settings(False)
    assert read_settings(config).socket_mode == "0600"
    # 2. a daemon's is everybody's, and so is its folder
    assert "system/org.voxpipe.daemon" in settings(True)
    assert read_settings(config).socket_mode == "0660"
    plan = make_plan(Request(system=True, program=("/opt/voxpipe/bin/voxpipe",)), "darwin")
    assert (Path("/usr/local/var/run/voxpipe"), 0o750, "_voxpipe:staff") in plan.folders
    assert (Path("/usr/local/var/log/voxpipe"), 0o750, "_voxpipe") in plan.folders
    # 3. what is commented out is right, too
    lines = config.read_text().splitlines()[3:]
    config.write_text("\n".join(line.removeprefix("# ") for line in lines))
    assert read_settings(config).fifo[0].path == "/usr/local/var/run/voxpipe/radio.pcm"


LAUNCHCTL = """#!/bin/sh
# refuses as often as there are lines in a file, which are its reasons
echo "$*" >>{folder}/calls
read -r reason <{folder}/reasons || exit 0
tail -n +2 {folder}/reasons >{folder}/rest; mv {folder}/rest {folder}/reasons
echo "$reason" >&2; exit 5
"""
IO_ERROR = "Bootstrap failed: 5: Input/output error\n"


class Launchctl:
    """A stand-in on the PATH, and a plan that uses it."""

    def __init__(self, folder: Path, reasons: str) -> None:
        program = folder / "bin" / "launchctl"
        program.parent.mkdir()
        program.write_text(LAUNCHCTL.format(folder=folder))
        program.chmod(0o755)
        (folder / "reasons").write_text(reasons)
        self._calls = folder / "calls"
        self.plan = make_plan(Request(program=("/opt/voxpipe/bin/voxpipe",), home=folder), "darwin")

    @property
    def calls(self) -> list[str]:
        return [line.split()[0] for line in self._calls.read_text().splitlines()]


@pytest.fixture
def launchctl(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launchctl:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "BUSY_STEP_S", 0.01)
    return Launchctl(tmp_path, request.param)


BUSY = "Bootstrap failed: 37: Operation already in progress\n"


@pytest.mark.parametrize("launchctl", [IO_ERROR + BUSY + IO_ERROR], indirect=True)
def test_what_launchd_still_ends_is_waited_for(launchctl: Launchctl) -> None:
    install(launchctl.plan)
    assert launchctl.calls == ["bootstrap"] * 4
    install(launchctl.plan)
    assert launchctl.calls[4:] == ["bootout", "bootstrap"]


@pytest.mark.parametrize("launchctl", [IO_ERROR * 1000], indirect=True)
def test_it_is_not_waited_for_for_ever(launchctl: Launchctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_WAIT_S", 0.1)
    with pytest.raises(UnavailableError, match=r"^`launchctl bootstrap .*` failed: Bootstrap failed: 5: Input/output"):
        install(launchctl.plan)
    assert 2 < len(launchctl.calls) < 100


@pytest.mark.parametrize(
    "launchctl", ["Bootstrap failed: 125: Domain does not support specified action\n"], indirect=True
)
def test_a_mac_at_which_nobody_is_logged_in(launchctl: Launchctl) -> None:
    with pytest.raises(UnavailableError, match=r"^nobody is logged in at this Mac's screen; .* or use --system$"):
        install(launchctl.plan)
    assert launchctl.calls == ["bootstrap"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_an_account_and_a_group(tmp_path: Path) -> None:
    for owner in ("daemon", "daemon:daemon"):
        install(Plan((), ((tmp_path / owner, 0o750, owner),), (), (), (), ()))
    alone, shared = tmp_path / "daemon", tmp_path / "daemon:daemon"
    assert (alone.owner(), shared.owner(), shared.group()) == ("daemon", "daemon", "daemon")
    assert alone.stat().st_gid == tmp_path.stat().st_gid
    assert shared.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("owner", ["nobody at all", "nobody at all:staff"])
def test_without_the_account_it_says_how_to_make_it(owner: str, tmp_path: Path) -> None:
    plan = Plan((), ((tmp_path / "run", 0o750, owner),), (), (), (), ())
    with pytest.raises(ConfigError, match=r"^there is no account nobody at all; make it with: sudo .* 450 to 499"):
        install(plan)


def test_words_that_systemd_would_take_apart(tmp_path: Path) -> None:
    odd = tmp_path / 'a b%$"c.toml'
    plan = make_plan(Request(program=("/opt/voxpipe/bin/voxpipe",), config=odd, home=tmp_path), "linux")
    line = next(line for line in plan.files[0].text.splitlines() if line.startswith("ExecStart="))
    assert line == f'ExecStart=/opt/voxpipe/bin/voxpipe serve --config "{tmp_path}/a b%%$$\\"c.toml"'


@pytest.mark.parametrize(
    ("platform", "system", "place"),
    [
        ("linux", True, "/home/ann/bin/voxpipe"),
        ("darwin", True, "/Users/ann/venv/bin/voxpipe"),
        ("darwin", False, "/Users/ann/Documents/venv/bin/voxpipe"),
        ("darwin", False, "/Users/ann/Library/Mobile Documents/com~apple~CloudDocs/venv/bin/voxpipe"),
    ],
)
def test_what_the_service_cannot_see(platform: str, system: bool, place: str) -> None:
    home, elsewhere = Path("/Users/ann"), ("/opt/voxpipe/bin/voxpipe",)
    with pytest.raises(ConfigError, match=rf"^the service cannot see {place}; install voxpipe elsewhere, .* -m venv"):
        check_visible(Request(system=system, program=(place,), home=home), platform)
    with pytest.raises(ConfigError, match=rf"^the service cannot see {place}; put it elsewhere$"):
        check_visible(Request(system=system, program=elsewhere, config=Path(place), home=home), platform)


def test_what_a_user_s_own_service_can_see() -> None:
    program = ("/Users/ann/Documents2/venv/bin/voxpipe",)
    check_visible(Request(program=program, home=Path("/Users/ann")), "darwin")
    check_visible(Request(program=("/home/ann/bin/voxpipe",), home=Path("/home/ann")), "linux")


def test_there_is_no_service_manager_everywhere() -> None:
    with pytest.raises(UnavailableError, match="voxpipe serve"):
        make_plan(Request(), "freebsd14")
