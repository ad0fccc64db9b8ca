"""The status: asked for by a command, or by a signal."""

import signal

from tests.cli.clips import BEACH, s16le, said, words
from tests.cli.process import Live, live, run, wait_until
from tests.service.test_daemon import Served
from voxpipe.errors import EX_OK
from voxpipe.service.protocol import Header
from voxpipe.service.status import clock, printable


def ask(process: Live, number: int = signal.SIGUSR2) -> str:
    """What a process says on stderr after a signal."""
    before = len(process.stderr)
    process.signal(number)
    wait_until(lambda: process.stderr[before:].count("\n") >= 2, lambda: process.stderr)
    return process.stderr[before:]


def test_a_signal_has_a_filter_say_what_it_does() -> None:
    with live("--daemon", "never") as voxpipe:
        # 1. half of the clip is there
        voxpipe.write(s16le(BEACH)[:96_000])
        voxpipe.wait_for_words(3)
        # 2. the signal changes nothing but stderr
        heading, titles, stream = ask(voxpipe).splitlines()
        assert heading.startswith("voxpipe 0.")
        assert "model tiny, delay 480 ms" in heading
        assert "; 1 stream; a turn " in heading
        assert "MiB resident" in heading
        assert titles.split() == ["stream", "audio", "behind", "delay", "source"]
        assert stream.split()[0] == "stdin"
        # 3. the stream goes on
        voxpipe.write(s16le(BEACH)[96_000:])
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        assert words(voxpipe.text()) == said(BEACH)


def test_signals_to_a_daemon_and_to_its_client(seen: Served) -> None:
    seen.idle()
    before = seen.process.stderr
    seen.process.signal(signal.SIGUSR2)  # while it waits for something to do
    wait_until(lambda: "0 of 3 streams" in seen.process.stderr[len(before) :])
    with live(env=seen.env) as client:
        client.write(s16le(BEACH)[:96_000])
        client.wait_for_words(3)
        for process in (seen.process, client):
            said_of = ask(process)
            assert f"process {seen.process.process.pid}" in said_of
            assert "1 of 3 streams; a turn " in said_of
            assert "stdin" in said_of
        client.end_input()
        assert client.end() == EX_OK


def test_status_shows_names_and_does_not_obey_them(seen: Served) -> None:
    seen.idle()
    with seen.connect() as client:
        client.sendall(Header(name="\x1b]0;owned\x07evil\u202e", source="\x9b2J").encode() + bytes(6_400))
        wait_until(lambda: seen.status()["streams"])
        for command in ("status", "top"):
            shown = run(command, env=seen.env).stdout.decode()
            assert "�]0;owned�evil�" in shown
            assert "\x1b]" not in shown
            assert "\x9b" not in shown
            assert "\u202e" not in shown
    seen.idle()


def test_the_last_words_are_in_the_status(seen: Served) -> None:
    seen.idle()
    with live(env=seen.env) as client:
        client.write(s16le(BEACH)[:120_000])
        client.wait_for_words(7)
        (stream,) = seen.status()["streams"]
        assert stream["words"].split()[:6] == said(BEACH)[:6]
        assert stream["wall_s"] > 0
        client.end_input()
        assert client.end() == EX_OK


def test_clock_and_printable() -> None:
    assert [clock(seconds) for seconds in (0, 7.9, 75, 3599, 3600, 93_784)] == [
        "0:00",
        "0:07",
        "1:15",
        "59:59",
        "1:00:00",
        "26:03:04",
    ]
    assert printable("क्‍ष, é, 日本 👩‍👩‍👧") == "क्‍ष, é, 日本 👩‍👩‍👧"
    assert printable("a\x00b\nc\x7fd") == "a�b�c�d"
