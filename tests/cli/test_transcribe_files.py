"""`voxpipe transcribe -o DIR`: captions and other files, whole or not at all, whatever the recordings are."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pysrt
import pytest
import soundfile
import webvtt

from tests.cli.clips import BEACH, FUTURE, HALL, resampled, said, samples, spoken, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, parse, run, text_of, wait_until
from voxpipe import Transcriber
from voxpipe.cli import main
from voxpipe.errors import EX_CANTCREAT, EX_DATAERR, EX_NOINPUT, EX_OK, EX_USAGE

NO_TEXT = [b"\xff.wav"] * (sys.platform != "darwin")  # names that cannot be there

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tiny: Transcriber) -> None:
    """The embedded model, already loaded, for the tests that run in this process."""
    monkeypatch.setattr("voxpipe.cli.transcribe.load_model", lambda model, dtype: tiny)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def transcribe(*arguments: str | Path) -> int:
    return main.run(["transcribe", *map(str, arguments)])


def speech(path: Path, rate: int = 16_000, *, channels: int = 1, subtype: str | None = None, repeats: int = 1) -> Path:
    """A file with the clip FUTURE in it."""
    sound = np.tile(resampled(FUTURE, rate, channels=channels), (repeats, 1))
    soundfile.write(path, sound, rate, subtype, format=None if path.suffix else "WAV")
    return path


def result(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@contextmanager
def voxpipe(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is dead at the latest when the block is left."""
    options = {"stdin": subprocess.DEVNULL, "env": environment(), **options}
    with subprocess.Popen([*COMMAND, *map(str, arguments)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


# what is written


def test_every_format_of_two_files(out: Path) -> None:
    assert transcribe("-f", "txt,srt", "-f", "vtt,json,jsonl", "-o", out, BEACH, HALL) == EX_OK
    suffixes = ("json", "jsonl", "srt", "txt", "vtt")
    assert names(out) == [f"{stem}.{suffix}" for stem in ("beach", "hall") for suffix in suffixes]
    for clip in (BEACH, HALL):
        text = (out / f"{clip.stem}.txt").read_text()
        assert words(text) == said(clip)
        srt = pysrt.open(str(out / f"{clip.stem}.srt"), error_handling=pysrt.ERROR_RAISE)
        vtt = webvtt.read(str(out / f"{clip.stem}.vtt"))
        assert words(" ".join(item.text for item in srt)) == said(clip)
        assert words(" ".join(caption.text for caption in vtt)) == said(clip)
        assert [str(item.start).replace(",", ".") for item in srt] == [caption.start for caption in vtt]
        events = parse((out / f"{clip.stem}.jsonl").read_bytes())
        assert words(text_of(events)) == said(clip)
        assert [events[0]["type"], events[1]["type"], events[-1]["type"]] == ["ready", "start", "done"]
        whole = result(out / f"{clip.stem}.json")
        assert words(whole["text"]) == said(clip)
        assert [word["word"] for word in whole["words"]] == said(clip)
        assert (whole["model"], whole["delay_ms"], whole["truncated"]) == ("tiny", 480, False)
        facts = whole["audio"]
        assert (facts["path"], facts["size"]) == (str(clip), clip.stat().st_size)
        assert facts["mtime"] == round(clip.stat().st_mtime, 6)
        assert facts["duration_s"] == pytest.approx(soundfile.info(clip).duration, abs=0.01)


def test_words_are_near_where_they_were_spoken(out: Path) -> None:
    assert transcribe("-f", "json", "-o", out, BEACH) == EX_OK
    for word, (text, start, end) in zip(result(out / "beach.json")["words"], spoken(BEACH), strict=True):
        assert word["word"] == text
        assert abs(word["start"] - start) < 0.6
        assert abs(word["end"] - end) < 0.6
        assert 0.0 < word["probability"] <= 1.0


def test_captions_of_one_file_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert transcribe("-f", "srt", BEACH) == EX_OK
    items = pysrt.from_string(capfd.readouterr().out, error_handling=pysrt.ERROR_RAISE)
    assert words(" ".join(item.text for item in items)) == said(BEACH)
    assert transcribe("-f", "json", BEACH, FUTURE) == EX_OK
    decoder, rest, texts = json.JSONDecoder(), capfd.readouterr().out, []
    while rest:
        one, end = decoder.raw_decode(rest)
        texts.append(words(one["text"]))
        rest = rest[end:].lstrip()
    assert texts == [said(BEACH), said(FUTURE)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "srt,vtt", "x"], "stdout takes one format; name a folder with `-o DIR` for several"),
        (["-f", "srt", "x", "y"], "stdout takes one srt; name a folder with `-o DIR` for several"),
        (["-f", "vtt", "--channels", "split", "x"], "stdout takes one vtt; name a folder with `-o DIR` for several"),
        (
            ["-f", "srt", "-o", "x.srt", "x"],
            "-o takes a folder, and 'x.srt' is a file's name; for one file write `-f FORMAT > FILE`",
        ),
        (["-o", "out", "a/x.wav", "b/x.wav"], None),
        (["--force", "--skip-existing", "-o", "out", "x"], "--force and --skip-existing contradict each other"),
        (
            ["-f", "txt,doc", "x"],
            "Invalid value for '-f' / '--format': there is no format 'doc'; choose from txt, srt, vtt, json, jsonl "
            "(see voxpipe transcribe --help)",
        ),
    ],
)
def test_a_command_line_that_cannot_be_obeyed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert transcribe(*arguments) == EX_USAGE
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message is None or captured.err == f"voxpipe: {message}\n"
    assert list(tmp_path.iterdir()) == []


# names


def test_names_that_clash(tmp_path: Path, out: Path) -> None:
    a, b = speech(tmp_path / "talk.wav"), speech(tmp_path / "talk.flac")
    assert transcribe("-o", out, a, b, a) == EX_OK
    assert names(out) == ["talk.flac.txt", "talk.wav.txt"]


def test_a_quoted_pattern_keeps_its_folders(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two/deep"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        speech(tmp_path / "in" / folder / "talk.wav")
    monkeypatch.chdir(tmp_path)
    assert transcribe("-o", out, "in/**/*.wav") == EX_OK
    assert names(out) == ["one/talk.txt", "two/deep/talk.txt"]
    assert transcribe("-o", out, "in/*.ogg") == EX_NOINPUT


def test_awkward_names(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = [b"-dash.wav", b"a:b c.wav", b"new\nline.wav", b"[x]*.wav", *NO_TEXT]
    for name in odd:
        speech(tmp_path / "a.wav").rename(tmp_path / os.fsdecode(name))
    assert transcribe("-o", out, "-f", "txt,json,jsonl", "--", *map(os.fsdecode, odd)) == EX_OK
    written = sorted(os.listdir(os.fsencode(out)))
    assert written == sorted(name[:-4] + suffix for name in odd for suffix in (b".json", b".jsonl", b".txt"))
    for name in NO_TEXT:
        assert json.loads((out / os.fsdecode(name[:-4] + b".json")).read_text())["audio"]["path"] == "\\xff.wav"


@needs_ffmpeg
def test_awkward_names_through_ffmpeg(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-i", FUTURE, "-c:a", "aac", "a.m4a"], check=True)
    odd = [b"-i.m4a", b"http:x.m4a", b"new\nline.m4a", b"pipe:0.m4a", *(name[:-4] + b".m4a" for name in NO_TEXT)]
    for name in odd:
        shutil.copy("a.m4a", os.fsdecode(name))
    assert transcribe("-o", out, "--", *map(os.fsdecode, odd)) == EX_OK
    for name in odd:
        assert words((out / os.fsdecode(name[:-4] + b".txt")).read_text()) == said(FUTURE)


def test_an_idle_mac_stays_awake_until_all_is_done(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho $$ "$@" >> {tmp_path}/calls\nexec sleep 100\n')
    program.chmod(0o755)
    monkeypatch.setattr("voxpipe.cli.recordings.CAFFEINATE", str(program))
    assert transcribe("-o", out, BEACH) == EX_OK
    pid, *arguments = (tmp_path / "calls").read_text().split()
    assert arguments == ["-i", "-w", str(os.getpid())]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


# what is there already


def test_existing_outputs(tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    out.mkdir()
    (out / "beach.txt").write_text("mine\n")
    assert transcribe("-o", out, "-f", "txt,srt", BEACH, FUTURE) == EX_CANTCREAT
    assert names(out) == ["beach.txt", "future.srt", "future.txt"]
    there = f"{out}/beach.txt is there already; --force replaces it, --skip-existing leaves it"
    assert caplog.messages == [f"{BEACH}: {there}"]
    caplog.clear()
    assert transcribe("-o", out, "-f", "txt,srt", "--skip-existing", BEACH, FUTURE) == EX_OK
    assert names(out) == ["beach.srt", "beach.txt", "future.srt", "future.txt"]
    assert (out / "beach.txt").read_text() == "mine\n"
    assert caplog.messages == ["1 of 2 files are skipped: their outputs are there"]
    assert transcribe("-o", out, "--skip-existing", BEACH, FUTURE) == EX_OK
    assert transcribe("-o", out, "--force", BEACH) == EX_OK
    assert words((out / "beach.txt").read_text()) == said(BEACH)


def test_a_recording_is_never_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "talk.txt"
    shutil.copy(BEACH, path)
    assert transcribe("-o", tmp_path, "--force", path) == EX_CANTCREAT
    assert caplog.messages == [f"{path}: {path} is itself one of the files to be read; name another folder"]
    assert path.read_bytes() == BEACH.read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert transcribe("-o", tmp_path / "file" / "out", BEACH, FUTURE) == EX_CANTCREAT
    assert capfd.readouterr().err == f"voxpipe: cannot make the folder {tmp_path}/file/out: Not a directory\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs a way to limit the size of a file")
def test_a_disk_that_is_full(tmp_path: Path, out: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same place."""
    script = 'trap "" XFSZ; ulimit -f 1; exec "$@"'
    command = ["sh", "-c", script, "sh", *COMMAND, "transcribe", "-f", "txt,json", "-o", out, BEACH, FUTURE]
    long = speech(tmp_path / "long.wav", repeats=8)
    done = subprocess.run([*map(str, [*command, long])], capture_output=True, env=environment(), timeout=PATIENCE_S)
    assert done.returncode == EX_CANTCREAT
    lines = done.stderr.decode().splitlines()
    assert f"voxpipe: {long}: cannot write {out}/long.txt: File too large" in lines
    assert not [name for name in names(out) if name.endswith(".part")]


# all kinds of recordings


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("a.wav", 8_000, 1, "PCM_16"),
        ("a.flac", 192_000, 1, "PCM_24"),
        ("a.wav", 48_000, 6, "PCM_24"),
        ("a.wav", 44_100, 2, "DOUBLE"),
    ],
)
def test_formats_mixed_down(out: Path, tmp_path: Path, name: str, rate: int, channels: int, subtype: str) -> None:
    path = speech(tmp_path / name, rate, channels=channels, subtype=subtype)
    assert transcribe("-o", out, "-f", "txt,json", path) == EX_OK
    if rate >= 16_000:
        assert words((out / "a.txt").read_text()) == said(FUTURE)
    facts = result(out / "a.json")["audio"]
    assert (facts["rate"], facts["channels"], facts["encoding"]) == (rate, channels, subtype)
    assert "channel" not in facts


def two_speakers(path: Path) -> Path:
    """FUTURE in the first channel, BEACH in the second."""
    first, second = samples(FUTURE), samples(BEACH)
    n = max(len(first), len(second))
    both = [np.pad(channel, (0, n - len(channel))) for channel in (first, second)]
    soundfile.write(path, np.stack(both, axis=1), 16_000)
    return path


def test_a_transcript_per_channel(tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = two_speakers(tmp_path / "talk.wav")
    assert transcribe("--channels", "split", "-f", "txt,json,srt", "-o", out, path, HALL) == EX_OK
    stems = ("hall.ch1", "talk.ch1", "talk.ch2")
    assert names(out) == [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "srt", "txt")]
    for channel, clip in enumerate((FUTURE, BEACH), start=1):
        whole = result(out / f"talk.ch{channel}.json")
        assert words(whole["text"]) == said(clip)
        assert whole["audio"]["channel"] == channel
        assert whole["audio"]["channels"] == 2
    capfd.readouterr()
    assert transcribe("--channels", "split", path, HALL) == EX_OK
    lines = capfd.readouterr().out.splitlines()
    assert [words(line) for line in lines] == [said(FUTURE), said(BEACH), said(HALL)]
    assert transcribe("--channels", "split", "-f", "jsonl", path) == EX_OK
    events = parse(capfd.readouterr().out.encode())
    for channel, clip in enumerate((FUTURE, BEACH), start=1):
        assert words(text_of(events, f"{path}:ch{channel}")) == said(clip)


@needs_ffmpeg
def test_channels_of_a_video(tmp_path: Path, out: Path) -> None:
    two_speakers(tmp_path / "talk.wav")
    picture = ("-f", "lavfi", "-i", "testsrc=d=5:s=64x64")
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-i",
        tmp_path / "talk.wav",
        *picture,
        "-c:a",
        "aac",
        "-b:a",
        "192k",
    ]
    subprocess.run([*command, tmp_path / "talk.mp4"], check=True)
    assert transcribe("--channels", "split", "-o", out, tmp_path / "talk.mp4") == EX_OK
    assert words((out / "talk.ch1.txt").read_text()) == said(FUTURE)
    assert words((out / "talk.ch2.txt").read_text()) == said(BEACH)


def test_bad_files_leave_one_line_and_no_output(tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut, empty, silent = tmp_path / "cut.flac", tmp_path / "empty.wav", tmp_path / "none.wav"
    cut.write_bytes(FUTURE.read_bytes()[:25_000])
    empty.touch()
    soundfile.write(silent, np.zeros(0, np.float32), 16_000)
    files = [cut, empty, silent, tmp_path / "gone.wav", FUTURE]
    assert transcribe("-f", "txt,srt,jsonl", "-o", out, *files) == EX_DATAERR
    assert names(out) == ["future.jsonl", "future.srt", "future.txt"]
    lines = sorted(caplog.messages)
    assert len(lines) == 4
    assert re.fullmatch(rf"{cut}: damaged or cut off at 1\.\d s of 3\.3 s \(libsndfile: .*\)", lines[0])
    assert lines[1:] == [
        f"{empty}: is empty (0 bytes)",
        f"{tmp_path}/gone.wav: No such file or directory",
        f"{silent}: there is no audio in it",
    ]


def test_headers_that_promise_too_much(tmp_path: Path, out: Path) -> None:
    path = speech(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[40:44] = (36_000 * 32_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert transcribe("-f", "json", "-o", out, path) == EX_OK
    whole = result(out / "a.json")
    assert words(whole["text"]) == said(FUTURE)
    assert whole["audio"]["duration_s"] == pytest.approx(3.3, abs=0.1)


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = speech(tmp_path / "a.wav", repeats=2)
    from voxpipe.output import results

    publish = results.ResultFiles.publish

    def replaced_meanwhile(*arguments: Any, **options: Any) -> None:
        publish(*arguments, **options)
        speech(path)

    monkeypatch.setattr(results.ResultFiles, "publish", replaced_meanwhile)
    assert transcribe("-o", out, path) == EX_OK
    assert caplog.messages == [f"{path}: has changed while it was being read; transcribe it again"]


# signals and terminals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished(tmp_path: Path, out: Path, number: int, status: int) -> None:
    # 1. two short files and a long one, one after the other
    short = [speech(tmp_path / "a.wav"), speech(tmp_path / "b.wav")]
    long = speech(tmp_path / "long.wav", repeats=600)
    arguments = ["transcribe", "-j", "1", "-f", "txt,srt,vtt,json,jsonl", "-o", out, *short, long]
    with voxpipe(*arguments, stderr=subprocess.PIPE) as process:
        # 2. when the long one is being written, a signal
        wait_until(lambda: (out / "b.txt").exists() and any(path.stat().st_size > 0 for path in out.glob(".*.part")))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    # 3. the short ones are whole, of the long one there is nothing
    assert process.returncode == status
    assert stderr.decode() == "voxpipe: interrupted; 2 of 3 files are finished\n"
    suffixes = ("json", "jsonl", "srt", "txt", "vtt")
    assert names(out) == [f"{stem}.{suffix}" for stem in ("a", "b") for suffix in suffixes]
    assert words((out / "b.txt").read_text()) == said(FUTURE)
    if number == signal.SIGINT:
        # 4. the same again goes on where it stopped
        again = run("transcribe", "-f", "txt", "-o", out, "--skip-existing", *short)
        assert (again.status, again.stderr) == (EX_OK, "voxpipe: 2 of 2 files are skipped: their outputs are there\n")


@needs_ffmpeg
def test_a_signal_while_ffmpeg_hangs(tmp_path: Path, out: Path) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\2\0")
    path = f"{program.parent}:{os.environ['PATH']}"
    options = {"stderr": subprocess.PIPE, "env": environment(PATH=path)}
    with voxpipe("transcribe", "-o", out, tmp_path / "a.m4a", **options) as process:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stderr.decode() == "voxpipe: interrupted; 0 of 1 files are finished\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_events_that_are_interrupted_say_so(tmp_path: Path) -> None:
    long = speech(tmp_path / "long.wav", repeats=600)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with voxpipe("transcribe", "-f", "jsonl", long, **options) as process:
        assert process.stdout is not None
        head = b"".join(process.stdout.readline() for _ in range(20))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    events = parse(head + rest)
    assert (events[-1]["type"], events[-1]["reason"]) == ("done", "signal")


def test_a_progress_bar_on_a_terminal_only(tmp_path: Path, out: Path) -> None:
    files = [speech(tmp_path / f"{n}.wav", repeats=4) for n in range(2)]
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    options = {"stdout": subprocess.PIPE, "stderr": terminal}
    shown = b""
    with voxpipe("transcribe", "-j", "1", "-o", out, *files, tmp_path / "gone.wav", **options) as process:
        os.close(terminal)
        while data := _read_terminal(controller):
            shown += data
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    os.close(controller)
    assert stdout == b""
    text = shown.decode()
    assert re.search(r"\d+% \|.*\| [0-2] of 3 files, rtf \d+\.\d\d, \d+:\d\d left", text)
    assert f"voxpipe: {tmp_path}/gone.wav: No such file or directory" in text
    quiet = run("transcribe", "-o", out, "--force", files[0])
    assert (quiet.status, quiet.stdout, quiet.stderr) == (EX_OK, b"", "")


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux says that the other side has closed it
        return b""
