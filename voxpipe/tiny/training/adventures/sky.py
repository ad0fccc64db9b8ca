"""Spoken lines and subtitles of the CD game Beneath a Steel Sky, version 0.0372.

`sky.dnr` is the directory of `sky.dsk`: a 32-bit count, then eight bytes per file, a
16-bit file number, a 24-bit position (if bit 23 is set, the rest counts 16 bytes each)
and a 24-bit size with flags (22 bits of size, bit 23: stored as it is). Other files
begin with a 22-byte header, and if bit 7 of its first word is set, an RNC method 1
stream follows. All numbers are little-endian, but for RNC's own header.

A text number is (section << 12) + index. The texts of a section are one file, 60600 +
8 * language + section (language 0 is British English): a 16-bit
offset of the table of lengths, a 16-bit offset of the text, sums of the lengths of 32
texts each (not needed here), then one byte per text, its length in steps of two bits,
or in steps of 16 bits if bit 7 is set. The text is Huffman code, high bit first,
ending with a zero. The speech of a text is file 50000 + SPEECH[section] + index:
unsigned 8-bit mono samples at 11025 Hz behind the file header. The last sample is
sometimes a stray one that would click; it is left out. Who speaks is told by the game's scripts: what could be read off
them lies in sky.speakers.json, speaker to lines ("SECTION-INDEX").
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE = 11025
HEADER = 22
RNC_HEADER = 18
TEXTS = 60600
SPEECH = [50000, 50600, 51100, 52430, 53380, 54530, 55080, 55230]

# The leaves of the Huffman tree from left to right, and the depth of each in base 17.
LEAVES = (
    " eaostn.ir\0EumAlIdRNSTOhcDgLCpU!yMPvH?b'f,GBVkFqwK-WJ*zYj+Q\x85)Z\x8b<\x95~\x8a\x87:"
    '\x7f]#xX\x91\x88`20\x831/(=\x86^39\x984}8\\"\x90&\x8d56\x92\x8f\x8e\x93\x8c7\x80'
    "\x81\x99$@[\x9a_>\x96\x82%\t\x9c\x97{\x94!"
)
DEPTHS = (
    "3445555554665556666665776667777776887778877799888998889999AA9AA9BBAAABBABBACCBCCBCCBBBCCCC"
    "DDCCCDDDDDDDDEEDEEEEFFEEEFFEFFFGG"
)


def lines(folder: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield speaker, text, samples (int16, mono) and rate of every spoken line that has a text."""
    disk = _Disk(folder)
    named = json.loads(Path(__file__).with_name("sky.speakers.json").read_text())
    speakers = {line: speaker for speaker, said in named.items() for line in said}
    for section, base in enumerate(SPEECH):
        for index, text in enumerate(_texts(disk.read(TEXTS + section))):
            if text and base + index in disk.entries:
                sound = np.frombuffer(disk.read(base + index), np.uint8)[:-1]
                samples = (sound.astype(np.int16) - 128) * 256
                yield speakers.get(f"{section}-{index:04d}", "unknown"), text.replace("`", ""), samples, RATE


class _Disk:
    """The files of the game by their numbers."""

    def __init__(self, folder: Path) -> None:
        self.data = np.memmap(folder / "sky.dsk", np.uint8, "r")
        table = (folder / "sky.dnr").read_bytes()
        self.entries: dict[int, tuple[int, int, bool]] = {}
        for at in range(4, 4 + 8 * int.from_bytes(table[:4], "little"), 8):
            number, place, size = (
                int.from_bytes(table[at + i : at + j], "little") for i, j in ((0, 2), (2, 5), (5, 8))
            )
            start = (place & 0x7FFFFF) * (16 if place >> 23 else 1)
            self.entries[number] = start, size & 0x3FFFFF, bool(size >> 23)

    def read(self, number: int) -> bytes:
        """The content of a file, unpacked and without the header."""
        start, size, plain = self.entries[number]
        data = self.data[start : start + size].tobytes()
        if plain:
            return data
        return _unpack(data[HEADER:]) if data[0] & 0x80 else data[HEADER:]


def _texts(data: bytes) -> list[str]:
    """All texts of a section, by their index."""
    table, start = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    codes = _codes()
    bits = "".join(f"{byte:08b}" for byte in data[start:])
    texts, at = [], 0
    for length in data[table:start]:
        text, end, stop = "", at, at
        while not text.endswith("\0"):
            stop += 1
            if stop > len(bits):  # the table may be padded
                return texts
            if bits[end:stop] in codes:
                text, end = text + codes[bits[end:stop]], stop
        texts.append(text[:-1].strip())
        at += 2 * ((length & 0x7F) << 3 if length & 0x80 else length)
    return texts


def _codes() -> dict[str, str]:
    """The character of each Huffman code, the code written as zeros and ones."""
    codes, code = {}, ""
    for leaf, depth in zip(LEAVES, DEPTHS, strict=True):
        code = code.ljust(int(depth, 17), "0")
        codes[code] = leaf
        head = code.rstrip("1")
        code = head[:-1] + "1" if head else ""
    return codes


class _Bits:
    """Bits of an RNC stream, low bit first, from 16-bit words that are read when needed.

    Between the words lie bytes that are copied as they are, `at` is the next of them.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.store, self.count = data, RNC_HEADER, 0, 0

    def peek(self) -> int:
        """The coming bits, at least 16."""
        word = self.data[self.at : self.at + 2]
        return self.store | int.from_bytes(word, "little") << self.count

    def take(self, count: int) -> int:
        """The next `count` bits, at most 16."""
        if count > self.count:
            self.store, self.at, self.count = self.peek(), self.at + 2, self.count + 16
        value = self.store & (1 << count) - 1
        self.store >>= count
        self.count -= count
        return value

    def table(self) -> list[tuple[int, int]]:
        """A Huffman table: for each value of the coming bits, code length and symbol."""
        lengths = [self.take(4) for _ in range(self.take(5))]
        width = max(lengths, default=0)
        table, code = [(0, 0)] * (1 << width), 0
        for length, symbol in sorted((n, i) for i, n in enumerate(lengths) if n):
            first = int(f"{code >> width - length:0{length}b}"[::-1], 2)
            table[first :: 1 << length] = [(length, symbol)] * (1 << width - length)
            code += 1 << width - length
        return table

    def number(self, table: list[tuple[int, int]]) -> int:
        """The next number: a symbol is the count of its bits, the highest left out."""
        length, symbol = table[self.peek() & len(table) - 1]
        self.take(length)
        return symbol if symbol < 2 else 1 << symbol - 1 | self.take(symbol - 1)


def _unpack(data: bytes) -> bytes:
    """Unpack an RNC method 1 stream."""
    if data[:4] != b"RNC\1":
        raise ValueError("not RNC method 1")
    size, blocks = int.from_bytes(data[4:8], "big"), data[17]
    bits, out = _Bits(data), bytearray()
    bits.take(2)
    for _ in range(blocks):
        raw, distances, lengths = bits.table(), bits.table(), bits.table()
        for left in range(bits.take(16), 0, -1):
            if count := bits.number(raw):
                out += data[bits.at : bits.at + count]
                bits.at += count
            if left > 1:
                start = len(out) - bits.number(distances) - 1
                count = bits.number(lengths) + 2
                piece = out[start : start + count]
                out += (piece * count)[:count]  # it may reach into what it writes
    if len(out) != size:
        raise ValueError("wrong length after unpacking")
    return bytes(out)
