"""`voxpipe` and `voxpipe listen`: bytes on stdin, JSON lines on stdout, one clear line for every mistake."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.clips import BEACH, FUTURE, HALL, TEXT, resampled, s16le, said, samples, spoken, wav_header, words
from tests.cli.process import COMMAND, PATIENCE_S, Event, environment, live, parse, run, shell, text_of
from tests.random_checkpoints import EVEN, LAYOUTS, Quantization, write_checkpoint
from voxpipe import Transcriber
from voxpipe.cli import main
from voxpipe.config import DELAYS_MS
from voxpipe.errors import EX_CONFIG, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_OK, EX_USAGE, InputError
from voxpipe.output.events import JsonLines, StreamEvents
from voxpipe.service.listen import Listener
from voxpipe.service.reader import AudioOptions, is_fifo
from voxpipe.service.stream import StreamOptions

NO_AUDIO = "no audio came in; pipe raw PCM or WAV, for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`"

# event type -> its keys in their order; keys are only ever added within version 1
KEYS = {
    "ready": ["type", "v", "model", "delay_ms"],
    "start": ["type", "stream", "source"],
    "delta": ["type", "stream", "seq", "text", "start", "end"],
    "warning": ["type", "stream", "code", "message"],
    "error": ["type", "stream", "code", "message"],
    "done": ["type", "stream", "reason", "audio_s", "wall_s", "truncated"],
}


def words_with_times(events: list[Event]) -> list[tuple[str, float, float]]:
    """The deltas' pieces joined into words."""
    joined: list[tuple[str, float, float]] = []
    for event in events:
        if event["type"] != "delta":
            continue
        if event["text"].startswith(" ") or not joined:
            joined.append((event["text"].strip(), event["start"], event["end"]))
        else:
            word, start, _ = joined[-1]
            joined[-1] = (word + event["text"], start, event["end"])
    return joined


# --- the events -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beach() -> list[Event]:
    result = run(stdin=s16le(BEACH))
    assert (result.status, result.stderr) == (EX_OK, "")
    return result.events


def test_events_have_the_keys_of_version_1(beach: list[Event]) -> None:
    assert {event["type"] for event in beach} == {"ready", "start", "delta", "done"}
    for event in beach:
        assert list(event) == KEYS[event["type"]]
        assert None not in event.values()
    assert beach[0] == {"type": "ready", "v": 1, "model": "tiny", "delay_ms": 480}
    assert beach[1] == {"type": "start", "stream": "stdin", "source": "-"}
    done = dict(beach[-1])
    assert 0 < done.pop("wall_s") < PATIENCE_S
    audio_s = round(len(samples(BEACH)) / 16_000, 2)
    assert done == {"type": "done", "stream": "stdin", "reason": "eof", "audio_s": audio_s, "truncated": False}


def test_deltas_are_numbered_timed_and_append_up_to_the_transcript(beach: list[Event]) -> None:
    deltas = beach[2:-1]
    assert [event["type"] for event in deltas] == ["delta"] * len(deltas)
    assert [event["seq"] for event in deltas] == list(range(1, len(deltas) + 1))
    assert words(text_of(beach)) == said(BEACH)
    assert all(0 <= event["start"] <= event["end"] <= beach[-1]["audio_s"] for event in deltas)
    assert [event["start"] for event in deltas] == sorted(event["start"] for event in deltas)


@pytest.mark.parametrize("clip", [BEACH, FUTURE], ids=lambda clip: clip.name)
def test_words_are_dated_within_half_a_second(clip: Path, beach: list[Event]) -> None:
    events = beach if clip == BEACH else run(stdin=s16le(clip)).events
    for (word, start, end), (_, heard_start, heard_end) in zip(spoken(clip), words_with_times(events), strict=True):
        assert abs(heard_start - start) <= 0.5, word
        assert abs(heard_end - end) <= 0.5, word


def test_text_is_utf_8_not_escaped(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    result = run("--model", model, "--format", "s16le", stdin=np.random.default_rng(0).bytes(64_000))
    assert result.status == EX_OK
    assert b"\\u" not in re.sub(rb"\\u00[01]\w", b"", result.stdout)  # control characters only
    assert any(ord(character) > 127 for character in result.text)
    assert result.stdout.count(b"\n") == len(result.events)


def test_words_come_while_the_pipe_is_still_open() -> None:
    pcm = s16le(BEACH)
    half = len(pcm) // 4 * 2
    with live() as voxpipe:
        voxpipe.write(pcm[:half])  # 2.71 s, of which 0.48 s of delay and the last word are still to come
        voxpipe.wait_for_words(6)
        assert words(voxpipe.text())[:6] == said(BEACH)[:6]
        voxpipe.write(pcm[half:])
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        assert words(voxpipe.text()) == said(BEACH)


class Writes(io.RawIOBase):
    """A descriptor that remembers each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.writes.append(bytes(data))
        return len(data)


def test_every_event_is_one_write_and_at_once() -> None:
    writes = Writes()
    lines = JsonLines(io.BufferedWriter(writes))
    events = StreamEvents(lines, stream="é", source="é")
    assert len(writes.writes) == 1  # not kept for later
    events.warning("odd", "x" * 20_000, absent=None, seconds=1)
    assert len(writes.writes) == 2
    assert writes.writes[0].decode() == '{"type":"start","stream":"é","source":"é"}\n'
    assert parse(writes.writes[1]) == [
        {"type": "warning", "stream": "é", "code": "odd", "message": "x" * 20_000, "seconds": 1}
    ]


@pytest.mark.parametrize("by", ["option", "path"])
def test_a_name_that_is_not_utf_8(by: str, tmp_path: Path) -> None:
    source = tmp_path / "in-\udcff.pcm"
    if by == "path":
        try:
            source.write_bytes(s16le(FUTURE))
        except OSError:
            pytest.skip("this file system takes no such names")
    arguments = [source] if by == "path" else ["--name", source.name]
    result = run(*arguments, stdin=s16le(FUTURE))
    assert (result.status, result.stderr) == (EX_OK, "")
    assert {event["stream"] for event in result.events[1:]} == {source.name}
    assert words(result.text) == said(FUTURE)


def test_logs_go_to_stderr_only() -> None:
    result = run(stdin=s16le(FUTURE)[:32_001], env=environment(VOXPIPE_MODEL=None))
    assert result.status == EX_OK
    assert result.stderr == "voxpipe: using the small embedded English model; for the full one: voxpipe pull 4bit\n"
    warning = {"type": "warning", "stream": "stdin", "code": "odd-bytes"}
    message = "the input ended within a sample; 1 byte(s) dropped"
    assert result.events[-2] == {**warning, "message": message}
    assert result.events[-1]["reason"] == "eof"
    assert result.events[-1]["audio_s"] == 1.0


def test_stdout_holds_whole_events_when_logs_go_there_too() -> None:
    result = shell("voxpipe < $1 2>&1 >/dev/null | cat", FUTURE)
    assert result.stdout.startswith(b"voxpipe: the input looks like FLAC, ")
    assert result.stdout.count(b"\n") == 1


# --- what comes in ----------------------------------------------------------------------------------------------------


def heard(tiny: Transcriber, tmp_path: Path, data: bytes, **options: Any) -> list[Event]:
    """The events of a file of raw audio, in this process."""
    source = tmp_path / "audio.raw"
    source.write_bytes(data)
    output = io.BytesIO()
    listener = Listener([str(source)], AudioOptions(**options), StreamOptions(), JsonLines(output))
    assert listener.run(lambda: tiny) == EX_OK
    return parse(output.getvalue())


def pcm(encoding: str, values: NDArray[np.float32]) -> bytes:
    if encoding == "s24le":
        return (values * (2**31 - 1)).astype("<i4").reshape(-1, 1).view("u1")[:, 1:].tobytes()
    dtype = {"s16be": ">i2", "s32le": "<i4", "f32le": "<f4", "f64be": ">f8", "u8": "u1"}[encoding]
    if encoding == "u8":
        return (values * 127 + 128).astype(dtype).tobytes()
    scale = 2 ** (8 * np.dtype(dtype).itemsize - 1) - 129 if "i" in dtype else 1
    return (values.astype(np.float64) * scale).astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("encoding", "rate", "channels"),
    [
        ("s16be", 16_000, 1),
        ("s24le", 44_100, 2),
        ("s32le", 22_050, 1),
        ("f32le", 48_000, 2),
        ("f64be", 96_000, 3),
        ("u8", 32_000, 1),
    ],
)
def test_raw_audio_of_any_encoding_rate_and_channels(
    tiny: Transcriber, tmp_path: Path, encoding: str, rate: int, channels: int
) -> None:
    data = pcm(encoding, resampled(FUTURE, rate, channels=channels))
    events = heard(tiny, tmp_path, data, encoding=encoding, rate=rate, channels=channels)
    assert words(text_of(events)) == said(FUTURE)
    assert events[-1]["audio_s"] == pytest.approx(len(samples(FUTURE)) / 16_000, abs=0.011)


@pytest.mark.parametrize(
    ("data_size", "riff_size"),
    [(None, None), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0x7FFFFFFF, 0x7FFFFFFF)],
    ids=["true", "ffmpeg", "zero", "sox"],
)
def test_a_wav_header_is_obeyed_whatever_size_it_claims(
    tiny: Transcriber, tmp_path: Path, data_size: int | None, riff_size: int | None
) -> None:
    data = pcm("f32le", resampled(FUTURE, 24_000, channels=2))
    header = wav_header(
        rate=24_000,
        channels=2,
        bits=32,
        tag=3,
        data_size=len(data) if data_size is None else data_size,
        riff_size=len(data) + 70 if riff_size is None else riff_size,
    )
    assert words(text_of(heard(tiny, tmp_path, header + data))) == said(FUTURE)


def test_options_on_the_command_line_reach_the_decoder() -> None:
    data = pcm("f32le", resampled(FUTURE, 48_000, channels=2))
    result = run("--format", "f32le", "--rate", "48000", "--channels", "2", "--delay", "640", stdin=data)
    assert (result.status, result.stderr) == (EX_OK, "")
    assert result.events[0]["delay_ms"] == 640
    assert words(result.text) == said(FUTURE)


def test_a_wav_file_on_stdin() -> None:
    result = shell("voxpipe < $1", BEACH)
    assert (result.status, result.stderr) == (EX_OK, "")
    assert words(result.text) == said(BEACH)


def test_a_nameless_pipe_of_the_shell_ends_like_any_pipe() -> None:
    """`voxpipe listen <(command)` of bash, which hands over /dev/fd/N."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb") as pipe:
        assert not is_fifo(f"/dev/fd/{read_end}")
        process = subprocess.Popen(
            [*COMMAND, "listen", f"/dev/fd/{read_end}"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            pass_fds=[read_end],
            env=environment(),
        )
        pipe.write(s16le(FUTURE)[:64_000])
        pipe.close()
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EX_OK
    assert parse(stdout)[-1]["reason"] == "eof"
    assert parse(stdout)[-1]["audio_s"] == 2.0


def test_files_and_stdin_together_are_named_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.raw").write_bytes(bytes(32_000))
    result = run("-", tmp_path / "a" / "x.raw", tmp_path / "b" / "x.raw", stdin=bytes(16_000))
    assert result.status == EX_OK
    ends = {event["stream"]: event["audio_s"] for event in result.events if event["type"] == "done"}
    assert ends == {"stdin": 0.5, "x.raw": 1.0, "x.raw-2": 1.0}


# --- mistakes: one line, one status -----------------------------------------------------------------------------------


def refusal(stderr: str, status: int) -> tuple[str, int]:
    assert stderr.startswith("voxpipe: ")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("voxpipe: ").removesuffix("\n"), status


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", NO_AUDIO),
        (b"x", NO_AUDIO),
        (
            TEXT.encode(),
            "the input looks like text ('But this is a letter and no soun'), not audio; pipe raw PCM or WAV, "
            "for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`",
        ),
        (
            HALL.read_bytes(),
            "the input looks like FLAC, not raw PCM or WAV; pipe it through "
            "`ffmpeg -i - -f s16le -ar 16000 -ac 1 -`, or give the file to `voxpipe transcribe`",
        ),
        (wav_header(bits=12, tag=2, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF) + bytes(1000), None),
    ],
    ids=["nothing", "one-byte", "text", "flac", "adpcm"],
)
def test_what_is_no_audio_is_an_error_event_and_a_line(stdin: bytes, message: str | None) -> None:
    result = run(stdin=stdin)
    line, status = refusal(result.stderr, result.status)
    assert status == EX_DATAERR
    if message is not None:
        assert line == message
    error, done = result.events[-2:]
    assert error == {"type": "error", "stream": "stdin", "code": "audio", "message": line}
    assert (done["type"], done["reason"], done["audio_s"]) == ("done", "error", 0.0)
    odd = [event["code"] for event in result.events if event["type"] == "warning"]
    assert odd == (["odd-bytes"] if stdin == b"x" else [])


ALLOWED = ", ".join(map(str, DELAYS_MS))
FORMATS = (
    "'auto', 's16le', 's16be', 's24le', 's24be', 's32le', 's32be', 'f32le', 'f32be', 'f64le', 'f64be', 'u8', "
    "'mulaw', 'alaw'"
)
SEE = "(see voxpipe listen --help)"
MODELS = "name one of tiny, 4bit, fp16, bf16, a directory, or OWNER/NAME on the hub"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (
            "--delay 500",
            f"Invalid value for '--delay': a transcription delay of 500 ms is not possible; choose one of {ALLOWED} {SEE}",
            EX_USAGE,
        ),
        ("--delay soon", f"Invalid value for '--delay': 'soon' is not a number of milliseconds {SEE}", EX_USAGE),
        ("--format mp9", f"Invalid value for '--format': 'mp9' is not one of {FORMATS}. {SEE}", EX_USAGE),
        ("--rate 0", f"Invalid value for '--rate': 0 is not in the range x>=1. {SEE}", EX_USAGE),
        (
            "--segment-pause 3600001",
            f"Invalid value for '--segment-pause': 3600001 is not in the range 80<=x<=3600000. {SEE}",
            EX_USAGE,
        ),
        ("--rate 100", "a sampling rate of 100 Hz is not possible: give it in Hz, from 1000 to 768000", EX_USAGE),
        ("--channels 65", "65 channels are not possible: use 1 to 64", EX_USAGE),
        ("--model /no/such/model -", f"there is no model '/no/such/model': {MODELS}", EX_CONFIG),
        ("--model nonesuch -", f"there is no model 'nonesuch': {MODELS}", EX_CONFIG),
        ("--quiet", f"No such option '--quiet'. {SEE}", EX_USAGE),
        ("xyzzy", "No such command 'xyzzy'. (see voxpipe --help)", EX_USAGE),
        ("- -", "- is named twice; a source can be read only once", EX_USAGE),
        (
            "listen /no/such/pipe",
            "/no/such/pipe: No such file or directory; make a named pipe with: mkfifo /no/such/pipe",
            EX_NOINPUT,
        ),
        (
            "/no/such/pipe",
            "/no/such/pipe: No such file or directory; make a named pipe with: mkfifo /no/such/pipe",
            EX_NOINPUT,
        ),
        ("listen /", "/: is a directory; name a named pipe, a file of raw audio, or - for stdin", EX_NOINPUT),
    ],
)
def test_a_wrong_command_line(capfd: pytest.CaptureFixture[str], arguments: str, message: str, status: int) -> None:
    with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        ended = main.run(arguments.split())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert refusal(captured.err, ended) == (message, status)


def test_a_source_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "secret.raw"
    source.write_bytes(bytes(100))
    source.chmod(0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(InputError, match=r"^/.*/secret\.raw: Permission denied$"):
        is_fifo(str(source))


def test_a_source_whose_reading_fails(tmp_path: Path) -> None:
    with open(tmp_path / "written", "wb") as write_only:
        done = subprocess.run(COMMAND, stdin=write_only, capture_output=True, env=environment(), timeout=PATIENCE_S)
    assert refusal(done.stderr.decode(), done.returncode) == (
        "cannot read standard input: Bad file descriptor",
        EX_NOINPUT,
    )
    assert parse(done.stdout)[-2]["code"] == "input"
    assert parse(done.stdout)[-1]["reason"] == "error"


@pytest.mark.parametrize(
    ("script", "message", "status"),
    [
        ("voxpipe < $1 >&-", "standard output is closed; there is nowhere to write", EX_IOERR),
        ("voxpipe --help >&-", "standard output is closed; there is nowhere to write", EX_IOERR),
        ("voxpipe < $1 > /dev/full", "cannot write the output: No space left on device", EX_IOERR),
        ("voxpipe --help > /dev/full", "cannot write the output: No space left on device", EX_IOERR),
        ("voxpipe <&-", "standard input is closed; pipe audio in or name a source", EX_NOINPUT),
    ],
)
def test_standard_streams_that_are_closed_or_full(script: str, message: str, status: int) -> None:
    result = shell(script, BEACH)
    assert refusal(result.stderr, result.status) == (message, status)
    assert result.stdout == b""


def test_a_closed_stderr_harms_nothing() -> None:
    result = shell("voxpipe < $1 2>&-", BEACH, env=environment(VOXPIPE_MODEL=None))  # which wants to log
    assert result.status == EX_OK
    assert words(result.text) == said(BEACH)


def test_no_file_of_ours_takes_the_place_of_a_closed_standard_stream() -> None:
    script = (
        "import os, stat; from voxpipe.cli import main; "
        "main.run = lambda args: 7 if all(stat.S_ISCHR(os.fstat(n).st_mode) for n in (0, 1, 2)) else 1; main.main([])"
    )
    for closed in ("<&- >&- 2>&-", "<&-", "2>&-"):
        command = f'exec < /dev/null > /dev/null 2> /dev/null; "$1" -c "$2" {closed}'
        done = subprocess.run(["sh", "-c", command, "sh", sys.executable, script], timeout=PATIENCE_S)
        assert done.returncode == 7, closed


def test_a_mistake_with_closed_stderr_still_has_its_status() -> None:
    assert shell("voxpipe --delay 500 2>&-").status == EX_USAGE
    assert shell("voxpipe --delay 500 <&- >&- 2>&-").status == EX_IOERR


# --- a terminal, help, routing ----------------------------------------------------------------------------------------


def at_a_terminal(*arguments: str) -> tuple[int, bytes, bytes]:
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdin=terminal, capture_output=True, env=environment(), timeout=PATIENCE_S
        )
    finally:
        os.close(controller)
        os.close(terminal)
    return done.returncode, done.stdout, done.stderr


def test_a_terminal_on_stdin_gets_help() -> None:
    assert at_a_terminal() == (EX_OK, run("--help").stdout, b"")


def test_a_terminal_is_no_source() -> None:
    status, stdout, stderr = at_a_terminal("--delay", "240")
    message = "standard input is a terminal; pipe audio in or name a source"
    assert refusal(stderr.decode(), status) == (message, EX_NOINPUT)
    assert stdout == b""


HELP = """
import sys
from voxpipe.cli.main import cli, run
for command in [[], *([name] for name in cli.commands)]:
    assert run([*command, "--help"]) == 0
    assert run([*command, "-h"]) == 0
print(*sorted({"mlx", "mlx.core", "huggingface_hub", "numpy", "voxpipe.runtime.session"} & set(sys.modules)), file=sys.stderr)
"""


def test_help_of_every_command_comes_without_loading_the_model_s_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "\n")
    for name in ("listen", "transcribe", "pull", "convert"):
        assert f"Usage: voxpipe {name} [OPTIONS]" in done.stdout
    assert done.stdout.count("ffmpeg -nostdin -v error -i talk.mp4 -f s16le -ar 16000 -ac 1 - | voxpipe") == 2


def test_help_is_quick() -> None:
    processor_s = []
    for _ in range(2):
        before = os.times()
        assert run("--help").status == EX_OK
        after = os.times()
        processor_s.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(processor_s) < 0.8


def test_version() -> None:
    import voxpipe

    result = run("--version")
    assert (result.status, result.stdout.decode()) == (EX_OK, f"voxpipe, version {voxpipe.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "routed"),
    [
        ([], ["listen"]),
        (["-"], ["listen", "-"]),
        (["--delay", "80"], ["listen", "--delay", "80"]),
        (["listen", "-"], ["listen", "-"]),
        (["./in.pcm", "-"], ["listen", "./in.pcm", "-"]),
        (["here.pcm"], ["listen", "here.pcm"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--version"], ["--version"]),
        (["transcribe", "here.pcm"], ["transcribe", "here.pcm"]),
        (["pull"], ["pull"]),
        (["mistyped"], ["mistyped"]),
    ],
)
def test_what_is_no_command_goes_to_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], routed: list[str]
) -> None:
    (tmp_path / "here.pcm").touch()
    (tmp_path / "pull").touch()  # a command wins over a file of its name
    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []
    monkeypatch.setattr("click.Group.parse_args", lambda self, ctx, args: seen.append(args))
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        main.cli.parse_args(click.Context(main.cli), arguments)
    assert seen == [routed]


# --- which model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_in_any_layout(
    layout: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], random_text: dict[str, str]
) -> None:
    model = write_checkpoint(tmp_path / layout, layout)
    source = tmp_path / "audio.raw"
    source.write_bytes(s16le(FUTURE)[:32_000])
    assert main.run(["listen", "--model", str(model), str(source)]) == EX_OK
    events = parse(capfdbinary.readouterr().out)
    assert events[0]["model"] == layout
    assert len(text_of(events)) > 5
    assert random_text.setdefault("text", text_of(events)) == text_of(events)


@pytest.fixture(scope="module")
def random_text() -> dict[str, str]:
    """What the first of the layouts wrote, which all others must write too."""
    return {}


def test_the_environment_names_the_model_and_the_option_wins(tmp_path: Path) -> None:
    quantization = Quantization(bits=8)
    model = write_checkpoint(tmp_path / "mine", "voxmlx", sizes=EVEN, quantization=quantization)
    by_environment = run(stdin=bytes(3_200), env=environment(VOXPIPE_MODEL=str(model)))
    assert by_environment.events[0]["model"] == "mine"
    by_option = run("--model", "tiny", stdin=bytes(3_200), env=environment(VOXPIPE_MODEL=str(model)))
    assert by_option.events[0]["model"] == "tiny"
    missing = run(stdin=bytes(3_200), env=environment(VOXPIPE_MODEL="owner/name", HF_HOME=str(tmp_path)))
    message = "the model 'owner/name' is not in the local cache; fetch it with: voxpipe pull owner/name"
    assert refusal(missing.stderr, missing.status) == (message, EX_CONFIG)


def test_a_model_directory_without_a_model(tmp_path: Path) -> None:
    result = run("--model", tmp_path)
    message = f"{tmp_path} has no config.json or params.json: it is not a model directory"
    assert refusal(result.stderr, result.status) == (message, EX_CONFIG)
    assert result.stdout == b""
