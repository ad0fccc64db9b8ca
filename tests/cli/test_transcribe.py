"""`voxpipe transcribe`: files of every kind to text or events, one bad file no hindrance to the next."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, HALL, TEXT, resampled, said, samples, words
from tests.cli.process import environment, parse, run, shell, text_of
from voxpipe import Transcriber
from voxpipe.cli import main
from voxpipe.errors import EX_CONFIG, EX_DATAERR, EX_NOINPUT, EX_OK, EX_UNAVAILABLE, EX_USAGE


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tiny: Transcriber) -> None:
    """The embedded model, already loaded, for the tests that run in this process."""
    monkeypatch.setattr("voxpipe.cli.transcribe.load_model", lambda model, dtype: tiny)


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    """A FLAC whose second half is noise."""
    data = FUTURE.read_bytes()
    path = tmp_path / "corrupt.flac"
    path.write_bytes(data[: len(data) // 2] + bytes(byte ^ 0x5A for byte in data[len(data) // 2 :]))
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels"),
    [
        ("wav", "PCM_24", 44_100, 2),
        ("wav", "FLOAT", 48_000, 1),
        ("flac", "PCM_16", 22_050, 2),
        ("ogg", "VORBIS", 48_000, 2),
        ("opus", "OPUS", 48_000, 1),
        ("mp3", "MPEG_LAYER_III", 44_100, 2),
    ],
)
def test_files_that_libsndfile_reads(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], suffix: str, subtype: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"talk.{suffix}"
    container = {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(path, resampled(FUTURE, rate, channels=channels), rate, format=container, subtype=subtype)
    assert main.run(["transcribe", str(path)]) == EX_OK
    stdout = capfdbinary.readouterr().out
    assert words(stdout.decode()) == said(FUTURE)
    assert stdout.endswith(b"\n")
    assert not stdout.startswith(b" ")


FFMPEG_MISSING = "reading it (MP4/M4A) takes ffmpeg, which is not on PATH; install it with `apt install ffmpeg` or `brew install ffmpeg`"  # noqa: E501

# ffmpeg's stand-in where there is none: what it would write to its standard output
FAKE_FFMPEG = """#!/bin/sh
exec cat "$FFMPEG_OUTPUT"
"""


def test_an_m4a_through_ffmpeg(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.m4a"
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-i", FUTURE, "-c:a", "aac", path], check=True)
    else:
        path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
        (tmp_path / "sound").write_bytes(samples(FUTURE).tobytes())
        (tmp_path / "ffmpeg").write_text(FAKE_FFMPEG)
        (tmp_path / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("FFMPEG_OUTPUT", str(tmp_path / "sound"))
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main.run(["transcribe", str(path)]) == EX_OK
    assert words(capfdbinary.readouterr().out.decode()) == said(FUTURE)


def test_an_m4a_without_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "talk.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    result = run("transcribe", path, env=environment(PATH=""))
    assert result.status == EX_UNAVAILABLE
    assert result.stderr == f"voxpipe: {path}: {FFMPEG_MISSING}\n"
    assert result.stdout == b""


def test_nothing_is_compiled_or_left_behind(tmp_path: Path) -> None:
    """MLX has traced functions compiled by the machine's C++ compiler, and loads them from a folder that anybody may make."""
    assert run("transcribe", BEACH, env=environment(TMPDIR=str(tmp_path))).status == EX_OK
    assert not list(tmp_path.iterdir())


def test_a_line_per_pause(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "two.wav"
    sentence = samples(FUTURE)
    soundfile.write(path, [*sentence, *([0.0] * 32_000), *sentence], 16_000)
    assert main.run(["transcribe", str(path)]) == EX_OK
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [words(line) for line in lines] == [said(FUTURE)] * 2
    assert all(line == line.strip() for line in lines)


def test_a_bad_file_is_named_and_the_next_one_follows(tmp_path: Path, corrupt: Path) -> None:
    """In a process of its own, for its stderr."""
    text, empty, missing = tmp_path / "letter.wav", tmp_path / "empty.wav", tmp_path / "missing.wav"
    text.write_text(TEXT * 20)
    empty.touch()
    result = run("transcribe", HALL, missing, text, empty, tmp_path, corrupt, FUTURE)
    assert result.status == EX_NOINPUT  # of the first failure
    at_once = {  # in the order in which they are found: files are read side by side
        f"voxpipe: {missing}: No such file or directory",
        f"voxpipe: {text}: is text, not audio",
        f"voxpipe: {empty}: is empty (0 bytes)",
        f"voxpipe: {tmp_path}: is a directory; name its files",
    }
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    (last,) = set(lines) - at_once
    assert re.fullmatch(
        rf"voxpipe: {corrupt}: damaged or cut off at \d\.\d s of 3\.3 s \(libsndfile: .*flac decoder.*\)", last
    )
    first, damaged, good = result.stdout.decode().splitlines()
    assert words(first) == said(HALL)
    assert words(good) == said(FUTURE)
    assert words(damaged)[:1] == said(FUTURE)[:1]  # what came before the damage


def test_the_same_as_events(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], corrupt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(corrupt), str(tmp_path / "missing.wav"), str(FUTURE)]
    assert main.run(["transcribe", "-f", "jsonl", "--delay", "960", *files]) == EX_DATAERR
    events = parse(capfdbinary.readouterr().out)
    assert events[0] == {"type": "ready", "v": 1, "model": "tiny", "delay_ms": 960}
    assert [event["type"] for event in events].count("ready") == 1
    ends = [(event["stream"], event["reason"]) for event in events if event["type"] == "done"]
    assert sorted(ends) == sorted([(files[0], "error"), (files[1], "error"), (files[2], "eof")])
    errors = [event for event in events if event["type"] == "error"]
    codes = {event["stream"]: event["code"] for event in errors}
    assert codes == {files[0]: "audio", files[1]: "input"}
    assert [record.getMessage() for record in caplog.records] == [event["message"] for event in errors]
    for path in files:
        own = [event["type"] for event in events if event.get("stream") == path]
        assert own[0] == "start"
        assert own[-1] == "done"
        assert own.count("done") == own.count("start") == 1
    deltas = [event for event in events if event.get("stream") == files[2] and event["type"] == "delta"]
    assert [event["seq"] for event in deltas] == list(range(1, len(deltas) + 1))
    assert words(text_of(deltas)) == said(FUTURE)


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    for output_format in ("txt", "jsonl"):
        script = 'voxpipe transcribe -f $1 "$2" "$2" "$2" 2> "$3" | head -c 20'
        result = shell(script, output_format, BEACH, tmp_path / "stderr")
        assert len(result.stdout) == 20
        assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        ([], "Missing argument 'FILE...'. (see voxpipe transcribe --help)", EX_USAGE),
        (["-f", "doc", "x"], None, EX_USAGE),
        (["--delay", "81", "x"], None, EX_USAGE),
    ],
)
def test_a_wrong_command_line(
    capfd: pytest.CaptureFixture[str], arguments: list[str], message: str | None, status: int
) -> None:
    assert main.run(["transcribe", *arguments]) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("voxpipe: ")
    assert captured.err.count("\n") == 1
    assert message is None or captured.err == f"voxpipe: {message}\n"


def test_a_fifo_is_refused_and_a_missing_model_found_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "in.pcm")
    assert main.run(["transcribe", str(tmp_path / "in.pcm")]) == EX_NOINPUT
    message = f"{tmp_path}/in.pcm: is a FIFO, socket or device; streams are read by `voxpipe listen`"
    assert [record.getMessage() for record in caplog.records] == [message]
    result = run("transcribe", "--model", "nonesuch", FUTURE)
    assert result.status == EX_CONFIG
    assert result.stdout == b""
