"""Named pipes: each writer is a stream, whatever it does; and any pipe read at any pace."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.clips import BEACH, FUTURE, HALL, TEXT, s16le, said, words
from tests.cli.process import PATIENCE_S, Live, live, of, parse, wait_until
from tests.random_checkpoints import Sizes, write_checkpoint
from voxpipe import Transcriber, load
from voxpipe.errors import EX_NOINPUT, EX_OK
from voxpipe.output.events import JsonLines
from voxpipe.service import reader
from voxpipe.service.listen import Listener
from voxpipe.service.reader import MAX_UNFINISHED, AudioOptions, n_waiting_bytes
from voxpipe.service.stream import StreamOptions

FUTURE_S = round(len(s16le(FUTURE)) / 32_000, 2)
SMALL = Sizes(
    encoder_dim=16,
    encoder_layers=1,
    encoder_heads=1,
    encoder_hidden=16,
    encoder_window=8,
    decoder_dim=16,
    decoder_layers=1,
    decoder_heads=1,
    decoder_kv_heads=1,
    decoder_hidden=16,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nothing sensible, fast."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", sizes=SMALL)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "in.pcm")
    return tmp_path / "in.pcm"


def send(fifo: Path, data: bytes) -> None:
    """Be a writer: open, write everything, close."""
    with fifo.open("wb") as pipe:
        pipe.write(data)


def done(voxpipe: Live, stream: str) -> dict[str, object]:
    voxpipe.wait_for("done", stream)
    last = of(voxpipe.events, stream)[-1]
    assert last["type"] == "done"
    return last


def test_each_writer_is_a_stream(fifo: Path) -> None:
    with live("listen", fifo) as voxpipe:
        # 1. a writer opens before the model is loaded, and sends a sentence
        send(fifo, s16le(FUTURE))
        assert done(voxpipe, "in.pcm#1")["reason"] == "eof"
        # 2. the next one is a new stream that starts from nothing, here with a WAV header
        send(fifo, BEACH.read_bytes())
        assert done(voxpipe, "in.pcm#2")["reason"] == "eof"
        # 3. one that is killed in the middle of a word
        half = fifo.parent / "half.raw"
        half.write_bytes(s16le(BEACH)[:50_001])
        writer = subprocess.Popen(["sh", "-c", 'exec 3> "$1"; cat "$2" >&3; kill -9 $$', "sh", fifo, half])
        assert writer.wait(PATIENCE_S) == -signal.SIGKILL
        third = done(voxpipe, "in.pcm#3")
        assert (third["reason"], third["audio_s"]) == ("eof", 1.56)
        # 4. all of it was heard, on clocks of their own
        assert words(voxpipe.text("in.pcm#1")) == said(FUTURE)
        assert words(voxpipe.text("in.pcm#2")) == said(BEACH)
        assert words(voxpipe.text("in.pcm#3"))[:5] == said(BEACH)[:5]
        codes = [event["code"] for event in voxpipe.events if event["type"] == "warning"]
        assert codes == ["odd-bytes"]
        # 5. and the process still waits for the next one
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
        assert voxpipe.stderr == ""
        for stream in ("in.pcm#1", "in.pcm#2", "in.pcm#3"):
            assert of(voxpipe.events, stream)[0] == {"type": "start", "stream": stream, "source": str(fifo)}


def test_text_is_an_error_of_its_stream_only(fifo: Path, small: Path) -> None:
    with live("--model", small, fifo) as voxpipe:
        # 1. a writer sends nothing
        send(fifo, b"")
        assert done(voxpipe, "in.pcm#1")["reason"] == "error"
        # 2. one sends more text than it takes to see that it is text, and takes its time to close
        with fifo.open("wb", buffering=0) as pipe:
            pipe.write(TEXT.encode() * 20)
            voxpipe.wait_for("error", "in.pcm#2")
            pipe.write(TEXT.encode() * 20)
        assert done(voxpipe, "in.pcm#2")["reason"] == "error"
        # 3. and one that sends sound, which is heard
        send(fifo, s16le(FUTURE))
        assert done(voxpipe, "in.pcm#3")["reason"] == "eof"
        errors = [(event["stream"], event["message"][:30]) for event in voxpipe.events if event["type"] == "error"]
        assert errors == [
            ("in.pcm#1", "no audio came in; pipe raw PCM"),
            ("in.pcm#2", "the input looks like text ('Bu"),
        ]
        # 4. the service was asked to end and did: that is no failure
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
        assert voxpipe.stderr.count("\n") == 2
        assert voxpipe.count("start") == voxpipe.count("done") == 3


def test_a_short_text_ends_with_its_writer(fifo: Path, small: Path) -> None:
    with live("--model", small, fifo) as voxpipe:
        # 1. so short that it is seen at its end only
        send(fifo, b"hi there\n" * 3)
        assert done(voxpipe, "in.pcm#1")["reason"] == "error"
        # 2. the next writer is heard from the beginning
        send(fifo, s16le(FUTURE))
        assert done(voxpipe, "in.pcm#2") == {**done(voxpipe, "in.pcm#2"), "reason": "eof", "audio_s": FUTURE_S}


def test_a_pipe_that_goes_ends_with_the_status_for_inputs(fifo: Path, small: Path) -> None:
    with live("--model", small, fifo) as voxpipe:
        with fifo.open("wb") as pipe:
            pipe.write(bytes(640))
            pipe.flush()
            voxpipe.wait_for("start")
            fifo.unlink()
        assert voxpipe.end() == EX_NOINPUT
        assert voxpipe.events[-1]["reason"] == "eof"
        assert voxpipe.stderr == f"voxpipe: {fifo}: No such file or directory; it is not read any more\n"


def test_two_pipes_and_stdin_at_once_equal_each_alone(tmp_path: Path) -> None:
    clips = {"a.pcm#1": BEACH, "b.pcm#1": HALL, "stdin": FUTURE}
    fifos = [tmp_path / "a.pcm", tmp_path / "b.pcm"]
    for fifo in fifos:
        os.mkfifo(fifo)
    with live("-", *fifos) as voxpipe:
        # 1. all three speak at once
        with fifos[0].open("wb") as a, fifos[1].open("wb") as b:
            for pipe, clip in ((a, BEACH), (b, HALL)):
                pipe.write(s16le(clip)[:60_000])
                pipe.flush()
            voxpipe.write(s16le(FUTURE)[:60_000])
            for stream in clips:
                voxpipe.wait_for("delta", stream)
            for pipe, clip in ((a, BEACH), (b, HALL)):
                pipe.write(s16le(clip)[60_000:])
            voxpipe.write(s16le(FUTURE)[60_000:])
        voxpipe.end_input()
        # 2. each ends by itself
        for stream in clips:
            assert done(voxpipe, stream)["reason"] == "eof"
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
        # 3. each has its own words and numbers, and none waited for another's end
        for stream, clip in clips.items():
            assert words(voxpipe.text(stream)) == said(clip)
            numbers = [event["seq"] for event in of(voxpipe.events, stream) if event["type"] == "delta"]
            assert numbers == list(range(1, len(numbers) + 1))
        first_done = next(i for i, event in enumerate(voxpipe.events) if event["type"] == "done")
        assert all(of(voxpipe.events[:first_done], stream) for stream in clips)


def test_hurried_writers_lose_nothing(fifo: Path, small: Path) -> None:
    with live("--model", small, "--format", "s16le", fifo) as voxpipe:
        voxpipe.wait_for("ready")
        # 1. writers follow each other as fast as they can; two may fall into one stream, but none is cut off
        n_writers, n_bytes = 100, 3_200
        for _ in range(n_writers):
            send(fifo, bytes(n_bytes))
        total_s = n_writers * n_bytes / 32_000

        def all_heard() -> bool:
            ends = [event["audio_s"] for event in list(voxpipe.events) if event["type"] == "done"]
            return bool(round(sum(ends), 2) >= total_s - 0.01)

        wait_until(all_heard, lambda: f"{total_s} s of audio in {voxpipe.events}")
        voxpipe.signal(signal.SIGTERM)
        assert voxpipe.end() == EX_OK
        # 2. no more than a few are on the model at any time
        n_open = most_open = 0
        for event in voxpipe.events:
            n_open += {"start": 1, "done": -1}.get(event["type"], 0)
            most_open = max(most_open, n_open)
        assert 1 <= most_open <= MAX_UNFINISHED
        assert n_open == 0


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("moment", ["before open", "after open", "after look"])
def test_a_writer_who_comes_between_two_streams_is_heard(
    fifo: Path, small: Path, moment: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that he comes at the very moment: when one stream has ended and the next is not yet awaited."""
    came: list[int] = []  # the descriptor of that writer
    opened: list[str] = []
    real_open, real_waiting = os.open, reader.n_waiting_bytes

    def come() -> None:
        if not came:
            came.append(real_open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # fails where nobody reads
            os.write(came[0], bytes(6_400))
            if not stays:
                os.close(came[0])

    def open_late(path: str, flags: int, *rest: int) -> int:
        opened.append(path)
        if opened.count(str(fifo)) == 2 and moment == "before open":
            come()
        return real_open(path, flags, *rest)

    def look_late(pipe: int) -> int:
        if moment == "after open":
            come()
        n_waiting = real_waiting(pipe)
        if moment == "after look":
            come()
        return n_waiting

    monkeypatch.setattr(os, "open", open_late)
    monkeypatch.setattr(reader, "n_waiting_bytes", look_late)
    output = io.BytesIO()
    is_over = threading.Event()
    ended_by_themselves: list[int] = []

    def wait_for(text: bytes, n_times: int) -> None:
        deadline = time.monotonic() + 10
        while output.getvalue().count(text) < n_times and time.monotonic() < deadline and not is_over.wait(0.005):
            pass

    def write() -> None:
        send(fifo, bytes(3_200))
        wait_for(b"in.pcm#2", 1)
        if stays and came:
            os.close(came[0])
        wait_for(b'"done"', 2)
        ended_by_themselves.append(output.getvalue().count(b'"done"'))
        if not is_over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    writer = threading.Thread(target=write)
    writer.start()
    assert Listener([str(fifo)], AudioOptions(), StreamOptions(), JsonLines(output)).run(lambda: load(small)) == EX_OK
    is_over.set()
    writer.join()
    assert ended_by_themselves == [2]  # a stream that hangs ends when the process is told to
    ends = [event for event in parse(output.getvalue()) if event["type"] == "done"]
    assert [(end["stream"], end["audio_s"]) for end in ends] == [("in.pcm#1", 0.1), ("in.pcm#2", 0.2)]


def test_writers_wait_when_too_many_streams_are_not_decoded(
    fifo: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where the model comes late."""
    streams: list[reader.Stream] = []
    n_bytes = 3_200

    class Counted(reader.Stream):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            streams.append(self)

    def write_then_load() -> Transcriber:
        for n in range(1, MAX_UNFINISHED + 1):
            send(fifo, bytes(n_bytes))
            wait_until(lambda n=n: len(streams) == n and streams[-1].audio.closed)  # type: ignore[misc]
        send(fifo, bytes(n_bytes))  # lies in the pipe
        time.sleep(0.2)
        assert len(streams) == MAX_UNFINISHED
        ending.start()
        return load(small)

    def end() -> None:
        wait_until(lambda: output.getvalue().count(b'"done"') > MAX_UNFINISHED)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)

    output = io.BytesIO()
    monkeypatch.setattr(reader, "Stream", Counted)
    assert Listener([str(fifo)], AudioOptions(), StreamOptions(), JsonLines(output)).run(write_then_load) == EX_OK
    ends = [event["audio_s"] for event in parse(output.getvalue()) if event["type"] == "done"]
    assert ends == [n_bytes / 32_000] * (MAX_UNFINISHED + 1)


def test_a_trickle_of_single_bytes(fifo: Path, small: Path) -> None:
    data = s16le(BEACH)[20_000:24_001]
    with live("--model", small, "--format", "s16le", fifo) as voxpipe:
        # 1. the same bytes, whole and one by one, each read before the next is written
        send(fifo, data)
        done(voxpipe, "in.pcm#1")
        with fifo.open("wb", buffering=0) as pipe:
            for byte in data:
                pipe.write(bytes([byte]))
                while n_waiting_bytes(pipe.fileno()):
                    os.sched_yield()
        # 2. make the same stream
        done(voxpipe, "in.pcm#2")
        whole, trickled = (
            [{**e, "stream": "", "wall_s": 0} for e in of(voxpipe.events, f"in.pcm#{n}")] for n in (1, 2)
        )
        assert whole == trickled
        assert whole[-2]["code"] == "odd-bytes"
        assert voxpipe.text("in.pcm#1")


PEAK_MEMORY = """
import resource, sys
from voxpipe.cli.main import run
status = run(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak // (1024 if sys.platform == "darwin" else 1), file=sys.stderr)
sys.exit(status)
"""


def test_a_long_file_at_full_speed_waits_for_the_model(small: Path) -> None:
    minute = s16le(BEACH) * 12
    minute = minute[: 60 * 32_000]
    peaks_mb = []
    for n_minutes in (1, 6):
        command = [sys.executable, "-c", PEAK_MEMORY, "--model", small, "--format", "s16le"]
        # 1. the pipe is written as fast as it takes the bytes
        with subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            stdout, stderr = process.communicate(minute * n_minutes, timeout=2 * PATIENCE_S)
        assert process.returncode == EX_OK
        # 2. every second of it was heard
        assert parse(stdout)[-1]["audio_s"] == 60.0 * n_minutes
        peaks_mb.append(int(stderr) / 1024)
    # 3. and never lay in memory: five minutes more are 19 MB of samples
    assert peaks_mb[1] - peaks_mb[0] < 10, peaks_mb


def test_descriptors_are_given_back(fifo: Path, small: Path) -> None:
    """In this process, so that its descriptors can be counted anywhere."""

    def n_descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    output = io.BytesIO()
    counts: list[int] = []

    def write_streams() -> None:
        for n in range(1, 13):
            send(fifo, bytes(640))
            wait_until(lambda n=n: output.getvalue().count(b'"done"') == n)  # type: ignore[misc]
            counts.append(n_descriptors())
        os.kill(os.getpid(), signal.SIGTERM)

    listener = Listener([str(fifo)], AudioOptions(), StreamOptions(), JsonLines(output))
    writer = threading.Thread(target=write_streams)
    writer.start()
    assert listener.run(lambda: load(small)) == EX_OK
    writer.join()
    assert max(counts[1:]) <= counts[0] + 1  # while one writer's descriptor is exchanged for the next one's
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
