"""What a live stream reports beside its words: segments and signs of life."""

import signal
import subprocess
import sys

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import Event, live, run, text_of, wait_until
from voxpipe.errors import EX_OK

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
