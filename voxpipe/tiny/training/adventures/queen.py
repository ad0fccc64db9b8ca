"""Spoken lines and subtitles of the talkie "Flight of the Amazon Queen" (English freeware CD).

`queen.1c`, all numbers big-endian:
    "QTBL", 6 bytes version, 2 bytes, u8 compression (1 MP3, 2 Ogg Vorbis, 3 FLAC), u16 count,
    then per resource: 12 bytes name, u8 bundle, u32 offset, u32 size.
Speech is stored as `NAME.SB`, the texts are stored in three kinds of resource:
    *.DOG       a dialogue tree and its sentences: voice = key (2 digits), sentence (4 hex digits),
                J (the hero, Joe) or P (the other); SSSS: Joe's greeting, XXXX: the second meeting.
    *.CUT       a cutscene, a list of steps with one sentence each: voice = name of the cutscene
                padded to 5 with "_", number of the step (2 digits).
    QUEEN2.JAS  a list of lines: descriptions of objects, names, rooms, 12 verbs, 40 answers of Joe;
                voice = JOE and 4 digits: the answers are 1-40, the descriptions follow.
A sentence is cut into segments by stage directions: "*" and two characters, "*XY" with 11 more.
Each segment has its own voice file, whose name ends in its number (hex, from 1).
"""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

_HEADER = 20  # bytes before the content of *.DOG, *.CUT and QUEEN.JAS
_ANSWERS = 40  # lines of Joe that describe no object
_VERBS = 12
ALIASES = {"AND": "ANDERSON", "SEC": "SECRETARY", "TRADER BOB": "BOB", "GUARDIAN": "ORACLE", "ZOMBIE WOMAN": "ZOMBIE"}
_PICTURES = str.maketrans("", "", "^_@")  # characters drawn as trade mark and hearts
_DIRECTION = re.compile(r"\*(?:XY.{11}|.{0,2})", re.DOTALL)


class _Sentence(NamedTuple):
    voice: str  # name of the voice files without the number of the segment
    speaker: str
    text: str  # with stage directions


class _Reader:
    """Big-endian numbers and counted strings from a position onwards."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def ints(self, count: int) -> tuple[int, ...]:
        values = struct.unpack_from(f">{count}h", self.data, self.position)
        self.position += 2 * count
        return values

    def string(self, align: int = 2) -> str:
        size = self.data[self.position]
        start = self.position + 1
        self.position = start
        if size:
            self.position = -(-(start + size) // align) * align
        return self.data[start : start + size].decode("cp437")


class _Names:
    """The names of all objects and persons, and the lines of Joe (QUEEN.JAS and QUEEN2.JAS)."""

    def __init__(self, numbers: bytes, texts: bytes) -> None:
        reader = _Reader(numbers, _HEADER)
        rooms, names, objects, descriptions = reader.ints(4)
        records = [reader.ints(8) for _ in range(objects)]
        lines = texts.decode("cp437").replace("\r\n", "\n").split("\n")
        answers = descriptions + names + rooms + _VERBS
        self.joe = lines[answers : answers + _ANSWERS] + lines[:descriptions]
        self._names = lines[descriptions : descriptions + names]
        self._objects = [(abs(record[0]), record[7]) for record in records]

    def name(self, number: int) -> str:
        """The name of an object; 0 is Joe, below 0 is text that nobody on the screen says."""
        if number <= 0:
            return "" if number else "JOE"
        index = self._objects[number - 1][0]
        return self._names[index - 1].upper() if index else ""

    def person(self, number: int) -> bool:
        return number == 0 or (number > 0 and self._objects[number - 1][1] in (-3, -4))


def _dialogue(name: str, data: bytes) -> Iterator[_Sentence]:
    levels, _, key, joe_count, other_count = _Reader(data).ints(5)
    other_start, _, again_start = struct.unpack_from(">3H", data, 22)
    other = re.split(r"\d", name)[0]
    parts = (("J", "JOE", 32 + 96 * abs(levels), joe_count), ("P", other, other_start, other_count))
    for letter, speaker, start, count in parts:
        reader = _Reader(data, start)
        for _ in range(count):
            _, number = reader.ints(2)
            node = f"{number:04X}" if number else "SSSS"
            yield _Sentence(f"{key:02d}{node}{letter}", speaker, reader.string(4))
    reader = _Reader(data, again_start)
    for letter, speaker in (("P", other), ("J", "JOE")):
        yield _Sentence(f"{key:02d}XXXX{letter}", speaker, reader.string())


def _cutscene(name: str, data: bytes, names: _Names) -> Iterator[_Sentence]:
    reader = _Reader(data, 12)
    sentences = _Reader(data, struct.unpack_from(">H", data, 8)[0])
    sentences.string()  # the direction Joe looks at first
    for step in range(1, abs(struct.unpack_from(">h", data, 2)[0]) + 1):
        fields = reader.ints(17)
        actor, animations, execute, source = fields[0], fields[4], fields[5], fields[12]
        reader.ints(*reader.ints(1))  # persons on the screen
        speaks = not animations and names.person(actor)
        if actor not in (-2, -3, -4) and source <= 0 and not speaks and execute:
            while reader.ints(1)[0] != -2:  # animation frames
                reader.ints(9)
        yield _Sentence(f"{name:_<5}{step:02d}", names.name(actor), sentences.string())


def _sentences(resources: dict[str, bytes]) -> Iterator[_Sentence]:
    names = _Names(resources["QUEEN.JAS"], resources["QUEEN2.JAS"])
    for number, text in enumerate(names.joe, 1):
        yield _Sentence(f"JOE{number:04d}", "JOE", text)
    for name, data in resources.items():
        stem, _, kind = name.partition(".")
        if kind == "DOG":
            yield from _dialogue(stem, data[_HEADER:])
        elif kind == "CUT":
            yield from _cutscene(stem, data[_HEADER:], names)


def _resources(file: Path) -> dict[str, bytes]:
    data = file.read_bytes()
    if data[:4] != b"QTBL" or data[12] not in (1, 2, 3):
        raise ValueError(f"{file} is no compressed queen.1c")
    (count,) = struct.unpack_from(">H", data, 13)
    table = struct.iter_unpack(">12sxII", data[15 : 15 + 21 * count])
    return {name.rstrip(b"\0").decode("ascii"): data[start : start + size] for name, start, size in table}


def _segments(resources: dict[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """Voice file, speaker and text of all segments that have text and a voice."""
    seen: set[str] = set()
    for sentence in _sentences(resources):
        for number, part in enumerate(_DIRECTION.split(sentence.text), 1):
            voice = f"{sentence.voice}{number:X}"
            text = " ".join(part.translate(_PICTURES).split())
            if text and voice not in seen and f"{voice}.SB" in resources:
                seen.add(voice)
                yield voice, sentence.speaker, text


def lines(file: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield speaker, text, samples (int16, mono) and rate of every line."""
    resources = _resources(file)
    for voice, speaker, text in _segments(resources):
        samples, rate = soundfile.read(io.BytesIO(resources[f"{voice}.SB"]), dtype="int16")
        yield ALIASES.get(speaker, speaker).lower(), text, samples.reshape(len(samples), -1)[:, 0], rate
