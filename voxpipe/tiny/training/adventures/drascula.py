"""Spoken lines of the adventure "Drascula: The Vampire Strikes Back" (freely licensed; English edition).

The folder holds one voice file per line, X.ALS: headerless unsigned 8-bit mono PCM at 11025 Hz. The engine leaves
out 32 bytes at each end; 3.ALS has long silences besides, which it leaves out too. Other .ALS files are sound effects.

drascula.dat (version 6, big-endian) holds the texts: "DRASCULA", a version byte, 13 tables of fixed-width records
(a 16-bit count, then the records; none is text), the 16-bit number of languages, and then the text tables. A text
table is a 16-bit count of texts, then per language (English first) a 16-bit byte length, 2 bytes of padding, and the
texts: each a 16-bit size of the whole entry (itself included), the NUL-terminated string (code page 850), padding.

Text n of a table is spoken in <prefix of the table>n.ALS; the hero's table has no prefix. Unused texts are empty.
The texts are in capitals.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE = 11025
VERSION = 6
RECORD_WIDTHS = (4, 4, 4, 2, 4, 2, 4, 2, 2, 20, 20, 10, 8)  # bytes per record of the tables before the texts
CHARACTERS = {  # prefix of the voice files -> speaker, in the order of the text tables
    "": "hacker",
    "D": "drascula",
    "B": "drunk",
    "BJ": "bj",
    "E": "mus",
    "I": "igor",
    "L": "werewolf",
    "P": "pianist",
    "T": "bartender",
    "VB": "von_braun",
}
OTHER_D_SPEAKERS = (  # Drascula's table also holds lines of others
    (range(56, 68), "hacker"),
    (range(68, 79), "blind_man"),
    (range(82, 83), "bartender"),
    (range(83, 84), "trunk"),
)
INCOMPLETE = ("207", "278", "367", "368", "D83")  # files that hold a part of their text only
EDGE = 32  # bytes at either end of a voice file that are not played
SPEECH_ONLY = {"3": slice(73959, 117094)}  # a file with long silences: the part the engine plays


class _Reader:
    """Reads big-endian 16-bit numbers and byte strings one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.at += size
        if self.at > len(self.data):
            raise ValueError("drascula.dat ends too early")
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        """The next 16-bit number."""
        return int.from_bytes(self.take(2), "big")


def english_texts(data: bytes) -> dict[str, list[str]]:
    """The English texts in the bytes of drascula.dat, by prefix of the voice files."""
    reader = _Reader(data)
    if reader.take(8) != b"DRASCULA" or reader.take(1)[0] != VERSION:
        raise ValueError(f"not a drascula.dat of version {VERSION}")
    for width in RECORD_WIDTHS:
        reader.take(reader.number() * width)
    languages = reader.number()
    tables: dict[str, list[str]] = {}
    for prefix in CHARACTERS:
        count = reader.number()
        blocks = [reader.take(reader.number()) for _ in range(languages)]
        tables[prefix] = _strings(blocks[0], count)
    return tables


def _strings(block: bytes, count: int) -> list[str]:
    reader = _Reader(block)
    reader.take(2)
    raw = [reader.take(reader.number() - 2) for _ in range(count)]
    return [" ".join(entry.partition(b"\0")[0].decode("cp850").split()) for entry in raw]


def samples(path: Path) -> np.ndarray:
    """The audible part of a voice file as 16-bit samples."""
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    part = SPEECH_ONLY.get(path.stem, slice(EDGE, -EDGE))
    return (raw[part].astype(np.int16) - 128) << 8


def speaker(prefix: str, number: int) -> str:
    """Who says line `number` of the table with this prefix."""
    if prefix == "D":
        for numbers, name in OTHER_D_SPEAKERS:
            if number in numbers:
                return name
    return CHARACTERS[prefix]


def lines(folder: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield speaker, text, samples (int16, mono) and rate of every line that has both a text and a voice file."""
    for prefix, texts in english_texts((folder / "drascula.dat").read_bytes()).items():
        for number, text in enumerate(texts):
            path = folder / f"{prefix}{number}.ALS"
            if text and path.exists() and path.stem not in INCOMPLETE:
                yield speaker(prefix, number), text, samples(path), RATE
