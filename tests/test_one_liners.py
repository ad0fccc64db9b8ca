"""The README's lines of shell, run as they stand by the real programs: files, microphones, named pipes, sockets, jq.

A microphone is a file that ALSA plays as one. Of ffmpeg's lines for a microphone, all but the device is run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.clips import HALL, s16le, said, words
from tests.cli.process import PATIENCE_S, environment, parse, text_of, wait_until
from tests.service.test_daemon import Served, serve
from tests.test_readme import README

LINES = [line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.S | re.M) for line in block.splitlines()]
MICROPHONE = """
pcm.null {{ type null }}
pcm.!default {{ type file slave.pcm null file /dev/null infile "{file}" format raw }}
"""


def line_with(*parts: str, end: str = "") -> str:
    """The one line of the README that holds all of these."""
    (found,) = [line for line in dict.fromkeys(LINES) if all(part in line for part in parts) and line.endswith(end)]
    missing = {part.split()[0] for part in found.split("| ")} & {"ffmpeg", "arecord", "sox", "jq", "nc"}
    missing = {program for program in missing if shutil.which(program) is None}
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lines are run: voxpipe is a command, talk.mp4 and talk.flac are there, and so is a microphone."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "bin").mkdir()
    command = folder / "bin" / "voxpipe"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m voxpipe "$@"\n')
    command.chmod(0o755)
    shutil.copy(HALL, folder / "talk.flac")
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", HALL, "-c:a", "aac", folder / "talk.mp4"], check=True)
    (folder / "said.raw").write_bytes(s16le(HALL))
    (folder / "asound.conf").write_text(MICROPHONE.format(file=folder / "said.raw"))
    return folder


def variables(folder: Path, **changes: str) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path, ALSA_CONFIG_PATH=str(folder / "asound.conf"), **changes)


def output_of(line: str, folder: Path, **changes: str) -> bytes:
    command = ["sh", "-c", line]
    env = variables(folder, **changes)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=PATIENCE_S, check=True)
    assert done.stderr == b""
    return done.stdout


@contextmanager
def endless(line: str, folder: Path, output: Path, *, number: int = signal.SIGINT) -> Iterator[None]:
    """Run a line that goes on until Ctrl-C, which it gets at the end, or another signal."""
    with output.open("wb") as stdout:
        process = subprocess.Popen(
            ["sh", "-c", line],
            cwd=folder,
            env=variables(folder),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield
            os.killpg(process.pid, number)
            process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def is_heard(output: bytes) -> bool:
    return words(text_of(parse(output))) == said(HALL)


def test_a_file_by_ffmpeg(folder: Path) -> None:
    assert is_heard(output_of(line_with("ffmpeg", "-i talk.mp4", end="- | voxpipe"), folder))


def test_a_file_by_sox_and_the_words_by_jq(folder: Path) -> None:
    line = line_with("sox", "jq")
    assert words(output_of(line, folder).decode()) == said(HALL)


@pytest.mark.parametrize("device", ["-f avfoundation -i :default", "-f alsa -i default"])
def test_a_microphone_by_ffmpeg_but_for_the_device(folder: Path, device: str) -> None:
    """ffmpeg goes by the clock, and here is no device that does."""
    line = line_with("ffmpeg", device)
    assert is_heard(output_of(line.replace(device, "-i talk.flac"), folder))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ALSA is Linux's")
def test_a_microphone_by_arecord(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "events"
    with endless(
        line_with("arecord"), folder, output, number=signal.SIGKILL
    ):  # minutes of silence wait behind the words
        wait_until(lambda: output.read_bytes().count(b'"delta"') > 15)
    heard = words(text_of(parse(output.read_bytes())))
    assert heard[:8] == said(HALL)[:8]


def test_a_named_pipe(folder: Path, tmp_path: Path) -> None:
    line = line_with("mkfifo")
    output, pipe = tmp_path / "events", folder / re.findall(r"mkfifo (\S+)", line)[0]
    with endless(line, folder, output):
        wait_until(pipe.exists)
        pipe.write_bytes(s16le(HALL))
        wait_until(lambda: b'"done"' in output.read_bytes())
    assert is_heard(output.read_bytes())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as daemon:
        yield daemon


def test_a_socket_by_nc(folder: Path, served: Served) -> None:
    line = line_with("nc -NU").replace('"$XDG_RUNTIME_DIR/voxpipe/voxpipe.sock"', f'"{served.socket}"')
    if sys.platform == "darwin":
        line = line.replace("-NU", "-U")  # as the README says
    assert "XDG" not in line
    assert is_heard(output_of(line, folder))


def test_every_line_is_shell() -> None:
    for line in dict.fromkeys(LINES):
        subprocess.run(["sh", "-n", "-c", line], check=True)
