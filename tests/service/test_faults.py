"""What goes wrong on a real machine, done to real processes: others never notice, and everything is given back."""

import ast
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import COMMAND, Event, environment, live, of, parse, text_of, wait_until
from tests.random_checkpoints import EVEN, write_checkpoint
from tests.service.processes import FAILING, script, small_disk
from tests.service.test_daemon import Served, serve
from voxpipe import StreamingSession, load
from voxpipe.errors import EX_OK, EX_SOFTWARE, EX_USAGE
from voxpipe.output.events import JsonLines
from voxpipe.service.eventfile import EventFile
from voxpipe.service.loop import StreamLoop
from voxpipe.service.stream import Stream, StreamOptions

ROOT = Path(__file__).parents[2]
HALF = len(s16le(BEACH)) // 4 * 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "model", sizes=EVEN)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served")) as daemon:
        yield daemon


def is_heard(served: Served) -> bool:
    return words(text_of(served.ask(s16le(FUTURE)))) == said(FUTURE)


def resident_mb(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_gigabyte_of_header_is_refused_long_before_its_end(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon, daemon.connect() as client:
        before_mb = resident_mb(daemon.process.process.pid)
        n_sent = client.send(b"VOXPIPE/1 ")
        with suppress(OSError):  # it would not hear us out
            while n_sent < 1 << 30:
                n_sent += client.send(b"x" * (1 << 20))
        assert n_sent < 16 << 20
        with suppress(ConnectionResetError):
            (answer,) = [json.loads(line) for line in client.makefile("rb") if b'"code"' in line]
            assert answer["message"].startswith("the header has no end within 4096 bytes")
        assert is_heard(daemon)
        assert resident_mb(daemon.process.process.pid) - before_mb < 64


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_after_every_kind_of_client_all_is_as_before(tmp_path: Path) -> None:
    """Killed, deaf, silent, stopped in mid-header, talking nonsense, and in crowds."""
    with serve(tmp_path, "max_streams = 8\n") as daemon:
        pid = daemon.process.process.pid

        def misbehave(n: int) -> None:
            with live(env=daemon.env) as killed:
                killed.write(s16le(BEACH)[:HALF])
                killed.wait_for("delta")
                killed.signal(signal.SIGKILL)
            for _ in range(n):
                with daemon.connect() as deaf, daemon.connect() as silent, daemon.connect() as half:
                    deaf.sendall(s16le(BEACH))
                    half.sendall(b'VOXPIPE/1 {"rate": ')
                    daemon.ask(b"VOXPIPE/1 nonsense\n")
                    daemon.ask(b"a letter, not a sound\n" * 50)
                    silent.getpeername()
                daemon.idle()  # more than may be decoded at once would be refused
            for _ in range(20 * n):
                daemon.connect().close()
            assert is_heard(daemon)
            daemon.idle()

        # 1. once, for what is made once
        misbehave(2)
        before = daemon.n_descriptors()
        before_mb = resident_mb(pid)
        # 2. and more of it
        misbehave(8)
        wait_until(lambda: daemon.n_descriptors() <= before, lambda: f"{before} descriptors, {daemon.n_descriptors()}")
        # idle trays and freed buffers come and go, up to 50 MB of them; 16 streams that were kept would be more than that
        assert resident_mb(pid) - before_mb < 60


def test_a_name_that_is_not_utf_8_is_one_client_s_affair(served: Served) -> None:
    with live(env=served.env) as other:
        other.write(s16le(BEACH)[:HALF])
        other.wait_for("delta")
        for name in (r"\ud800", r"\udcff", r"\u0000\n\u2028"):
            events = served.ask(f'VOXPIPE/1 {{"name": "{name}"}}\n'.encode() + s16le(FUTURE))
            assert [words(text_of(events)), events[-1]["reason"]] == [said(FUTURE), "eof"]
            assert {event["stream"] for event in events if "stream" in event} == {json.loads(f'"{name}"')}
        other.write(s16le(BEACH)[HALF:])
        other.end_input()
        assert other.end() == EX_OK
        assert words(other.text()) == said(BEACH)


def test_a_stream_that_cannot_be_begun_is_the_only_one_that_fails(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transcriber, loop, output = load(small), StreamLoop(), io.BytesIO()
    create = transcriber.create_streaming_session

    def fail_for_80_ms(*, transcription_delay_ms: int | None, **how: Any) -> StreamingSession:
        if transcription_delay_ms == 80:
            raise RuntimeError("[metal::malloc] Unable to allocate 12345 bytes.")
        return create(transcription_delay_ms=transcription_delay_ms, **how)

    monkeypatch.setattr(transcriber, "create_streaming_session", fail_for_80_ms)
    for name, delay_ms in (("wrong", 500), ("unlucky", 80), ("good", 240)):
        stream = Stream(name, "-", JsonLines(output), StreamOptions(delay_ms=delay_ms), on_audio=loop.wakeup.set)
        stream.push(np.zeros(16_000, np.float32))
        stream.audio.close()
        loop.announce(stream)
    assert loop.run(transcriber, lambda: True) == EX_USAGE
    events = parse(output.getvalue())
    for name, code in (("wrong", "usage"), ("unlucky", "error")):
        assert [event["type"] for event in of(events, name)] == ["start", "error", "done"]
        assert of(events, name)[1]["code"] == code
    assert of(events, "good")[-1] == {**of(events, "good")[-1], "reason": "eof", "audio_s": 1.0}
    assert "Unable to allocate 12345 bytes" in caplog.text


# --- the model --------------------------------------------------------------------------------------------------------


def test_an_exception_of_the_model_ends_every_stream_and_the_process_with_a_word(tmp_path: Path) -> None:
    config, fifo = tmp_path / "voxpipe.toml", tmp_path / "in.pcm"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n[[fifo]]\npath = "{fifo}"\n')
    env = environment(VOXPIPE_SOCKET=str(tmp_path / "voxpipe.sock"))
    with ExitStack() as stack:
        daemon = stack.enter_context(
            live(tmp_path / "now", "serve", "--config", config, stdin=subprocess.DEVNULL, command=script(FAILING))
        )
        wait_until(fifo.exists)
        # 1. two clients and a pipe are being decoded
        clients = [stack.enter_context(live("--daemon", "require", env=env)) for _ in range(2)]
        writer = stack.enter_context(fifo.open("wb", buffering=0))
        for write in (*(client.write for client in clients), writer.write):
            write(s16le(BEACH)[:HALF])
        for one in (*clients, daemon):
            one.wait_for("delta")
        # 2. the model fails
        (tmp_path / "now").touch()
        for write in (*(client.write for client in clients), writer.write):
            with suppress(BrokenPipeError):
                write(s16le(BEACH)[HALF:])
        # 3. each stream is told, and what is left ends with a status that a service manager starts again
        assert daemon.end() == EX_SOFTWARE
        for events in (of(daemon.events, "in.pcm#1"), *(client.events for client in clients if client.end() or True)):
            assert [event["type"] for event in events[-2:]] == ["error", "done"]
            assert (events[-1]["reason"], events[-2]["code"]) == ("error", "error")
        assert [client.process.returncode for client in clients] == [EX_SOFTWARE, EX_SOFTWARE]
        assert "RuntimeError: [metal::malloc]" in daemon.stderr
        assert not (tmp_path / "voxpipe.sock").exists()


def test_an_exception_of_the_model_in_a_pipe_alone(tmp_path: Path) -> None:
    with live(tmp_path / "now", command=script(FAILING)) as voxpipe:
        voxpipe.write(s16le(BEACH)[:HALF])
        voxpipe.wait_for("delta")
        (tmp_path / "now").touch()
        with suppress(BrokenPipeError):  # it may be gone before all is written
            voxpipe.write(s16le(BEACH)[HALF:])
        assert voxpipe.end() == EX_SOFTWARE  # though the pipe stays open
        assert [event["type"] for event in voxpipe.events[-2:]] == ["error", "done"]


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_events_wait_for_room_on_a_full_disk(tmp_path: Path) -> None:
    fifo = tmp_path / "in.pcm"
    with small_disk(tmp_path / "disk", 64) as disk:
        events, filler = disk / "events.jsonl", disk / "filler"
        with serve(tmp_path, f'[[fifo]]\npath = "{fifo}"\n', VOXPIPE_EVENTS=str(events)) as daemon:
            # 1. somebody fills the disk
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
            # 2. a pipe's words find no place, which is told once, and a client gets its own
            for _ in range(5):  # page by page of what there was left
                with fifo.open("wb") as pipe:
                    pipe.write(s16le(BEACH))
                assert is_heard(daemon)
            wait_until(lambda: "No space left on device; they wait in memory" in daemon.process.stderr)
            # 3. there is room again: nothing is missing, nothing is torn
            filler.unlink()
            wait_until(lambda: events.read_bytes().count(b'"done"') == 5)
            lines = parse(events.read_bytes())
            for n in range(1, 6):
                assert words(text_of(lines, f"in.pcm#{n}")) == said(BEACH)
            wait_until(lambda: "again; 0 were lost" in daemon.process.stderr)
            daemon.process.signal(signal.SIGTERM)
            assert daemon.process.end() == EX_OK
            assert daemon.process.stderr.count("No space left") == 1


def test_events_that_were_rotated_away_go_on_in_a_new_file(tmp_path: Path) -> None:
    fifo, events = tmp_path / "in.pcm", tmp_path / "log" / "events.jsonl"
    with serve(tmp_path, f'[[fifo]]\npath = "{fifo}"\n', VOXPIPE_EVENTS=str(events)) as daemon:
        assert parse(events.read_bytes())[0]["type"] == "ready"
        events.chmod(0o600)
        written: list[Event] = []
        with fifo.open("wb", buffering=0) as pipe:
            pipe.write(s16le(BEACH)[:HALF])
            wait_until(lambda: events.read_bytes().count(b'"delta"') > 6)
            # 1. renamed, as logrotate and newsyslog do it
            events.rename(events.with_suffix(".1"))
            pipe.write(s16le(BEACH)[HALF:])
        wait_until(lambda: events.exists() and b'"done"' in events.read_bytes())
        assert events.stat().st_mode & 0o777 == 0o600
        for path in (events.with_suffix(".1"), events):
            written += parse(path.read_bytes())
        assert words(text_of(written)) == said(BEACH)
        deltas = [event["seq"] for event in written if event["type"] == "delta"]
        assert deltas == list(range(1, len(deltas) + 1))
        # 2. removed
        events.unlink()
        fifo.write_bytes(s16le(FUTURE))
        wait_until(lambda: events.exists() and b'"done"' in events.read_bytes())
        assert words(text_of(parse(events.read_bytes()))) == said(FUTURE)
        assert daemon.n_descriptors() < 64


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file of this process may become longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LINES = [f'{{"seq":{n},"text":"{"x" * 40}"}}\n'.encode() for n in range(5)]


@pytest.mark.parametrize("mended_by", ["room", "renaming", "removing", "copying"])
def test_a_line_of_which_a_full_disk_took_half_is_whole_in_one_file(tmp_path: Path, mended_by: str) -> None:
    path = tmp_path / "events.jsonl"
    kept = tmp_path / "events.jsonl.1"
    file = EventFile(path)
    # 1. the disk takes one line and a half
    with room_for(len(LINES[0]) * 3 // 2):
        for line in LINES[:3]:
            file.write(line)
        assert path.stat().st_size == len(LINES[0]) * 3 // 2
    # 2. somebody makes room
    if mended_by == "renaming":
        path.rename(kept)
    elif mended_by == "removing":
        path.unlink()
    elif mended_by == "copying":
        kept.write_bytes(path.read_bytes())
        os.truncate(path, 0)
    # 3. no line is torn, and none is missing but those that were removed
    for line in LINES[3:]:
        file.write(line)
    if mended_by == "copying":  # half a line was copied, and the whole one is here
        assert (kept.read_bytes(), path.read_bytes()) == (
            b"".join(LINES)[: len(LINES[0]) * 3 // 2],
            b"".join(LINES[1:]),
        )
    elif mended_by == "room":
        assert path.read_bytes() == b"".join(LINES)
    else:
        assert path.read_bytes() == b"".join(LINES[1:])
        assert mended_by == "removing" or kept.read_bytes() == LINES[0]


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_understands_the_file_that_is_shipped(tmp_path: Path) -> None:
    text = (ROOT / "systemd/logrotate.d/voxpipe").read_text()
    (tmp_path / "conf").write_text(
        text.replace("/var/lib/voxpipe", str(tmp_path)).replace("voxpipe voxpipe", "root root")
    )
    command = [shutil.which("logrotate"), "-d", "-s", tmp_path / "state", tmp_path / "conf"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    assert "error" not in done.stderr


def test_a_daemon_whose_output_takes_nothing_serves_its_clients(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n')
    env = environment(VOXPIPE_SOCKET=str(tmp_path / "voxpipe.sock"))
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen([*COMMAND, "serve", "--config", str(config)], stdout=full, env=env)
        try:
            wait_until((tmp_path / "voxpipe.sock").exists)
            with live("--daemon", "require", env=env) as client:
                client.write(s16le(FUTURE))
                client.end_input()
                assert client.end() == EX_OK
                assert words(client.text()) == said(FUTURE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == EX_OK
        finally:
            process.kill()
            process.wait()


def test_when_nobody_reads_the_events_of_pipes_the_daemon_ends_as_if_it_was_asked_to(tmp_path: Path) -> None:
    config, fifo = tmp_path / "voxpipe.toml", tmp_path / "in.pcm"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n[[fifo]]\npath = "{fifo}"\n')
    env = environment(VOXPIPE_SOCKET=str(tmp_path / "voxpipe.sock"))
    command = [*COMMAND, "serve", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            assert b'"ready"' in process.stdout.readline()
            with live("--daemon", "require", env=env) as client:
                client.write(s16le(BEACH)[:HALF])
                client.wait_for_words(6)
                # 1. the reader leaves, which the next event of a pipe shows
                process.stdout.close()
                with suppress(BrokenPipeError):  # it stops reading soon
                    fifo.write_bytes(s16le(FUTURE))
                # 2. a client keeps what was heard
                client.end()
                assert words(client.text())[:9] == said(BEACH)[:9]
                assert client.events[-1]["reason"] == "signal"
            assert process.wait(60) == EX_OK
        finally:
            process.kill()


# --- clocks -----------------------------------------------------------------------------------------------------------

JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

/* The wall clock goes wrong by as many days as a file has bytes. */
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    struct stat facts;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, now);
    if (id == CLOCK_REALTIME && !stat(getenv("CLOCK_JUMP"), &facts)) now->tv_sec -= 86400 * facts.st_size;
    return status;
}
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs a C compiler and LD_PRELOAD"
)
def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    jump, source, library = tmp_path / "jump", tmp_path / "clock.c", tmp_path / "clock.so"
    jump.write_bytes(b"")
    source.write_text(JUMPING_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    changes = {"LD_PRELOAD": str(library), "CLOCK_JUMP": str(jump)}
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time() - time.clock_gettime(11))"],  # 11: CLOCK_TAI
        env={**os.environ, **changes},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert abs(float(told.stdout)) < 3600
    with serve(tmp_path, "heartbeat_s = 0.1\n", **changes) as daemon, live(env=daemon.env) as client:
        client.write(s16le(BEACH)[:HALF])
        client.wait_for("delta")
        uptime_s = daemon.status()["uptime_s"]
        # 1. 40 days back, then forth again
        for days in (40, 0):
            jump.write_bytes(bytes(days))
            n = client.count("heartbeat")
            client.wait_for("heartbeat", n=n + 3)
        jump.write_bytes(bytes(40))
        assert uptime_s <= daemon.status()["uptime_s"] < uptime_s + 90
        client.write(s16le(BEACH)[HALF:])
        client.end_input()
        assert client.end() == EX_OK
        # 2. the words are those that were said, at the time at which they were
        assert words(client.text()) == said(BEACH)
        assert client.events[-1]["audio_s"] == pytest.approx(5.42, abs=0.01)
        assert 0 <= client.events[-1]["wall_s"] < 90


WALL_CLOCKS = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "today", "utcnow", "fromtimestamp"}
# ages of files on a disk that several machines share are differences of wall clocks, which is all there is
OF_FILES = {"voxpipe/watch", "voxpipe/cluster"}


def test_nothing_live_reads_the_wall_clock() -> None:
    for path in sorted((ROOT / "voxpipe").rglob("*.py")):
        place = path.relative_to(ROOT)
        if str(place.parent) in OF_FILES or "training" in place.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                is_wall = node.value.id in ("time", "datetime", "date") and node.attr in WALL_CLOCKS
                assert not is_wall, f"{place}, line {node.lineno}: {node.value.id}.{node.attr}"


@pytest.mark.long
def test_crowds_of_sockets(tmp_path: Path) -> None:
    """Ten thousand connects, of which a hundred at a time stay."""
    with serve(tmp_path) as daemon:
        before = daemon.n_descriptors()
        for _ in range(100):
            crowd = []
            for _ in range(100):
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(daemon.socket))
                crowd.append(client)
            for client in crowd:
                client.close()
        assert is_heard(daemon)
        wait_until(lambda: daemon.n_descriptors() <= before)
