"""Put the daemon under systemd or launchd: which files go where, and which commands make the manager take them up.

A `Plan` is made without touching anything, so it can be shown instead of carried out. Files that somebody else wrote are
neither overwritten nor removed. The units and property lists come from `systemd/` and `launchd/` of the source tree; only
the paths of the program and its settings are put in.
"""

import os
import plistlib
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from voxpipe.errors import ConfigError, OutputError, UnavailableError

MARK = "Written by `voxpipe service install`, removed by `voxpipe service uninstall`."
AGENT, DAEMON = "org.voxpipe.agent", "org.voxpipe.daemon"
ACCOUNT = "_voxpipe"  # on macOS
EVERYBODY = "staff"  # the group of a Mac's ordinary users; what is made in a folder is its group's
UNITS = ("voxpipe.service", "voxpipe.socket")
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # what ProtectHome= and PrivateTmp= take away
HIDDEN_ON_MACOS = ("/Users", "/var/root")  # other accounts may not enter a home
GUARDED = ("Desktop", "Documents", "Downloads", "Library/Mobile Documents")  # in a home: macOS asks before each use
COMMAND_WAIT_S = 120.0
BUSY = re.compile(r"Bootstrap failed: (5|37):")  # for seconds after `launchctl bootout` has returned
BUSY_WAIT_S, BUSY_STEP_S = 20.0, 0.5
NO_SCREEN = "Bootstrap failed: 125:"

Command = tuple[str, ...]


@dataclass(frozen=True)
class PlannedFile:
    """A file to be written.

    Attributes:
        is_settings: it is the user's to change: never overwritten, and removed only as long as nobody has.
    """

    path: Path
    text: str
    is_settings: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that installing does, and how it is undone.

    Attributes:
        folders: are made with this mode and for this "account" or "account:group", if one is named.
    """

    files: tuple[PlannedFile, ...]
    folders: tuple[tuple[Path, int, str | None], ...]
    enable: tuple[Command, ...]
    disable: tuple[Command, ...]
    forget: tuple[Command, ...]
    status: Command

    @property
    def is_installed(self) -> bool:
        """Whether some of it is there already, and ours."""
        return any(not file.is_settings and file.path.exists() and _is_ours(file.path) for file in self.files)


@dataclass(frozen=True)
class Request:
    """What is to be installed for whom.

    Attributes:
        program: the words that start voxpipe.
        config: the daemon's settings; None for the usual place.
        gpu: let the system's unit have an NVIDIA GPU.
        fifo: add the named pipe that starts the daemon.
        home: of the user.
        root: where the system's folders begin.
    """

    system: bool = False
    program: tuple[str, ...] = ()
    config: Path | None = None
    gpu: bool = False
    fifo: bool = False
    home: Path = Path()
    root: Path = Path("/")


def own_program() -> tuple[str, ...]:
    """The words with which a service manager can start this very voxpipe."""
    script = Path(sys.executable).with_name("voxpipe")
    return (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "voxpipe")


def make_plan(request: Request, platform: str) -> Plan:
    """Say what installing does.

    Args:
        platform: as `sys.platform`.

    Raises:
        UnavailableError: there is no service manager for this platform.
    """
    if platform.startswith("linux"):
        return _systemd_system(request) if request.system else _systemd_user(request)
    if platform == "darwin":
        return _launchd(request)
    raise UnavailableError(f"services are for systemd and launchd, not {platform}; run: voxpipe serve")


def check_visible(request: Request, platform: str) -> None:
    """See that the service can run the program and read its settings.

    Raises:
        ConfigError: they lie where the service is let see nothing.
    """
    hidden = _hidden(request, platform)
    if request.config is not None and _is_below(request.config, hidden):
        raise ConfigError(f"the service cannot see {request.config}; put it elsewhere")
    folder = "/opt/voxpipe" if request.system else "~/.voxpipe"
    sudo = "sudo " if request.system else ""
    for place in (request.program[0], sys.prefix, sys.base_prefix, __file__):
        if _is_below(place, hidden):
            raise ConfigError(
                f"the service cannot see {place}; install voxpipe elsewhere, for example: "
                f"{sudo}python3 -m venv {folder} && {sudo}{folder}/bin/pip install ."
            )


def _is_below(place: str | Path, folders: tuple[Path, ...]) -> bool:
    return any(Path(place).is_relative_to(folder) for folder in folders)


def _hidden(request: Request, platform: str) -> tuple[Path, ...]:
    """Folders of which the service is let see nothing."""
    if platform != "darwin":
        return tuple(map(Path, HIDDEN)) if request.system else ()
    if request.system:
        return tuple(map(Path, HIDDEN_ON_MACOS))
    return tuple(request.home / name for name in GUARDED)


def install(plan: Plan) -> None:
    """Write the files and have the service started.

    Raises:
        OutputError: a file is somebody else's, or cannot be written.
        UnavailableError: the service manager is missing or refuses.
    """
    _find_programs(plan.enable)
    for file in plan.files:
        if not file.is_settings and file.path.exists() and not _is_ours(file.path):
            raise OutputError(f"{file.path} was not written by voxpipe; move it away and install again")
    if plan.is_installed:
        _disable(plan)
    for path, mode, owner in plan.folders:
        _make_folder(path, mode, owner)
    for file in plan.files:
        if not (file.is_settings and file.path.exists()):
            _write(file)
    for command in plan.enable:
        _run(command)


def uninstall(plan: Plan) -> list[Path]:
    """Stop the service, remove its files and return which.

    Raises:
        OutputError: a file cannot be removed.
        UnavailableError: the service manager is missing or refuses.
    """
    if not plan.is_installed:
        return []
    _find_programs((*plan.disable, *plan.forget))
    _disable(plan)
    removed = [file.path for file in plan.files if file.path.exists() and _is_to_go(file)]
    for path in removed:
        try:
            path.unlink()
        except OSError as exc:
            raise OutputError(f"cannot remove {path}: {exc.strerror}{_hint(exc)}") from exc
        with suppress(OSError):  # others' files are in it
            if path.parent.name in ("voxpipe", "voxpipe.service.d"):
                path.parent.rmdir()
    for command in plan.forget:
        _run(command)
    return removed


def show_status(plan: Plan) -> int:
    """Let the service manager say how it stands; returns its exit status."""
    _find_programs((plan.status,))
    return subprocess.run(plan.status, check=False, stdin=subprocess.DEVNULL).returncode


def _systemd_user(request: Request) -> Plan:
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or request.home / ".config")
    units = config_home / "systemd" / "user"
    config = request.config or config_home / "voxpipe" / "voxpipe.toml"
    names = (*UNITS, *(("voxpipe-fifo.socket",) if request.fifo else ()))
    files = [_unit(units / name, "user", request, config) for name in names]
    control = ("systemctl", "--user")
    return Plan(
        files=(*files, *_settings(request, config, _template("systemd/voxpipe.toml"))),
        folders=((request.home / ".local" / "state" / "voxpipe", 0o700, None),),
        enable=((*control, "daemon-reload"), (*control, "enable", "--now", *reversed(names))),
        disable=tuple((*control, "disable", "--now", name) for name in names),
        forget=((*control, "daemon-reload"),),
        status=(*control, "status", "--no-pager", "voxpipe.service"),
    )


def _systemd_system(request: Request) -> Plan:
    etc = request.root / "etc"
    units = etc / "systemd" / "system"
    config = request.config or Path("/etc/voxpipe/voxpipe.toml")
    names = (*UNITS, *(("voxpipe-fifo.socket",) if request.fifo else ()))
    files = [_unit(units / name, "system", request, config) for name in names]
    if request.gpu:
        files.append(_marked(units / "voxpipe.service.d" / "gpu.conf", "systemd/system/voxpipe.service.d/gpu.conf"))
    users = _marked(etc / "sysusers.d" / "voxpipe.conf", "systemd/sysusers.d/voxpipe.conf")
    places = _marked(etc / "tmpfiles.d" / "voxpipe.conf", "systemd/tmpfiles.d/voxpipe.conf")
    rotation = _marked(etc / "logrotate.d" / "voxpipe", "systemd/logrotate.d/voxpipe")
    settings = _settings(request, request.root / config.relative_to("/"), _template("systemd/voxpipe.toml"))
    return Plan(
        files=(*files, users, places, rotation, *settings),
        folders=(),
        enable=(
            ("systemd-sysusers", str(users.path)),
            ("systemd-tmpfiles", "--create", str(places.path)),
            ("systemctl", "daemon-reload"),
            ("systemctl", "enable", "--now", *reversed(names)),
        ),
        disable=tuple(("systemctl", "disable", "--now", name) for name in names),
        forget=(("systemctl", "daemon-reload"),),
        status=("systemctl", "status", "--no-pager", "voxpipe.service"),
    )


def _launchd(request: Request) -> Plan:
    label = DAEMON if request.system else AGENT
    domain = "system" if request.system else f"gui/{os.getuid()}"
    template = _template(f"launchd/{label}.plist").replace("@HOME@", str(request.home))
    keys = plistlib.loads(template.encode())
    config = request.config or Path(keys["ProgramArguments"][-1])
    keys["ProgramArguments"] = [*request.program, "serve", "--config", str(config)]
    head, separator, body = plistlib.dumps(keys, sort_keys=False).decode().partition("<plist")
    begin = request.root if request.system else request.home
    path = begin / "Library" / ("LaunchDaemons" if request.system else "LaunchAgents") / f"{label}.plist"
    files = [PlannedFile(path, f"{head}<!-- {MARK} -->\n{separator}{body}")]
    logs = request.root / Path(keys["StandardErrorPath"]).parent.relative_to("/")
    folders: list[tuple[Path, int, str | None]] = [(logs, 0o700, None)]
    run = request.home / "Library" / "Caches" / "voxpipe"
    settings = _template("launchd/voxpipe.toml").replace("@SERVICE@", f"{domain}/{label}")
    if request.system:
        run = Path(keys["EnvironmentVariables"]["VOXPIPE_SOCKET"]).parent
        settings = settings.replace('# socket_mode = "0600"', 'socket_mode = "0660"  ')
        config = request.root / config.relative_to("/")
        files.append(_marked(request.root / "etc" / "newsyslog.d" / "voxpipe.conf", "launchd/newsyslog.d/voxpipe.conf"))
        var = request.root / "usr" / "local" / "var"
        folders = [(var / name / "voxpipe", 0o750, ACCOUNT) for name in ("log", "cache")]
        folders.append((var / "run" / "voxpipe", 0o750, f"{ACCOUNT}:{EVERYBODY}"))
    return Plan(
        files=(*files, *_settings(request, config, settings.replace("@RUN@", str(run)))),
        folders=tuple(folders),
        enable=(("launchctl", "bootstrap", domain, str(path)),),
        disable=(("launchctl", "bootout", f"{domain}/{label}"),),
        forget=(),
        status=("launchctl", "print", f"{domain}/{label}"),
    )


def _template(name: str) -> str:
    """A file of the source tree; an installed package carries it beside this module."""
    installed = Path(__file__).parent / "units" / name
    return (installed if installed.exists() else Path(__file__).parents[2] / name).read_text("utf-8")


def _marked(path: Path, template: str) -> PlannedFile:
    return PlannedFile(path, f"# {MARK}\n{_template(template)}")


def _unit(path: Path, scope: str, request: Request, config: Path) -> PlannedFile:
    file = _marked(path, f"systemd/{scope}/{path.name}")
    words = (*request.program, "serve", "--config", str(config))
    line = "ExecStart=" + " ".join(map(_quote, words))
    return PlannedFile(path, re.sub(r"^ExecStart=.*$", lambda _: line, file.text, flags=re.M))


def _quote(word: str) -> str:
    """A word of a systemd command line: systemd.service(5), "Command lines"."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if re.fullmatch(r"[\w/.+:@%=-]+", word) else f'"{word}"'


def _settings(request: Request, path: Path, text: str) -> tuple[PlannedFile, ...]:
    return () if request.config else (PlannedFile(path, text, is_settings=True),)


def _is_to_go(file: PlannedFile) -> bool:
    return file.path.read_text("utf-8") == file.text if file.is_settings else _is_ours(file.path)


def _is_ours(path: Path) -> bool:
    try:
        return MARK in path.read_text("utf-8", errors="replace")
    except OSError as exc:
        raise OutputError(f"cannot read {path}: {exc.strerror}") from exc


def _write(file: PlannedFile) -> None:
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text, "utf-8")
        file.path.chmod(0o644)
    except OSError as exc:
        raise OutputError(f"cannot write {file.path}: {exc.strerror}{_hint(exc)}") from exc


def _make_folder(path: Path, mode: int, owner: str | None) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        if owner is not None:
            shutil.chown(path, *owner.split(":"))
    except LookupError as exc:
        account = str(owner).partition(":")[0]
        raise ConfigError(
            f"there is no account {account}; make it with: sudo sysadminctl -addUser {account} -UID 450 -roleAccount "
            "(a free UID from 450 to 499; on older macOS from 200 to 400)"
        ) from exc
    except OSError as exc:
        raise OutputError(f"cannot make {path}: {exc.strerror}{_hint(exc)}") from exc


def _hint(exc: OSError) -> str:
    return "; run it with sudo" if isinstance(exc, PermissionError) else ""


def _find_programs(commands: tuple[Command, ...]) -> None:
    for name in dict.fromkeys(command[0] for command in commands):
        if shutil.which(name) is None:
            raise UnavailableError(f"{name} is not installed here; start the daemon with: voxpipe serve")


def _disable(plan: Plan) -> None:
    for command in plan.disable:
        with suppress(UnavailableError):  # it is not running, or was never there
            _run(command)


def _run(command: Command) -> None:
    deadline = time.monotonic() + BUSY_WAIT_S
    while (reason := _refusal(command)) and BUSY.search(reason) and time.monotonic() < deadline:
        time.sleep(BUSY_STEP_S)
    if reason is None:
        return
    if NO_SCREEN in reason:
        raise UnavailableError("nobody is logged in at this Mac's screen; log in there, or use --system")
    raise UnavailableError(f"`{' '.join(command)}` failed: {reason}; mend that and run it again")


def _refusal(command: Command) -> str | None:
    """Run it; why it failed, if it did."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        line = " ".join(command)
        raise UnavailableError(f"`{line}` does not come to an end; see why with: voxpipe service status") from exc
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[0] if said else f"it ended with status {done.returncode}"
