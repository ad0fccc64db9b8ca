"""What signals and vanished readers do to a listening process, one numbered story each."""

import io
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import COMMAND, PATIENCE_S, environment, live, parse, shell, wait_until
from tests.random_checkpoints import EVEN, write_checkpoint
from tests.service.processes import LATE, script
from voxpipe import load
from voxpipe.errors import EX_OK
from voxpipe.output.events import JsonLines
from voxpipe.service.listen import Listener
from voxpipe.service.reader import AudioOptions
from voxpipe.service.stream import StreamOptions

HALF = len(s16le(BEACH)) // 4 * 2  # 2.71 s: "but I was still on the same beach and I saw"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_stream_decodes_what_was_heard(number: signal.Signals) -> None:
    with live() as voxpipe:
        # 1. half of the clip comes in, and the pipe stays open
        voxpipe.write(s16le(BEACH)[:HALF])
        voxpipe.wait_for_words(6)
        # 2. the signal ends the stream: also the words that the delay still held back
        voxpipe.signal(number)
        assert voxpipe.end() == EX_OK
        assert words(voxpipe.text())[:9] == said(BEACH)[:9]
        # 3. `done` is last and says why
        done = voxpipe.events[-1]
        assert (done["type"], done["reason"], done["audio_s"]) == ("done", "signal", round(HALF / 32_000, 2))
        assert voxpipe.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    with live("--format", "s16le") as voxpipe:
        # 1. more audio than can be decoded in a moment
        voxpipe.wait_for("ready")
        for _ in range(5):
            voxpipe.write(s16le(BEACH))
        voxpipe.wait_for("delta")
        # 2. the first signal begins an orderly end, the second one does not wait for it
        voxpipe.signal(number)
        voxpipe.wait_for("delta", n=voxpipe.count("delta") + 1)
        voxpipe.signal(number)
        assert voxpipe.end() == 128 + number
        # 3. what was written is whole, but there is no `done`
        assert voxpipe.count("done") == 0
        assert voxpipe.stderr == ""


def test_ctrl_c_for_the_command_in_front_is_not_for_one_behind_it(tmp_path: Path) -> None:
    # 1. a script starts it with `&`, which has SIGINT ignored in it
    behind = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND)
    with live(command=behind) as voxpipe:
        voxpipe.write(s16le(BEACH)[:HALF])
        voxpipe.wait_for("delta")
        # 2. Ctrl-C, and it goes on
        voxpipe.signal(signal.SIGINT)
        voxpipe.write(s16le(BEACH)[HALF:])
        voxpipe.wait_for_words(12)
        # 3. until it is meant
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
        assert voxpipe.events[-1]["reason"] == "signal"


def test_a_reader_that_has_seen_enough_ends_the_process_quietly() -> None:
    # 1. head takes one line and leaves
    script = '{ voxpipe; echo "status $?" >&2; } < "$1" | head -n 1'
    result = shell(script, BEACH)
    # 2. the next write fails, which is no failure
    assert result.stderr == "status 0\n"
    assert result.events == [{"type": "ready", "v": 1, "model": "tiny", "delay_ms": 480}]


@pytest.mark.parametrize("command", ["--help", "listen --help", "--version", "transcribe", "transcribe -f jsonl"])
def test_nobody_reads_what_any_command_writes(command: str) -> None:
    # 1. the reader is gone before the first byte
    read_end, write_end = os.pipe()
    os.close(read_end)
    files = [FUTURE] * command.startswith("transcribe")
    with os.fdopen(write_end, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, *command.split(), *files], stdout=stdout, stderr=subprocess.PIPE, env=environment()
        )
    # 2. that is no failure of ours
    assert (done.returncode, done.stderr) == (EX_OK, b"")


def test_sigusr1_flushes_without_ending_the_stream() -> None:
    with live() as voxpipe:
        # 1. a whole sentence, and the pipe stays open: its last words are still pending
        voxpipe.write(s16le(FUTURE))
        voxpipe.wait_for_words(6)
        assert words(voxpipe.text()) != said(FUTURE)
        # 2. the signal brings them
        voxpipe.signal(signal.SIGUSR1)
        wait_until(lambda: words(voxpipe.text()) == said(FUTURE), lambda: voxpipe.text())
        assert voxpipe.count("done") == 0
        # 3. the stream goes on, on the same clock
        voxpipe.write(s16le(BEACH))
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        assert words(voxpipe.text()) == said(FUTURE) + said(BEACH)
        starts = [event["start"] for event in voxpipe.events if event["type"] == "delta"]
        assert starts == sorted(starts)
        total = len(s16le(FUTURE)) + len(s16le(BEACH))
        assert voxpipe.events[-1]["audio_s"] == round(total / 32_000, 2)
        last_word = [event for event in voxpipe.events if event["type"] == "delta"][-1]
        assert last_word["end"] == pytest.approx(len(s16le(FUTURE)) / 32_000 + 4.84, abs=0.5)  # "stopped"


def slow_loader(gate: Path) -> "subprocess.Popen[bytes]":
    """voxpipe on stdin whose model is not there before `gate` exists."""
    process = subprocess.Popen(
        [*script(LATE), gate],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"loading\n"
    return process


def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    with slow_loader(tmp_path / "gate") as process:
        assert process.stdin is not None
        # 1. audio comes before the model is there
        process.stdin.write(s16le(FUTURE)[:60_000])
        process.stdin.flush()
        # 2. a flush and a signal in that time are remembered, and the pipe stays open
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        # 3. what was heard is decoded all the same
        assert process.wait(PATIENCE_S) == EX_OK
        assert process.stdout is not None
        events = parse(process.stdout.read())
        assert events[0]["type"] == "ready"
        assert events[-1]["reason"] == "signal"


def test_two_signals_while_the_model_loads(tmp_path: Path) -> None:
    with slow_loader(tmp_path / "gate") as process:
        # 1. the model never comes, and one signal has to wait for it
        process.send_signal(signal.SIGTERM)
        # 2. the second does not
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", sizes=EVEN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_waiting_for_a_writer(tmp_path: Path, small: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "in.pcm"
    os.mkfifo(fifo)
    with live("--model", small, fifo) as voxpipe:
        # 1. nobody writes
        voxpipe.wait_for("ready")
        # 2. the signal ends the waiting
        voxpipe.signal(number)
        assert voxpipe.end() == EX_OK
        assert [event["type"] for event in voxpipe.events] == ["ready"]
        assert voxpipe.stderr == ""


def test_a_signal_that_another_thread_takes(tmp_path: Path, small: Path) -> None:
    """In this process. The same happens to one that comes just before the loop begins to wait."""
    fifo = tmp_path / "in.pcm"
    os.mkfifo(fifo)
    output = io.BytesIO()

    def send_to_this_thread() -> None:
        # 1. the model is loaded and nobody writes: the loop waits
        wait_until(lambda: b'"ready"' in output.getvalue())
        time.sleep(0.1)
        # 2. the kernel gives the signal to a thread that Python's handlers do not run in
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    sender = threading.Thread(target=send_to_this_thread)
    sender.start()
    # 3. the loop ends all the same
    assert Listener([str(fifo)], AudioOptions(), StreamOptions(), JsonLines(output)).run(lambda: load(small)) == EX_OK
    sender.join()


def test_ctrl_c_reaches_the_whole_pipeline(tmp_path: Path) -> None:
    # 1. `cat clip - | voxpipe` in a process group of its own, as a shell starts it; cat waits for more
    script = 'cat "$1" - | "$2" -m voxpipe > "$3"; exec echo never'
    read_end, write_end = os.pipe()
    output = tmp_path / "events"
    with os.fdopen(read_end, "rb") as stdin, os.fdopen(write_end, "wb"):
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", BEACH, COMMAND[0], output],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job hands it on ignored
        )
        wait_until(lambda: output.exists() and output.read_bytes().count(b'"delta"') > 10)
        # 2. Ctrl-C goes to all of them: cat dies, voxpipe writes the rest
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: b'"done"' in output.read_bytes())
    events = parse(output.read_bytes())
    assert words("".join(event.get("text", "") for event in events)) == said(BEACH)
    assert (events[-1]["type"], events[-1]["reason"]) in (("done", "signal"), ("done", "eof"))
    assert b"Traceback" not in stderr
    assert stderr == b""
