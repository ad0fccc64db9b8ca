"""`voxpipe serve` and its clients, as real processes on a real socket."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import COMMAND, Event, Live, environment, live, parse, run, text_of, wait_until
from tests.service.processes import LATE, script
from voxpipe.errors import (
    EX_CANTCREAT,
    EX_CONFIG,
    EX_DATAERR,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    OutputError,
    UnavailableError,
)
from voxpipe.service.attach import ask_status, connect
from voxpipe.service.bound import bind
from voxpipe.service.place import default_socket
from voxpipe.service.protocol import MAX_HEADER_BYTES, as_chunk

Env = dict[str, str]


class Served:
    """A daemon under test."""

    def __init__(self, directory: Path, process: Live, config: Path) -> None:
        self.socket = directory / "voxpipe.sock"
        self.config = config
        self.process = process
        self.env = environment(VOXPIPE_SOCKET=str(self.socket))

    def status(self) -> dict[str, Any]:
        return ask_status(self.socket)

    def answers(self) -> bool:
        """Whether the model is loaded; what a daemon before it left behind does not answer."""
        assert self.process.process.poll() is None, self.process.stderr
        try:
            self.status()
        except UnavailableError:
            return False
        return True

    def n_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.process.pid}/fd"))

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.socket))
        client.settimeout(60)
        return client

    def ask(self, data: bytes) -> list[Event]:
        """Send, half-close, and read to the end."""
        with self.connect() as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            except OSError:  # it would not hear us out
                pass
            received = b""
            with suppress(ConnectionResetError):  # what it would not hear is said last
                while part := client.recv(1 << 16):
                    received += part
        return parse(received)

    def idle(self) -> None:
        wait_until(lambda: not self.status()["streams"])


@contextmanager
def serve(directory: Path, settings: str = "", **changes: str) -> Iterator[Served]:
    config = directory / "voxpipe.toml"
    config.write_text(f'socket = "{directory}/voxpipe.sock"\n{settings}')
    with live("serve", "--config", config, stdin=subprocess.DEVNULL, env=environment(**changes)) as process:
        served = Served(directory, process, config)
        wait_until(served.answers)
        yield served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), "max_streams = 4\n") as daemon:
        yield daemon
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.end() == EX_OK
        assert not daemon.socket.exists()


def is_read(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def without_time(events: list[Event]) -> list[Event]:
    return [{key: value for key, value in event.items() if key != "wall_s"} for event in events]


@pytest.mark.parametrize(
    "options", [[], ["--delay", "240", "--segment-pause", "80"], ["--format", "s16le", "--rate", "16000"]]
)
def test_a_pipe_gets_from_the_daemon_what_it_gets_alone(served: Served, options: list[str]) -> None:
    audio = s16le(BEACH) if "--format" in options else BEACH.read_bytes()
    attached = run(*options, "--daemon", "require", stdin=audio, env=served.env)
    alone = run(*options, "--daemon", "never", stdin=audio, env=served.env)
    assert attached.status == alone.status == EX_OK
    assert without_time(attached.events) == without_time(alone.events)
    assert attached.stderr == ""


def test_errors_and_statuses_are_those_of_a_pipe_alone(served: Served) -> None:
    for audio in (b"", b"a letter, not a sound\n" * 50):
        attached = run("--daemon", "require", stdin=audio, env=served.env)
        alone = run("--daemon", "never", stdin=audio, env=served.env)
        assert attached.status == alone.status == EX_DATAERR
        codes = [[event.get("code") for event in result.events] for result in (attached, alone)]
        assert codes[0] == codes[1]
        assert attached.stderr.startswith("voxpipe: ")
        assert attached.stderr.count("\n") == 1


def test_raw_audio_and_wav_without_a_header_line(served: Served) -> None:
    for data in (s16le(FUTURE), BEACH.read_bytes()):
        events = served.ask(data)
        assert [events[0]["type"], events[1]["type"], events[-1]["type"]] == ["ready", "start", "done"]
        assert words(text_of(events)) == said(FUTURE if data[:4] != b"RIFF" else BEACH)


def test_several_clients_at_once_each_get_their_own_words(served: Served) -> None:
    clips = [FUTURE, BEACH, FUTURE, BEACH]
    clients = [subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=served.env) for _ in clips]
    try:
        for client, clip in zip(clients, clips, strict=True):
            assert client.stdin is not None
            client.stdin.write(s16le(clip))
        for client, clip in zip(clients, clips, strict=True):
            output, _ = client.communicate(timeout=90)
            assert client.returncode == EX_OK
            assert words(text_of(parse(output))) == said(clip)
    finally:
        for client in clients:
            client.kill()


def test_one_client_too_many_is_told_so(served: Served) -> None:
    served.idle()
    holding = [served.connect() for _ in range(4)]
    for client in holding:
        client.sendall(bytes(640))
    wait_until(lambda: len(served.status()["streams"]) == 4)
    events = served.ask(s16le(FUTURE))
    assert [event["type"] for event in events] == ["ready", "start", "error", "done"]
    assert events[2]["code"] == "busy"
    assert events[2]["message"] == "all 4 streams are in use; try again when one has ended"
    # one that would go on speaking is not listened to
    with served.connect() as client:
        client.sendall(bytes(640))
        assert [event["type"] for event in parse(client.makefile("rb").read())] == ["ready", "start", "error", "done"]
    for client in holding:
        client.close()
    served.idle()
    assert words(text_of(served.ask(s16le(FUTURE)))) == said(FUTURE)


def test_clients_that_vanish_leave_nothing_behind(served: Served) -> None:
    served.idle()
    before = served.n_descriptors()
    with live(env=served.env) as other:
        other.write(s16le(BEACH)[:80_000])
        for _ in range(3):
            with live(env=served.env) as client:
                client.write(s16le(BEACH)[:60_000])
                client.wait_for("delta")
                client.signal(signal.SIGKILL)
        other.write(s16le(BEACH)[80_000:])
        other.end_input()
        assert other.end() == EX_OK
        assert words(other.text()) == said(BEACH)
    served.idle()
    wait_until(lambda: served.n_descriptors() <= before)


def test_clients_that_neither_send_nor_read_are_in_nobodys_way(served: Served) -> None:
    with served.connect(), served.connect() as deaf:
        deaf.sendall(s16le(BEACH)[:100_000])
        assert words(text_of(served.ask(s16le(FUTURE)))) == said(FUTURE)
    served.idle()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'VOXPIPE/1 {"rate": "fast"}\n', "the header's 'rate' is 'fast', which is not a number"),
        (b'VOXPIPE/1 {"delay_ms": 100}\n', "a transcription delay of 100 ms is not possible; choose one of"),
        (b'VOXPIPE/1 {"model": "4bit"}\n', "this daemon runs the model tiny, not 4bit"),
        (b'VOXPIPE/1 {"format": "s7le"}\n', "'s7le'"),
        (b"VOXPIPE/1 \xff\xfe\n", "the header is not JSON"),
        (b"VOXPIPE/1 " + b"x" * MAX_HEADER_BYTES, f"the header has no end within {MAX_HEADER_BYTES} bytes"),
        (b"VOXPIPE/1 " + b"x" * (64 << 20), f"the header has no end within {MAX_HEADER_BYTES} bytes"),
        (b"VOXPIPE/1 {}", "the header has no end; it is one line of JSON"),
        (b'VOXPIPE/1 {"framing": "chunks"}\n\xff\xff\xff\xff', "a chunk of 4294967295 bytes is too long"),
    ],
)
def test_garbage_gets_one_clear_error(served: Served, header: bytes, message: str) -> None:
    events = served.ask(header)
    (error,) = [event for event in events if event["type"] == "error"]
    assert error["code"] == "usage"
    assert message in error["message"]
    assert events[-1]["type"] == "done"


def test_two_thousand_connections(served: Served) -> None:
    served.idle()
    before = served.n_descriptors()
    for _ in range(2_000):
        served.connect().close()
    assert words(text_of(served.ask(s16le(FUTURE)))) == said(FUTURE)
    wait_until(lambda: served.n_descriptors() <= before)


def test_a_flush_from_the_client_in_mid_stream(served: Served) -> None:
    with live(env=served.env) as client:
        client.write(s16le(FUTURE)[:-16_000])
        client.wait_for_words(3)
        client.signal(signal.SIGUSR1)
        wait_until(lambda: "young" in client.text(), lambda: client.text())
        client.write(s16le(BEACH))
        client.end_input()
        assert client.end() == EX_OK
        assert words(client.text())[-3:] == said(BEACH)[-3:]
    events = served.ask(
        b'VOXPIPE/1 {"framing": "chunks"}\n' + as_chunk(bytes(6_400)) + as_chunk(b"") + as_chunk(bytes(6_400))
    )
    assert events[-1]["audio_s"] == 0.4


def test_an_interrupted_client_gets_what_was_heard(served: Served) -> None:
    with live(env=served.env) as client:
        client.write(s16le(BEACH)[: len(s16le(BEACH)) // 4 * 2])
        client.wait_for_words(6)
        client.signal(signal.SIGINT)
        assert client.end() == EX_OK
        assert words(client.text())[:9] == said(BEACH)[:9]
        assert client.events[-1]["reason"] == "signal"


def test_a_stopped_client_goes_on_later(served: Served) -> None:
    with live(env=served.env) as client:
        client.write(s16le(BEACH)[:100_000])
        client.wait_for("delta")
        client.signal(signal.SIGSTOP)
        assert words(text_of(served.ask(s16le(FUTURE)))) == said(FUTURE)
        client.signal(signal.SIGCONT)
        client.write(s16le(BEACH)[100_000:])
        client.end_input()
        assert client.end() == EX_OK
        assert words(client.text()) == said(BEACH)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(served: Served) -> None:
    script = f"import os, socket; os.setuid(65534); socket.socket(socket.AF_UNIX).connect({str(served.socket)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"PermissionError" in done.stderr


def test_status_names_every_stream(served: Served) -> None:
    served.idle()
    with live(env=served.env) as client:
        client.write(s16le(BEACH)[:64_000])
        wait_until(lambda: [one["audio_s"] for one in served.status()["streams"]] == [2.0])
        result = run("status", "--json", env=served.env)
        facts = json.loads(result.stdout)
        assert (facts["model"], facts["max_streams"], facts["pid"]) == ("tiny", 4, served.process.process.pid)
        assert facts["streams"][0]["stream"] == "stdin"
        table = run("status", env=served.env).stdout.decode()
        assert "1 of 4 streams" in table
        assert "stdin" in table
    served.idle()


def test_without_a_daemon(tmp_path: Path) -> None:
    env = environment(VOXPIPE_SOCKET=str(tmp_path / "none.sock"))
    for command in (["status"], ["--daemon", "require"]):
        result = run(*command, stdin=b"", env=env)
        assert (result.status, result.stdout) == (EX_UNAVAILABLE, b"")
        assert result.stderr == f"voxpipe: no daemon answers at {tmp_path}/none.sock; start one with: voxpipe serve\n"
    assert run("--daemon", "require", "--dtype", "f32", stdin=b"", env=env).status == EX_USAGE


def test_a_daemon_that_dies_leaves_its_clients_an_error_and_its_socket_to_the_next(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon:
        with live(env=daemon.env) as client:
            client.write(s16le(BEACH)[:100_000])
            client.wait_for("delta")
            daemon.process.signal(signal.SIGKILL)
            assert client.end() == EX_UNAVAILABLE
            assert [event["type"] for event in client.events[-2:]] == ["error", "done"]
            assert client.stderr.startswith("voxpipe: the daemon ended in mid-stream; ")
        assert daemon.socket.exists()
    with serve(tmp_path) as daemon:
        assert words(text_of(daemon.ask(s16le(FUTURE)))) == said(FUTURE)
        second = run("serve", "--config", daemon.config)
        assert second.status == EX_CANTCREAT
        assert (
            second.stderr == f"voxpipe: another voxpipe serves {daemon.socket} already; stop it, or name another path\n"
        )
        assert words(text_of(daemon.ask(s16le(FUTURE)))) == said(FUTURE)


def test_the_end_of_the_daemon_is_the_end_of_its_streams_with_what_was_heard(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon, live(env=daemon.env) as client:
        client.write(s16le(BEACH)[: len(s16le(BEACH)) // 4 * 2])
        client.wait_for_words(6)
        daemon.process.signal(signal.SIGTERM)
        client.end()
        assert words(client.text())[:9] == said(BEACH)[:9]
        assert (client.events[-1]["type"], client.events[-1]["reason"]) == ("done", "signal")
        assert daemon.process.end() == EX_OK
        assert not daemon.socket.exists()
        assert daemon.process.stderr == ""


def test_pipes_come_and_go_with_the_settings_and_streams_stay(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pcm", tmp_path / "two.pcm"
    with serve(tmp_path, f'[[fifo]]\npath = "{one}"\nmode = "0640"\n') as daemon:
        process = daemon.process
        wait_until(one.exists)
        assert one.stat().st_mode & 0o777 == 0o640
        with live(env=daemon.env) as client:
            client.write(s16le(BEACH)[:100_000])
            client.wait_for("delta")
            # 1. a mistake changes nothing
            good = daemon.config.read_text()
            daemon.config.write_text("max_streams = 0\n")
            process.signal(signal.SIGHUP)
            wait_until(lambda: "the settings stay as they were" in process.stderr)
            # 2. what lasts until the next start is named
            daemon.config.write_text("delay_ms = 80\n" + good)
            process.signal(signal.SIGHUP)
            wait_until(lambda: "delay_ms changes with the next start only" in process.stderr)
            # 3. another pipe is opened beside the first
            daemon.config.write_text(good + f'[[fifo]]\npath = "{two}"\n')
            process.signal(signal.SIGHUP)
            wait_until(two.exists)
            for path in (one, two):
                path.write_bytes(s16le(FUTURE))
                process.wait_for("done", f"{path.name}#1")
                assert words(process.text(f"{path.name}#1")) == said(FUTURE)
            # 4. a pipe that is not named any more is not read any more
            daemon.config.write_text(good)
            process.signal(signal.SIGHUP)
            wait_until(lambda: not is_read(two))
            assert is_read(one)
            # 5. the client has noticed nothing
            client.write(s16le(BEACH)[100_000:])
            client.end_input()
            assert client.end() == EX_OK
            assert words(client.text()) == said(BEACH)


def test_what_a_reload_cannot_have_changes_nothing_and_what_it_can_is_told_truly(tmp_path: Path) -> None:
    one, two, wrong = tmp_path / "one.pcm", tmp_path / "two.pcm", tmp_path / "wrong.pcm"
    wrong.write_bytes(b"")
    with serve(tmp_path, f'[[fifo]]\npath = "{one}"\n') as daemon:
        general, pipe = daemon.config.read_text().split("[[fifo]]")

        def reload(settings: str, *pipes: Path) -> None:
            tables = "".join("[[fifo]]" + pipe.replace(str(one), str(path)) for path in pipes)
            daemon.config.write_text(settings + tables)
            daemon.process.signal(signal.SIGHUP)

        # 1. one pipe cannot be made: the other that is not named any more is read all the same
        reload(general, two, wrong)
        wait_until(lambda: f"the settings stay as they were: {wrong} is no named pipe" in daemon.process.stderr)
        assert is_read(one)
        assert not is_read(two)
        # 2. keys that need a new start have no effect, not even on what is new
        reload(general + "max_streams = 99\ndelay_ms = 80\n", one, two)
        with two.open("wb") as writer:
            writer.write(bytes(640))
            writer.flush()
            wait_until(lambda: "two.pcm#1" in [one["stream"] for one in daemon.status()["streams"]])
            (delay_ms,) = [one["delay_ms"] for one in daemon.status()["streams"] if one["stream"] == "two.pcm#1"]
        assert delay_ms == 480
        assert daemon.status()["max_streams"] == 16
        assert "max_streams changes with the next start only" in daemon.process.stderr
        daemon.idle()
        # 3. pipes that come and go leave nothing behind
        before = daemon.n_descriptors()
        for _ in range(5):
            for pipes in ([one], [one, two]):
                reload(general, *pipes)
                wait_until(lambda pipes=pipes: is_read(two) == (two in pipes))  # type: ignore[misc]
        wait_until(lambda: daemon.n_descriptors() <= before)


def test_pipes_of_one_name_are_told_apart_and_one_made_anew_is_found(tmp_path: Path) -> None:
    pipes = [tmp_path / folder / "in.pcm" for folder in ("a", "b")]
    with serve(tmp_path, "".join(f'[[fifo]]\npath = "{path}"\n' for path in pipes)) as daemon:
        # 1. each has its own name in the one file of events
        for path, name in zip(pipes, ("in.pcm#1", "in.pcm-2#1"), strict=True):
            path.write_bytes(s16le(FUTURE))
            daemon.process.wait_for("done", name)
            assert words(daemon.process.text(name)) == said(FUTURE)
        # 2. one is removed and made again, one while it is being read: both are found after a reload
        with pipes[1].open("wb") as writer:
            writer.write(bytes(640))
            writer.flush()
            daemon.process.wait_for("start", "in.pcm-2#2")
            for path in pipes:
                path.unlink()
                os.mkfifo(path)
        wait_until(lambda: "in.pcm-2#2" not in [one["stream"] for one in daemon.status()["streams"]])
        daemon.process.signal(signal.SIGHUP)
        for path, name in zip(pipes, ("in.pcm#1", "in.pcm-2#1"), strict=True):
            path.write_bytes(s16le(FUTURE))
            daemon.process.wait_for("done", name, n=2)
        assert daemon.process.count("error") == 0


def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    config, gate, fifo = tmp_path / "voxpipe.toml", tmp_path / "gate", tmp_path / "in.pcm"
    os.mkfifo(fifo)
    path = tmp_path / "voxpipe.sock"
    config.write_text(f'socket = "{path}"\n[[fifo]]\npath = "{fifo}"\n')
    writer = os.open(fifo, os.O_RDWR)  # on Linux; one that waits to be read
    with live(gate, "serve", "--config", config, command=script(LATE)) as daemon:
        # 1. a client and a writer wait for the model
        wait_until(lambda: "loading" in daemon.stderr)
        os.write(writer, bytes(640))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(bytes(640))
            # 2. the signal comes before it
            daemon.signal(signal.SIGTERM)
            gate.touch()
            # 3. nothing is begun any more
            assert daemon.end() == EX_OK
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert daemon.events == []
        assert daemon.stderr == "loading\n"
    assert not path.exists()
    os.close(writer)


def test_a_service_fetches_no_model(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text('socket = ""\nmodel = "4bit"\n')
    # an address at which nobody answers: it is not even asked
    env = environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    result = run("serve", "--config", config, env=env)
    assert result.status == EX_CONFIG
    assert result.stderr == ("voxpipe: the model '4bit' is not in the local cache; fetch it with: voxpipe pull 4bit\n")


def test_launchd_does_not_start_again_what_would_fail_again(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text("max_streams = 0\n")
    result = run("serve", "--config", config, env=environment(VOXPIPE_LAUNCHD="1"))
    assert result.status == EX_OK
    assert result.stderr == f"voxpipe: {config}, line 1: max_streams is 0; it must be at least 1\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_low_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    config = tmp_path / "voxpipe.toml"
    config.write_text(f'socket = "{tmp_path}/voxpipe.sock"\n')
    command = ("sh", "-c", 'ulimit -Sn 256; exec "$0" -m voxpipe "$@"', sys.executable)
    with live("serve", "--config", config, command=command) as daemon:
        daemon.wait_for("ready")
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text().splitlines()
        (soft,) = [line.split()[3] for line in limits if line.startswith("Max open files")]
        assert soft == "1024"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("folder", [".", "voxpipe"])
def test_a_default_socket_in_another_users_folder_is_not_used(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("VOXPIPE_SOCKET", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    path = default_socket()
    with bind(path):
        connection = connect(path)
        assert connection is not None
        connection.close()
        # 1. somebody else's folder, where he could listen: nothing is sent
        os.chown(tmp_path / folder, 65534, -1)
        assert connect(path) is None
        assert caplog.messages[0].startswith(f"{tmp_path / folder} is another user's, and not trusted with audio; ")
        # 2. unless the user says so
        monkeypatch.setenv("VOXPIPE_SOCKET", str(path))
        trusted = connect(path)
        assert trusted is not None
        trusted.close()
        monkeypatch.delenv("VOXPIPE_SOCKET")
    # 3. nor is anything served there
    with pytest.raises(OutputError, match=r" is another user's, who could hear what comes in; export VOXPIPE_SOCKET="):
        bind(path)


def test_folders_made_for_a_socket_are_the_users_alone(tmp_path: Path) -> None:
    with bind(tmp_path / "one" / "two" / "voxpipe.sock"):
        assert [path.stat().st_mode & 0o777 for path in (tmp_path / "one", tmp_path / "one" / "two")] == [0o700] * 2


def test_a_socket_takes_away_its_own_path_only(tmp_path: Path) -> None:
    path = tmp_path / "voxpipe.sock"
    # 1. its path goes when it stops to listen, so that the next one finds nothing in its way
    first = bind(path)
    first.close()
    assert not path.exists()
    # 2. what somebody else has put there meanwhile stays
    first = bind(path)
    path.unlink()
    with bind(path):
        first.close()
        first.close()
        assert path.exists()
    assert not path.exists()


def test_nobody_binds_while_another_looks_whether_the_path_is_free(tmp_path: Path) -> None:
    path, bound = tmp_path / "voxpipe.sock", []
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: bound.append(bind(path)))
    thread.start()
    thread.join(0.1)
    assert not path.exists()
    os.close(folder)
    thread.join()
    assert path.exists()
    bound[0].close()
