"""Sentences from free texts: prose, Bible verses, cookies, dictionaries and word nets become rows of kind and sentence.

Only sentences that can be spoken as they stand are kept: plain words and common punctuation, whole numbers below a
million turned into words. A sentence that shares six words in a row with a text of the `dev-*` lists is left out.

    python -m voxpipe.tiny.training.corpus OUT.tsv KIND=FILE ... --keep-apart INDEX.tsv [--limit KIND=N ...] [--longest WORDS]

KIND starts with the reader's name (prose, verses, cookies, glosses, definitions, rdata, descriptions), for example
`prose-faq=secA.md`. Files may be gzipped.
"""

import argparse
import csv
import gzip
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .templates import spoken_number
from .text import words_of

N_GRAM = 6
SHORTEST, LONGEST = 3, 32  # words
CHARACTERS_A_WORD = 6  # at most, on average
LONG_VERSE = 190  # characters
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
SPEAKABLE = re.compile(r"[A-Za-z][A-Za-z',;:.!?\" -]*")
ABBREVIATION = re.compile(r"\b(?:[A-Z]\.|[A-Z]{2,}|[a-z]\.[a-z]|etc|viz|esp|e\.g|i\.e|cf|Dr|Mr|Mrs|St)\b")
TITLES = {"Mr.": "Mister", "Mrs.": "Missus", "Dr.": "Doctor", "St.": "Saint", "&": "and"}


def read_text(path: Path) -> str:
    """Return the text of a plain or gzipped file, odd bytes left out."""
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8", "ignore")


def split_sentences(paragraph: str) -> list[str]:
    return SENTENCE_END.split(" ".join(paragraph.split()))


def prose(path: Path) -> Iterator[str]:
    """Yield the sentences of paragraphs parted by empty lines; headings and lists fall out by their form."""
    for paragraph in re.split(r"\n\s*\n", read_text(path)):
        if not re.match(r"\s*(?:[#>|*+-]|\d+[.)])", paragraph):
            yield from split_sentences(re.sub(r"\[[^\]]*\]\([^)]*\)|\[[^\]]*\]|\([^)]*\)|[*_`]", "", paragraph))


def verses(path: Path) -> Iterator[str]:
    """Yield the verses of lines such as `Ge1:1 In the beginning ...`; brackets around added words fall out."""
    for line in read_text(path).splitlines():
        verse = re.sub(r"[\[\]]", "", re.sub(r"^\S+\s", "", line))
        yield from re.split(r"(?<=[:;.?!])\s+", verse) if len(verse) > LONG_VERSE else [verse]


def cookies(path: Path) -> Iterator[str]:
    """Yield the sentences of fortunes parted by `%`, without their sources."""
    for cookie in re.split(r"\n%\n", read_text(path)):
        yield from split_sentences(re.sub(r"\n\s*--.*", "", cookie, flags=re.DOTALL))


def glosses(path: Path) -> Iterator[str]:
    """Yield definitions and quoted examples of a WordNet data file."""
    for line in read_text(path).splitlines():
        if not line.startswith("  ") and "|" in line:
            gloss = line.split("|", 1)[1]
            yield from re.findall(r"\"([^\"]{12,})\"", gloss)
            yield re.sub(r"\([^)]*\)|;\s*\".*|\".*", "", gloss)


def definitions(path: Path) -> Iterator[str]:
    """Yield definitions and quotations of a dictd database of Webster's form."""
    for paragraph in re.split(r"\n\s*\n", read_text(path)):
        body = " ".join(line for line in paragraph.splitlines() if line.startswith("   ") and "Webster]" not in line)
        body = re.sub(r"\[[^\]]*\]|\([^)]*\)|\{|\}|--[A-Z].*|^\s*(?:\d+\.|\([a-z]\))", "", body)
        for part in re.split(r"(?<=[.;!?])\s+", " ".join(body.split())):
            yield re.sub(r"^(?:as|also|hence|specifically|or|thus),\s+", "", part)


def rdata(path: Path) -> Iterator[str]:
    """Yield the sentences of an R lazy-load database that holds a book as one string a line."""
    data, at = path.read_bytes(), 0
    while at + 4 < len(data):
        stream = zlib.decompressobj()
        book = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        lines, start = [], book.find(b"\x00\x04\x00\t")
        while start >= 0:
            n_bytes = int.from_bytes(book[start + 4 : start + 8], "big")
            lines.append(book[start + 8 : start + 8 + n_bytes].decode("utf-8", "ignore"))
            start = book.find(b"\x00\x04\x00\t", start + 8 + n_bytes)
        for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
            yield from split_sentences(paragraph.replace("_", ""))


def descriptions(path: Path) -> Iterator[str]:
    """Yield the sentences of package descriptions in Debian's Translation files."""
    for entry in re.split(r"\n\n", read_text(path)):
        body = "\n".join(line[1:] for line in entry.splitlines() if line.startswith(" ") and not line.startswith("  "))
        for paragraph in re.split(r"\n\.\n", body):
            yield from split_sentences(paragraph)


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "prose": prose,
    "verses": verses,
    "cookies": cookies,
    "glosses": glosses,
    "definitions": definitions,
    "rdata": rdata,
    "descriptions": descriptions,
}


def speakable(sentence: str, choose: random.Random, longest: int = LONGEST) -> str | None:
    """Return the sentence with its numbers in words, or None if it cannot be read out as it stands or has too many words."""
    sentence = sentence.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    sentence = re.sub(r"\s+", " ", re.sub(r"[—–]|--+", ", ", sentence)).strip(" ;:,")
    for short, long in TITLES.items():
        sentence = sentence.replace(short, long)
    sentence = re.sub(r"\b\d{1,6}\b(?![.:,]\d)", lambda match: number_or_year(int(match[0]), choose), sentence)
    sentence = re.sub(r"\s+([,.;:!?])", r"\1", sentence)
    if (
        not SPEAKABLE.fullmatch(sentence)
        or ABBREVIATION.search(sentence)
        or len(sentence) > CHARACTERS_A_WORD * longest
    ):
        return None
    n_words = len(sentence.split())
    return sentence if SHORTEST <= n_words <= longest else None


def number_or_year(n: int, choose: random.Random) -> str:
    """Return a number in words; most numbers that could be years are read as years."""
    if 1100 <= n < 2000 and n % 100 >= 10 and choose.random() < 0.8:
        return f"{spoken_number(n // 100, choose)} {spoken_number(n % 100, choose)}"
    return spoken_number(n, choose)


def n_grams(text: str) -> Iterator[tuple[str, ...]]:
    words = words_of(text)
    return zip(*(words[i:] for i in range(N_GRAM)), strict=False)


def held_out(index: Path) -> set[tuple[str, ...]]:
    """Return every six words in a row of the `dev-*` lists of an index.tsv."""
    with open(index, encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {gram for row in rows if row["file"].startswith("dev-") for gram in n_grams(row["text"])}


def collect(
    sources: Iterable[tuple[str, Path]], apart: set[tuple[str, ...]], longest: int = LONGEST, seed: int = 1
) -> dict[str, list[str]]:
    """Return the speakable sentences of every kind in random order, each sentence once."""
    choose = random.Random(seed)
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for kind, path in sources:
        for raw in READERS[kind.split("-")[0]](path):
            sentence = speakable(raw, choose, longest)
            if sentence is None or sentence.lower() in seen or not apart.isdisjoint(n_grams(sentence)):
                continue
            seen.add(sentence.lower())
            found.setdefault(kind, []).append(sentence)
    for sentences in found.values():
        choose.shuffle(sentences)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="speakable sentences of free texts")
    parser.add_argument("out", type=Path, help=".tsv of kind and sentence")
    parser.add_argument("sources", nargs="+", help="KIND=FILE")
    parser.add_argument("--keep-apart", type=Path, required=True, help="index.tsv of the recorded lists")
    parser.add_argument("--limit", nargs="*", default=[], help="KIND=N: at most N sentences of this kind")
    parser.add_argument("--longest", type=int, default=LONGEST, help="words of a sentence")
    options = parser.parse_args()
    sources = [(kind, Path(path)) for kind, _, path in (source.partition("=") for source in options.sources)]
    limits = {kind: int(n) for kind, _, n in (limit.partition("=") for limit in options.limit)}
    with open(options.out, "w", encoding="utf-8") as file:
        for kind, sentences in collect(sources, held_out(options.keep_apart), options.longest).items():
            chosen = sentences[: limits.get(kind)]
            file.writelines(f"{kind}\t{sentence}\n" for sentence in chosen)
            print(f"{kind}: {len(chosen)} of {len(sentences)} sentences")


if __name__ == "__main__":
    main()
