"""`voxpipe service`: what it writes, what it leaves alone, and what it says when it cannot."""

import os
import sys
from pathlib import Path

import pytest

from tests.cli.process import Result, environment, run
from voxpipe.errors import EX_CANTCREAT, EX_CONFIG, EX_OK, EX_UNAVAILABLE, EX_USAGE, OutputError, UnavailableError
from voxpipe.service.install import MARK, Plan, Request, check_visible, install, make_plan, own_program, uninstall

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


def test_words_that_systemd_would_take_apart(tmp_path: Path) -> None:
    odd = tmp_path / 'a b%$"c.toml'
    plan = make_plan(Request(program=("/opt/voxpipe/bin/voxpipe",), config=odd, home=tmp_path), "linux")
    line = next(line for line in plan.files[0].text.splitlines() if line.startswith("ExecStart="))
    assert line == f'ExecStart=/opt/voxpipe/bin/voxpipe serve --config "{tmp_path}/a b%%$$\\"c.toml"'


def test_a_program_that_the_hardened_unit_cannot_see() -> None:
    with pytest.raises(
        Exception, match="the system's service cannot see /home/ann/bin/voxpipe; install voxpipe elsewhere"
    ):
        check_visible(("/home/ann/bin/voxpipe",))


def test_there_is_no_service_manager_everywhere() -> None:
    with pytest.raises(UnavailableError, match="voxpipe serve"):
        make_plan(Request(), "freebsd14")
