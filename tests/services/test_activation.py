"""The daemon started by what comes in: on a socket, and on a named pipe, that somebody else opened."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.clips import BEACH, FUTURE, resampled, s16le, said, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, parse, run, text_of, wait_until
from voxpipe.errors import EX_OK

ACTIVATE = shutil.which("systemd-socket-activate")

# What systemd does for ListenFIFO=: it opens the pipe for both directions, as descriptor 3.
HAND_OVER = """
import os, sys
pipe = os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK)
if pipe != 3:
    os.dup2(pipe, 3)
    os.close(pipe)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="audio")
os.execv(sys.executable, [sys.executable, "-m", "voxpipe", *sys.argv[2:]])
"""


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
def test_the_first_client_starts_the_daemon(tmp_path: Path) -> None:
    assert ACTIVATE is not None
    path = tmp_path / "voxpipe.sock"
    env = environment(VOXPIPE_SOCKET=str(path))
    passed = [f"--setenv={name}" for name in ("VOXPIPE_MODEL", "HF_HUB_OFFLINE", "VOXPIPE_SOCKET", "PATH", "HOME")]
    command = [ACTIVATE, f"--listen={path}", *passed, *COMMAND, "serve"]
    manager = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(path.exists)
        # 1. nobody has connected: nothing runs yet
        assert Path(f"/proc/{manager.pid}/exe").resolve().name == "systemd-socket-activate"
        # 2. the first client waits until the model is loaded, and is served
        first = run("--daemon", "require", stdin=s16le(FUTURE), env=env)
        assert first.status == EX_OK
        assert words(first.text) == said(FUTURE)
        assert json.loads(run("status", "--json", env=env).stdout)["pid"] == manager.pid
        # 3. what is not the daemon's is not removed by it
        manager.send_signal(signal.SIGTERM)
        stdout, stderr = manager.communicate(timeout=PATIENCE_S)
        assert manager.returncode == EX_OK, stderr
        assert [event["type"] for event in parse(stdout)] == ["ready"]
        assert path.is_socket()
    finally:
        manager.kill()
        manager.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only systemd hands over named pipes")
def test_a_pipe_that_is_held_open_is_cut_into_streams(tmp_path: Path) -> None:
    fifo, config = tmp_path / "in.pcm", tmp_path / "voxpipe.toml"
    config.write_text('socket = ""\n')
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, fifo, "serve", "--config", config],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    stdout, heard = process.stdout, bytearray()

    def wait_for_done(n: int) -> None:
        while heard.count(b'"type":"done"') < n:
            line = stdout.readline()
            assert line, "it has ended"
            heard.extend(line)

    try:
        # 1. it comes to no end by itself; the break after the last byte is one
        with fifo.open("wb") as pipe:
            pipe.write(s16le(FUTURE))
        wait_for_done(1)
        # 2. after a reload it is still read, now with the settings that name it
        config.write_text(f'socket = ""\n[[fifo]]\npath = "{fifo}"\nrate = 48000\n')
        process.send_signal(signal.SIGHUP)
        faster = (resampled(BEACH, 48_000)[:, 0] * 32767).astype("<i2").tobytes()
        with fifo.open("wb") as pipe:
            pipe.write(faster)
        wait_for_done(2)
        # 3. each was a stream
        events = parse(bytes(heard))
        streams = [event["stream"] for event in events if event["type"] == "done"]
        assert streams == ["in.pcm#1", "in.pcm#1"]
        assert [event["audio_s"] for event in events if event["type"] == "done"][1] == pytest.approx(5.42, abs=0.1)
        assert words(text_of(events)) == [*said(FUTURE), *said(BEACH)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == EX_OK
        assert fifo.is_fifo()
    finally:
        process.kill()
        process.communicate()


def test_descriptors_of_another_process_are_left_alone(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n')
    with live("serve", "--config", config, env=environment(LISTEN_PID="1", LISTEN_FDS="1")) as voxpipe:
        voxpipe.wait_for("ready")
        with socket.socket(socket.AF_UNIX) as client:
            wait_until(lambda: client.connect_ex(str(tmp_path / "voxpipe.sock")) == 0)
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
