"""Formats of a transcript, written while it is being made: txt, srt, vtt, json, jsonl.

Each takes deltas and writes to a binary stream what is certain. Only json, which begins with the whole text, keeps the
words until the end. This module knows nothing of where the stream leads.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from voxpipe.output.captions import (
    Cue,
    CueMaker,
    Word,
    WordJoiner,
    clock,
    is_pause,
    join_words,
    srt_escape,
    vtt_escape,
)
from voxpipe.output.events import JsonLines, StreamEvents
from voxpipe.output.transcript import Delta

TIME_STEP_MS = 80  # the model speaks once in that time


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known of a transcript before its first word.

    Attributes:
        name: what the recording is called in it, usually the path as it was given.
        channel: from 1; None if the channels were mixed.
    """

    name: str
    model: str
    delay_ms: int
    channel: int | None = None

    @property
    def stream(self) -> str:
        """The name that events give it."""
        return self.name if self.channel is None else f"{self.name}:ch{self.channel}"


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """The recording itself: what tells whether an output was made of it. None is unknown.

    Attributes:
        size: bytes.
        mtime: seconds since 1970, in microseconds.
        duration_s: of the sound that was read.
    """

    duration_s: float
    size: int | None = None
    mtime: float | None = None
    container: str | None = None
    encoding: str | None = None
    rate: int | None = None
    channels: int | None = None


class Format(Protocol):
    """A transcript being written; after `finish` or `fail` nothing more is."""

    def add(self, deltas: Iterable[Delta]) -> None: ...

    def finish(self, audio: AudioFacts, *, truncated: bool) -> None: ...

    def fail(self, code: str, message: str, *, audio_s: float) -> None:
        """End a transcript that an error cut short: what came before it is written out."""


class Text:
    """Plain text, a line per pause."""

    def __init__(self, output: BinaryIO, heading: Heading) -> None:
        self._output = output
        self._joiner = WordJoiner()
        self._last: Word | None = None

    def add(self, deltas: Iterable[Delta]) -> None:
        self._write(self._joiner.push(deltas))

    def finish(self, audio: AudioFacts, *, truncated: bool) -> None:
        self._end()

    def fail(self, code: str, message: str, *, audio_s: float) -> None:
        self._end()

    def _end(self) -> None:
        self._write(self._joiner.finish())
        if self._last is not None:
            self._output.write(b"\n")

    def _write(self, words: list[Word]) -> None:
        text = ""
        for word in words:
            if self._last is not None:
                text += "\n" if is_pause(self._last, word) else " " if word.spaced else ""
            text += word.text
            self._last = word
        self._output.write(text.encode())


class Srt:
    """SubRip."""

    def __init__(self, output: BinaryIO, heading: Heading) -> None:
        self._output = output
        self._joiner = WordJoiner()
        self._maker = CueMaker()
        self._n_cues = 0

    def add(self, deltas: Iterable[Delta]) -> None:
        self._write(self._maker.push(self._joiner.push(deltas)))

    def finish(self, audio: AudioFacts, *, truncated: bool) -> None:
        self._end(audio.duration_s)

    def fail(self, code: str, message: str, *, audio_s: float) -> None:
        self._end(audio_s)

    def _end(self, audio_s: float) -> None:
        self._write(self._maker.push(self._joiner.finish()) + self._maker.finish(audio_s))

    def _write(self, cues: list[Cue]) -> None:
        for cue in cues:
            self._n_cues += 1
            self._output.write(self._cue(cue).encode())

    def _cue(self, cue: Cue) -> str:
        times = f"{clock(cue.start, point=',')} --> {clock(cue.end, point=',')}"
        return "\n".join([str(self._n_cues), times, *map(srt_escape, cue.lines)]) + "\n\n"


class Vtt(Srt):
    """WebVTT; a note says how far its times are to be trusted."""

    def __init__(self, output: BinaryIO, heading: Heading) -> None:
        super().__init__(output, heading)
        model = vtt_escape(" ".join(heading.model.split()))
        note = f"NOTE model {model}, delay {heading.delay_ms} ms, times in steps of {TIME_STEP_MS} ms"
        output.write(f"WEBVTT\n\n{note}\n\n".encode())

    def _cue(self, cue: Cue) -> str:
        times = f"{clock(cue.start, point='.')} --> {clock(cue.end, point='.')}"
        return "\n".join([times, *map(vtt_escape, cue.lines)]) + "\n\n"


class Json:
    """One object: the text, how it was made and of what, segments and words, each of them on a line of its own."""

    def __init__(self, output: BinaryIO, heading: Heading) -> None:
        self._output = output
        self._heading = heading
        self._joiner = WordJoiner()
        self._segments: list[list[Word]] = []

    def add(self, deltas: Iterable[Delta]) -> None:
        self._add(self._joiner.push(deltas))

    def finish(self, audio: AudioFacts, *, truncated: bool) -> None:
        self._write(audio, truncated=truncated)

    def fail(self, code: str, message: str, *, audio_s: float) -> None:
        self._write(AudioFacts(audio_s), truncated=True, error={"code": code, "message": message})

    def _add(self, words: list[Word]) -> None:
        for word in words:
            if not self._segments or is_pause(self._segments[-1][-1], word):
                self._segments.append([])
            self._segments[-1].append(word)

    def _write(self, audio: AudioFacts, *, truncated: bool, **extra: Any) -> None:
        self._add(self._joiner.finish())
        words = [word for segment in self._segments for word in segment]
        facts = {
            "path": self._heading.name,
            "size": audio.size,
            "mtime": audio.mtime,
            "duration_s": round(audio.duration_s, 2),
            "container": audio.container,
            "encoding": audio.encoding,
            "rate": audio.rate,
            "channels": audio.channels,
            "channel": self._heading.channel,
        }
        head = {
            "v": 1,
            "text": join_words(words),
            "model": self._heading.model,
            "delay_ms": self._heading.delay_ms,
            "truncated": truncated,
            **extra,
            "time_step_ms": TIME_STEP_MS,
            "audio": {name: value for name, value in facts.items() if value is not None},
        }
        self._output.write(b"{\n")
        for name, value in head.items():
            self._output.write(f"{_dump(name)}: {_dump(value)},\n".encode())
        self._write_list("segments", [_segment(segment) for segment in self._segments], end=",")
        self._write_list("words", [_word(word) for word in words], end="")
        self._output.write(b"}\n")

    def _write_list(self, name: str, items: list[dict[str, Any]], *, end: str) -> None:
        self._output.write(f"{_dump(name)}: [\n".encode())
        for n, item in enumerate(items, start=1):
            self._output.write(f"{_dump(item)}{',' if n < len(items) else ''}\n".encode())
        self._output.write(f"]{end}\n".encode())


class Events:
    """The events of `listen`, for one recording."""

    def __init__(self, output: BinaryIO, heading: Heading, *, is_alone: bool = True) -> None:
        """Begin them, with `ready` if the output holds this recording alone."""
        lines = JsonLines(output)
        if is_alone:
            lines.ready(model=heading.model, delay_ms=heading.delay_ms)
        self._events = StreamEvents(lines, stream=heading.stream, source=heading.name)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            self._events.delta(delta)

    def finish(self, audio: AudioFacts, *, truncated: bool) -> None:
        self._events.done(reason="eof", audio_s=audio.duration_s, truncated=truncated)

    def fail(self, code: str, message: str, *, audio_s: float) -> None:
        self._events.error(code, message)
        self._events.done(reason="error", audio_s=audio_s, truncated=False)

    def stop(self, *, audio_s: float) -> None:
        """End them because a signal says so."""
        self._events.done(reason="signal", audio_s=audio_s, truncated=False)


FORMATS: dict[str, type[Text] | type[Srt] | type[Vtt] | type[Json] | type[Events]] = {
    "txt": Text,
    "srt": Srt,
    "vtt": Vtt,
    "json": Json,
    "jsonl": Events,
}


def _segment(words: list[Word]) -> dict[str, Any]:
    return {"text": join_words(words), "start": round(words[0].start, 2), "end": round(words[-1].end, 2)}


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": round(word.start, 2),
        "end": round(word.end, 2),
        "probability": round(word.probability, 4),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
