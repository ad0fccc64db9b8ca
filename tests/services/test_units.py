"""The systemd units and launchd property lists as they are installed, judged by systemd's own tools and plistlib."""

import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from voxpipe.service.install import Plan, Request, make_plan

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "voxpipe")
ANALYZE = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
SECURITY_LIMIT = 2.0  # systemd-analyze's scale: 0 is safest, 10 unprotected


def written(plan: Plan) -> list[Path]:
    """The plan's files, where it wants them, which is below a temporary root."""
    for file in plan.files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text)
    return [file.path for file in plan.files if file.path.suffix in (".service", ".socket")]


def analyze(*arguments: str | Path, runtime: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, env=env)


@needs_analyze
@pytest.mark.parametrize("scope", ["system", "user"])
def test_units_are_correct(scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    request = Request(system=scope == "system", program=PROGRAM, fifo=True, home=tmp_path, root=tmp_path)
    units = written(make_plan(request, "linux"))
    assert len(units) == 3
    done = analyze("verify", f"--{scope}", "--man=no", *units, runtime=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_analyze
@pytest.mark.parametrize("gpu", [False, True])
def test_the_system_unit_is_hardened(gpu: bool, tmp_path: Path) -> None:
    request = Request(system=True, program=PROGRAM, gpu=gpu, root=tmp_path)
    unit = written(make_plan(request, "linux"))[0]
    done = analyze("security", "--offline=true", unit, runtime=tmp_path)
    found = re.search(r"exposure level for voxpipe\.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    print(f"exposure level {found[1]}{' with a GPU' if gpu else ''}")
    assert float(found[1]) <= SECURITY_LIMIT


@pytest.mark.parametrize("scope", ["system", "user"])
def test_a_wrong_configuration_is_not_tried_again(scope: str) -> None:
    unit = (ROOT / "systemd" / scope / "voxpipe.service").read_text()
    assert "\nRestartPreventExitStatus=64 78\n" in unit
    assert "\nType=notify\n" in unit
    assert "HF_HUB_OFFLINE=1" in unit
    assert re.search(r"^RestrictAddressFamilies=AF_UNIX( AF_NETLINK)?$", unit, re.M)


UNDER_MDWE = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: what MemoryDenyWriteExecute= enforces
    sys.exit(200)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    from voxpipe.cli.main import run
    sys.exit(run(["transcribe", "--model", "tiny", sys.argv[1]]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a facility of Linux")
def test_the_cpu_backend_needs_no_writable_code() -> None:
    command = [sys.executable, "-c", UNDER_MDWE, str(ROOT / "tests/data/speech/beach.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 200:
        pytest.skip("this kernel is older than 6.3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("but i was still on the same beach")


def property_list(system: bool, home: Path) -> dict[str, Any]:
    plan = make_plan(Request(system=system, program=("/opt/my tools/voxpipe",), home=home), "darwin")
    keys: dict[str, Any] = plistlib.loads(plan.files[0].text.encode())
    assert plan.files[0].path.name == f"{keys['Label']}.plist"
    return keys


@pytest.mark.parametrize("system", [False, True])
def test_property_lists_carry_what_launchd_needs(system: bool) -> None:
    keys = property_list(system, Path("/Users/ann"))
    config = "/usr/local/etc/voxpipe/voxpipe.toml" if system else "/Users/ann/.config/voxpipe/voxpipe.toml"
    assert keys["ProgramArguments"] == ["/opt/my tools/voxpipe", "serve", "--config", config]
    assert keys["RunAtLoad"] is True
    assert keys["KeepAlive"] == {"SuccessfulExit": False}
    assert keys["ThrottleInterval"] >= 30
    assert keys["ExitTimeOut"] >= 20
    assert keys["ProcessType"] == "Interactive"
    variables = keys["EnvironmentVariables"]
    assert (variables["HF_HUB_OFFLINE"], variables["VOXPIPE_LAUNCHD"]) == ("1", "1")
    path = variables["PATH"].split(":")
    assert {"/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"} <= set(path)
    assert keys["SoftResourceLimits"] == {"Core": 0, "NumberOfFiles": 4096}
    assert keys["Umask"] == (0o027 if system else 0o077)
    for name in ("StandardOutPath", "StandardErrorPath", "WorkingDirectory"):
        assert keys[name].startswith("/")
    assert "@HOME@" not in str(keys)
    assert keys.get("UserName") == ("_voxpipe" if system else None)


@pytest.mark.skipif(sys.platform != "darwin", reason="plutil is a Mac's")
@pytest.mark.parametrize("path", sorted((ROOT / "launchd").glob("*.plist")))
def test_plutil_agrees(path: Path) -> None:
    subprocess.run(["plutil", "-lint", path], check=True)


ASK = """
import socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.settimeout(20)
asking.connect(sys.argv[1])
asking.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
while data := asking.recv(65536):
    sys.stdout.buffer.write(data)
"""

MANAGER = """
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
PATH="$PATH:/lib/systemd:/usr/lib/systemd"
groups() { find /sys/fs/cgroup -type d | sort; }
before=$(groups)
systemd --user </dev/null >/dev/null 2>&1 &
for _ in $(seq 100); do test -S "$XDG_RUNTIME_DIR/systemd/private" && break; sleep 0.1; done
test -S "$XDG_RUNTIME_DIR/systemd/private" || { echo "no manager"; exit 0; }
voxpipe() { "$PYTHON" -m voxpipe "$@"; }
show() { systemctl --user show -p "$1" --value voxpipe.service; }
voxpipe service install --fifo
echo "installed: $(show ActiveState)"
voxpipe --daemon require <"$CLIP" | tail -n 1
voxpipe service status >/dev/null && echo "status: $?"
systemctl --user reload voxpipe.service && echo "reloaded: $(show ActiveState)"
cat "$CLIP" >"$XDG_RUNTIME_DIR/voxpipe/in.pcm"
kill -9 "$(show MainPID)"
for _ in $(seq 200); do test "$(show NRestarts) $(show ActiveState)" = "1 active" && break; sleep 0.1; done
echo "killed: $(show ActiveState), $(show NRestarts) restart"
systemctl --user stop voxpipe.service 2>/dev/null
echo "stopped: $(show Result)"
voxpipe --daemon require <"$CLIP" | tail -n 1
echo "started by a client: $(show ActiveState)"
systemctl --user stop voxpipe.service 2>/dev/null
printf 'metrics = "%s"\nmetrics_file = "%s"\n' "$METRICS" "$METRICS.prom" >"$HOME/.config/voxpipe/voxpipe.toml"
systemctl --user start voxpipe.service
"$PYTHON" -c "$ASK" "$METRICS" | grep -a "^voxpipe_streams_limit"
grep "^voxpipe_streams_limit" "$METRICS.prom"
systemctl --user stop voxpipe.service 2>/dev/null
echo "measured: $(show Result), left: $(ls -d "$METRICS"* 2>/dev/null)"
echo "delay_ms = 77" >"$HOME/.config/voxpipe/voxpipe.toml"
systemctl --user start voxpipe.service 2>/dev/null || true
sleep 6
echo "broken: $(show ActiveState), status $(show ExecMainStatus), $(show NRestarts) restarts"
voxpipe service uninstall | wc -l
voxpipe service uninstall || echo "again: $?"
systemctl --user exit
sleep 0.5
comm -13 <(echo "$before") <(groups) | sort -r | xargs -r rmdir 2>/dev/null || true
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or os.getuid() != 0
    or not Path("/lib/systemd/systemd").exists()
    or shutil.which("unshare") is None,
    reason="needs root, unshare and systemd to start a service manager apart from the machine's own",
)
def test_a_real_manager_runs_it(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": "/run/user/test",
        "PYTHON": sys.executable,
        "ASK": ASK,
        "METRICS": "/run/user/test/voxpipe/metrics",
        "CLIP": str(ROOT / "tests/data/speech/beach.wav"),
    }
    for name in ("XDG_CONFIG_HOME", "VOXPIPE_SOCKET", "VOXPIPE_MODEL", "DBUS_SESSION_BUS_ADDRESS"):
        env.pop(name, None)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", MANAGER]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    if "no manager" in done.stdout or "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no service manager can be started here")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("/")]
    ends = [line for line in lines if line.startswith("{")]
    assert all('"type":"done"' in line and '"reason":"eof"' in line for line in ends)
    assert len(ends) == 2
    assert [line for line in lines if not line.startswith("{")] == [
        "installed: active",
        "status: 0",
        "reloaded: active",
        "killed: active, 1 restart",
        "stopped: success",
        "started by a client: active",
        "voxpipe_streams_limit 16.0",
        "voxpipe_streams_limit 16.0",
        "measured: success, left: ",
        "broken: failed, status 78, 0 restarts",
        "3",
        "again: 78",
    ], done.stderr
    assert not list(tmp_path.rglob("voxpipe*.s*"))
    assert (tmp_path / ".config/voxpipe/voxpipe.toml").read_text() == "delay_ms = 77\n"  # settings that were changed
    assert '"type":"ready"' in (tmp_path / ".local/state/voxpipe/events.jsonl").read_text()
