"""Subscriptions: the events of everybody, on the daemon's socket."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import Event, live, parse, run, text_of, wait_until
from tests.service.test_daemon import Served, serve
from voxpipe.cli.main import cli
from voxpipe.errors import EX_OK, UsageError
from voxpipe.service.bound import bind
from voxpipe.service.broadcast import MAX_WORDS, Broadcast
from voxpipe.service.loop import StreamLoop
from voxpipe.service.protocol import Header, is_named
from voxpipe.service.sockets import SocketServer
from voxpipe.service.stream import StreamOptions


class Subscription:
    """A client that reads what comes."""

    def __init__(self, client: socket.socket, *names: str) -> None:
        self._client = client
        client.sendall(Header(request="subscribe", streams=names).encode())
        self._lines = client.makefile("rb")
        self.events: list[Event] = []
        assert self.next()["type"] == "ready"

    def next(self) -> Event:
        event: Event = json.loads(self._lines.readline())
        self.events.append(event)
        return event

    def until(self, type: str) -> list[Event]:
        while self.next()["type"] != type:
            pass
        return self.events

    def rest(self) -> list[Event]:
        return parse(self._lines.read())


@contextmanager
def subscribed(daemon: Served, *names: str) -> Iterator[Subscription]:
    n_before = daemon_subscribers(daemon)
    with daemon.connect() as client:
        yield Subscription(client, *names)
        client.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: daemon_subscribers(daemon) == n_before)


def daemon_subscribers(daemon: Served) -> int:
    return int(daemon.status()["subscribers"])


def test_a_subscriber_hears_what_the_client_hears(seen: Served) -> None:
    seen.idle()
    with subscribed(seen) as everything, live(env=seen.env) as client:
        client.write(s16le(FUTURE))
        client.end_input()
        assert client.end() == EX_OK
        heard = everything.until("done")
    numbers = {event.pop("id") for event in heard if event["type"] != "ready"}
    assert len(numbers) == 1
    assert heard == client.events


def test_a_stream_can_be_given_a_name(seen: Served) -> None:
    seen.idle()
    with subscribed(seen, "stage") as stage:
        for options in ([], ["--daemon", "never"]):
            result = run("--name", "stage", *options, stdin=s16le(FUTURE), env=seen.env)
            assert {event["stream"] for event in result.events if "stream" in event} == {"stage"}
        assert words(text_of(stage.until("done"))) == said(FUTURE)
    for wrong in (["x", "-", "other.pcm"], [""], ["x" * 101]):
        with pytest.raises(UsageError, match="--name names one source, with 1 to 100 characters"):
            cli.main(["listen", "--name", *wrong], standalone_mode=False)


def test_who_comes_late_gets_the_last_words_first(seen: Served) -> None:
    seen.idle()
    with live(env=seen.env) as client:
        client.write(s16le(BEACH)[:120_000])
        client.wait_for_words(7)
        with subscribed(seen) as late:
            start = late.next()
            assert (start["type"], start["stream"], start["source"]) == ("start", "stdin", "-")
            client.write(s16le(BEACH)[120_000:])
            client.end_input()
            heard = late.until("done")
        assert client.end() == EX_OK
        assert start["text"] + text_of(heard) == client.text()
        assert words(client.text()) == said(BEACH)


def test_only_the_streams_that_were_named(tmp_path: Path) -> None:
    """Also: whoever subscribed hears everything to its end when the daemon is stopped."""
    fifo = tmp_path / "stage.pcm"
    with serve(tmp_path, f'[[fifo]]\npath = "{fifo}"\n') as daemon, daemon.connect() as one, daemon.connect() as other:
        stage, clients = Subscription(one, "stage.pcm"), Subscription(other, "stdin")
        with live(env=daemon.env) as client, open(fifo, "wb") as pipe:
            client.write(s16le(FUTURE))
            client.end_input()
            assert client.end() == EX_OK
            pipe.write(s16le(BEACH)[:100_000])
            pipe.flush()
            assert next(event["stream"] for event in stage.until("delta") if "stream" in event) == "stage.pcm#1"
            daemon.process.signal(signal.SIGTERM)
            heard = [*stage.events, *stage.rest()]
        assert daemon.process.end() == EX_OK
        assert {event["stream"] for event in heard if "stream" in event} == {"stage.pcm#1"}
        assert (heard[-1]["type"], heard[-1]["reason"]) == ("done", "signal")
        others = [*clients.events, *clients.rest()]
        assert {event["stream"] for event in others if "stream" in event} == {"stdin"}
        assert words(text_of(others)) == said(FUTURE)


def test_who_does_not_read_is_cut_off_and_nobody_waits(tmp_path: Path) -> None:
    path = tmp_path / "voxpipe.sock"
    loop = StreamLoop()
    ready = {"v": 1, "model": "none", "delay_ms": 480}
    server = SocketServer(bind(path), loop, StreamOptions(), ready=ready, status=dict[str, Any])
    server.start()
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as hearing:
        for client in (deaf, hearing):
            client.settimeout(60)
            client.connect(str(path))
        good, _ = Subscription(hearing), Subscription(deaf)
        wait_until(lambda: loop.broadcast.n_subscribers == 2)
        channel = loop.broadcast.open()
        channel.tell({"type": "start", "stream": "one", "source": "-"})
        for number in range(100):  # 3 MB, more than the kernel and we keep for anybody
            channel.tell({"type": "delta", "stream": "one", "seq": number, "text": "x" * 30_000})
            good.next()
        wait_until(lambda: loop.broadcast.n_subscribers == 1)
        channel.tell({"type": "done", "stream": "one"})
        assert good.until("done")[-2]["seq"] == 99
    server.stop()
    server.close()


def test_a_broadcast_keeps_little(tmp_path: Path) -> None:
    broadcast = Broadcast()
    channel, other = broadcast.open(), broadcast.open()
    for one in (channel, other):
        one.tell({"type": "start", "stream": "same", "source": "-"})
    for _ in range(1000):
        channel.tell({"type": "delta", "stream": "same", "text": " word"})
    assert len(channel.words) == MAX_WORDS
    heard: list[Event] = []
    broadcast.subscribe(heard.append)
    assert [(event["id"], "text" in event) for event in heard] == [(1, True), (2, False)]
    channel.tell({"type": "done", "stream": "same"})
    other.tell({"type": "done", "stream": "same"})
    assert [(event["id"], event["type"]) for event in heard[2:]] == [(1, "done"), (2, "done")]
    broadcast.subscribe(heard.append)
    assert len(heard) == 4


@pytest.mark.parametrize("streams", ['"in.pcm"', "[1]", '{"a": 1}', "null"])
def test_streams_are_a_list_of_names(streams: str) -> None:
    with pytest.raises(UsageError, match=r"the header.s .streams. is .*, which is not a list of names"):
        Header.decode(f'VOXPIPE/1 {{"request": "subscribe", "streams": {streams}}}'.encode())
    header = Header(request="subscribe", streams=("a", "b"))
    assert Header.decode(header.encode()) == header


def test_a_pipe_stands_for_its_writers() -> None:
    names = ("in.pcm", "stdin")
    assert [is_named(one, names) for one in ("in.pcm#12", "stdin", "in.pcm", "in.pcm#", "other#1", "#")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]
