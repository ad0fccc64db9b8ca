"""What a live stream reports beside its words: segments and signs of life."""

import io
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import Event, live, run, text_of, wait_until
from tests.service.test_daemon import serve
from voxpipe import StreamingSession
from voxpipe.errors import EX_OK
from voxpipe.output.events import JsonLines
from voxpipe.output.transcript import Delta
from voxpipe.service.broadcast import Broadcast
from voxpipe.service.live import LiveStream
from voxpipe.service.stream import Stream, StreamOptions
from voxpipe.service.tally import Tally

SECOND = bytes(32_000)  # of silence


def segments_of(events: list[Event]) -> list[Event]:
    return [event for event in events if event["type"] == "segment"]


def test_segments_are_the_words_between_pauses() -> None:
    result = run("--segment-pause", "1000", stdin=s16le(FUTURE) + 4 * SECOND + s16le(BEACH) + 4 * SECOND)
    segments = segments_of(result.events)
    assert [words(segment["text"]) for segment in segments] == [said(FUTURE), said(BEACH)]
    assert [segment["reason"] for segment in segments] == ["pause", "pause"]
    assert "".join(segment["text"] for segment in segments) == result.text
    for segment in segments:
        deltas = [e for e in result.events if e["type"] == "delta" and e["seq"] <= segment["seq"]]
        assert result.events.index(segment) > result.events.index(deltas[-1])
        assert (segment["end"], segment["seq"]) == (deltas[-1]["end"], deltas[-1]["seq"])
    assert segments[0]["start"] < segments[0]["end"] < segments[1]["start"] < segments[1]["end"]
    assert segments_of(run(stdin=s16le(FUTURE) + SECOND).events) == []


def test_a_segment_comes_when_its_pause_is_over_not_with_the_next_word() -> None:
    with live("--segment-pause", "800") as voxpipe:
        voxpipe.write(s16le(FUTURE) + 3 * SECOND)
        voxpipe.wait_for("segment")
        assert words(segments_of(voxpipe.events)[0]["text"]) == said(FUTURE)
        voxpipe.write(s16le(BEACH))
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        last = segments_of(voxpipe.events)[-1]
        assert (words(last["text"]), last["reason"]) == (said(BEACH), "end")


def test_a_flush_ends_a_segment() -> None:
    with live("--segment-pause", "5000") as voxpipe:
        voxpipe.write(s16le(FUTURE))
        voxpipe.wait_for_words(3)
        voxpipe.signal(signal.SIGUSR1)
        voxpipe.wait_for("segment")
        (segment,) = segments_of(voxpipe.events)
        assert (words(segment["text"]), segment["reason"]) == (said(FUTURE), "flush")
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        assert len(segments_of(voxpipe.events)) == 1


def test_each_rut_is_told_once() -> None:
    output = io.BytesIO()
    lines = JsonLines(output)
    stream = Stream("in", "-", lines, StreamOptions(), on_audio=lambda: None)
    session = SimpleNamespace(n_guarded=0)
    one = LiveStream(stream, cast(StreamingSession, session), Tally(), Broadcast().open())
    word = Delta(" a", start=0.0, end=0.5, tokens=(7,), logprob=0.0)
    told = []
    # with a pause of the guard in mid-rut, words that end it, and another rut that ends in the turn in which it began
    for n_guarded, deltas in [
        (0, [word]),
        (1, []),
        (5, []),
        (5, []),
        (6, []),
        (6, [word]),
        (6, []),
        (9, [word]),
        (10, []),
    ]:
        session.n_guarded = n_guarded
        one.write(deltas)
        told.append(output.getvalue().count(b'"stall-recovered"'))
    assert told == [0, 1, 1, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("where", ["stdin", "a file"])
def test_deltas_tell_how_sure_the_model_is(tmp_path: Path, where: str) -> None:
    source = tmp_path / "in.wav"
    source.write_bytes(BEACH.read_bytes())
    named = [source] if where == "a file" else []
    sure, plain = (run(*option, *named, stdin=BEACH.read_bytes()) for option in (["--logprobs"], []))
    deltas = [event for event in sure.events if event["type"] == "delta"]
    assert all(-20.0 < event["logprob"] <= 0.0 for event in deltas)
    assert len({event["logprob"] for event in deltas}) > 3
    assert b"logprob" not in plain.stdout
    without = [{key: value for key, value in event.items() if key != "logprob"} for event in deltas]
    assert without == [event for event in plain.events if event["type"] == "delta"]


def test_a_daemon_tells_how_sure_the_model_is_to_those_who_ask(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon:
        attached, alone = (
            run("--logprobs", "--daemon", how, stdin=BEACH.read_bytes(), env=daemon.env) for how in ("require", "never")
        )
        told = [[one.get("logprob") for one in result.events if one["type"] == "delta"] for result in (attached, alone)]
        assert told[0] == pytest.approx(told[1], abs=0.01)  # in a batch, sums round otherwise
        assert None not in told[0]
        assert b"logprob" not in run("--daemon", "require", stdin=BEACH.read_bytes(), env=daemon.env).stdout
        # and what else it might have heard
        asked = (("--alternatives", "2", "--daemon", how) for how in ("require", "never"))
        attached, alone = (run(*options, stdin=BEACH.read_bytes(), env=daemon.env) for options in asked)
        others = [
            [[one["text"] for one in event["alternatives"]] for event in result.events if event["type"] == "delta"]
            for result in (attached, alone)
        ]
        assert others[0] == others[1]
        assert {len(texts) for texts in others[0]} == {2}


def test_a_heartbeat_comes_though_nothing_is_heard() -> None:
    with live("--heartbeat", "0.05") as voxpipe:
        voxpipe.write(2 * SECOND)
        wait_until(lambda: [e for e in list(voxpipe.events) if e["type"] == "heartbeat" and e["audio_s"] == 2.0])
        n = voxpipe.count("heartbeat")
        voxpipe.wait_for("heartbeat", n=n + 3)
        assert voxpipe.events[-1] == {"type": "heartbeat", "stream": "stdin", "audio_s": 2.0, "lag_ms": 0}
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        assert text_of(voxpipe.events) == ""


def test_the_command_line_is_there_before_numpy_is() -> None:
    """A pipe that a daemon serves waits for nothing but Python itself."""
    heavy = {"numpy", "mlx", "soundfile", "soxr", "huggingface_hub"}
    script = f"import sys, voxpipe.cli.main, voxpipe.service.attach; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[]\n"
