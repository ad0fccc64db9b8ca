"""Formats: what each of them makes of the same deltas, read back by parsers that are not ours."""

import io
import json

import pysrt
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.output.formats import FORMATS, AudioFacts, Heading
from voxpipe.output.transcript import Delta

HEADING = Heading("talk.wav", "tiny", 480)
AUDIO = AudioFacts(
    9.0, size=288_044, mtime=1790000000.123456, container="WAV", encoding="PCM_16", rate=16_000, channels=1
)
DELTAS = [
    Delta(" I", start=0.1, end=0.4, tokens=(1,), logprob=-0.1),
    Delta(" sa", start=0.4, end=0.8, tokens=(2,), logprob=-0.2),
    Delta("w", start=0.4, end=0.8, tokens=(3,), logprob=-0.4),
    Delta(" a < b", start=0.8, end=1.2, tokens=(4,), logprob=0.0),
    Delta(" & --> c.", start=1.2, end=1.6, tokens=(5, 6), logprob=-0.5),
    Delta(" Then", start=5.0, end=5.5, tokens=(7,), logprob=0.0),
]


def written(name: str, deltas: list[Delta], heading: Heading = HEADING, audio: AudioFacts = AUDIO) -> str:
    output = io.BytesIO()
    format = FORMATS[name](output, heading)
    for delta in deltas:
        format.add([delta])
    format.finish(audio, truncated=False)
    return output.getvalue().decode()


def failed(name: str, deltas: list[Delta]) -> str:
    output = io.BytesIO()
    format = FORMATS[name](output, HEADING)
    format.add(deltas)
    format.fail("audio", "talk.wav: damaged", audio_s=9.0)
    return output.getvalue().decode()


def test_txt() -> None:
    assert written("txt", DELTAS) == "I saw a < b & --> c.\nThen\n"
    assert written("txt", []) == ""
    assert failed("txt", DELTAS[:3]) == "I saw\n"


def test_srt() -> None:
    text = written("srt", DELTAS)
    assert text == (
        "1\n00:00:00,100 --> 00:00:01,600\nI saw a <\u2060 b & --\u2060> c.\n\n"
        "2\n00:00:05,000 --> 00:00:05,840\nThen\n\n"
    )
    first, second = pysrt.from_string(text, error_handling=pysrt.ERROR_RAISE)
    assert (first.start.ordinal, first.end.ordinal, second.start.ordinal) == (100, 1600, 5000)
    assert written("srt", []) == ""
    assert failed("srt", DELTAS[:3]) == "1\n00:00:00,100 --> 00:00:00,940\nI saw\n\n"


def test_vtt() -> None:
    text = written("vtt", DELTAS)
    assert text.startswith("WEBVTT\n\nNOTE model tiny, delay 480 ms, times in steps of 80 ms\n\n")
    first, second = webvtt.from_string(text)
    assert (first.start, first.end, second.text) == ("00:00:00.100", "00:00:01.600", "Then")
    assert first.raw_text == "I saw a &lt; b &amp; --&gt; c."
    assert len(webvtt.from_string(written("vtt", []))) == 0
    odd = written("vtt", DELTAS, Heading("a", "my\n--> model", 480))
    assert len(webvtt.from_string(odd)) == 2


def test_json() -> None:
    result = json.loads(written("json", DELTAS, Heading("talk.wav", "tiny", 480, channel=2)))
    assert result == {
        "v": 1,
        "text": "I saw a < b & --> c. Then",
        "model": "tiny",
        "delay_ms": 480,
        "truncated": False,
        "time_step_ms": 80,
        "audio": {
            "path": "talk.wav",
            "size": 288_044,
            "mtime": 1790000000.123456,
            "duration_s": 9.0,
            "container": "WAV",
            "encoding": "PCM_16",
            "rate": 16_000,
            "channels": 1,
            "channel": 2,
        },
        "segments": [
            {"text": "I saw a < b & --> c.", "start": 0.1, "end": 1.6},
            {"text": "Then", "start": 5.0, "end": 5.5},
        ],
        "words": [
            {"word": "I", "start": 0.1, "end": 0.4, "probability": 0.9048},
            {"word": "saw", "start": 0.4, "end": 0.8, "probability": 0.7408},  # exp((-0.2 - 0.4) / 2)
            {"word": "a", "start": 0.8, "end": 1.2, "probability": 1.0},
            {"word": "<", "start": 0.8, "end": 1.2, "probability": 1.0},
            {"word": "b", "start": 0.8, "end": 1.2, "probability": 1.0},
            {"word": "&", "start": 1.2, "end": 1.6, "probability": 0.7788},
            {"word": "-->", "start": 1.2, "end": 1.6, "probability": 0.7788},
            {"word": "c.", "start": 1.2, "end": 1.6, "probability": 0.7788},
            {"word": "Then", "start": 5.0, "end": 5.5, "probability": 1.0},
        ],
    }
    empty = json.loads(written("json", [], audio=AudioFacts(2.0)))
    assert (empty["text"], empty["words"], empty["segments"]) == ("", [], [])
    assert empty["audio"] == {"path": "talk.wav", "duration_s": 2.0}
    damaged = json.loads(failed("json", DELTAS))
    assert damaged["truncated"] is True
    assert damaged["error"] == {"code": "audio", "message": "talk.wav: damaged"}


def test_jsonl() -> None:
    events = [json.loads(line) for line in written("jsonl", DELTAS).splitlines()]
    assert [event["type"] for event in events] == ["ready", "start", *["delta"] * 6, "done"]
    assert "".join(event["text"] for event in events if event["type"] == "delta") == "".join(DELTAS)
    assert events[-1]["reason"] == "eof"
    split = written("jsonl", DELTAS, Heading("talk.wav", "tiny", 480, channel=2))
    assert json.loads(split.splitlines()[1]) == {"type": "start", "stream": "talk.wav:ch2", "source": "talk.wav"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.sampled_from([0.0, 0.08, 0.4, 3.0])), max_size=30))
def test_parsers_that_are_not_ours_read_captions_of_any_text(pieces: list[tuple[str, float]]) -> None:
    deltas, at = [], 0.0
    for text, duration_s in pieces:
        deltas.append(Delta(text, start=at, end=at + duration_s, tokens=(1,), logprob=-0.1))
        at += duration_s
    srt = pysrt.from_string(written("srt", deltas), error_handling=pysrt.ERROR_RAISE)
    vtt = webvtt.from_string(written("vtt", deltas))
    assert len(srt) == len(vtt)
    assert [item.index for item in srt] == list(range(1, len(srt) + 1))
    previous_end = 0
    for item, caption in zip(srt, vtt, strict=True):
        assert previous_end <= item.start.ordinal < item.end.ordinal
        assert len(caption.raw_text.splitlines()) <= 2
        assert [str(item.start), str(item.end)] == [caption.start.replace(".", ","), caption.end.replace(".", ",")]
        previous_end = item.end.ordinal


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "jsonl"])
def test_what_is_known_is_written_at_once(name: str) -> None:
    output = io.BytesIO()
    format = FORMATS[name](output, HEADING)
    n_bytes = []
    for n in range(2000):
        format.add([Delta(f" word{n}", start=n * 0.4, end=n * 0.4 + 0.4, tokens=(1,), logprob=-0.1)])
        n_bytes.append(output.tell())
    written_late = [after - before for before, after in zip(n_bytes, n_bytes[100:], strict=False)]
    assert min(written_late) > 0
