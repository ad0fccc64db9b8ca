"""Text of the training speech: word normalisation, word spans in phoneme strings, spoken templates, byte-level BPE.

The written form is lower case with apostrophes and no other punctuation, because most recorded lists are in upper
case and teach nothing else. Digits are never written: numbers appear as words, as they are spoken.

Word spans rest on one fact: the phonemiser keeps one blank between words, so the n-th token of the text and the
n-th token of the phoneme string belong together. Sentences where the counts differ are left out.
"""

import base64
import collections
import gzip
import itertools
import json
import lzma
import re
import sys
from dataclasses import dataclass
from pathlib import Path

N_SPECIAL_TOKENS = 64
PUNCTUATION = ';:,.!?—…"()“”'


def words_of(text: str) -> list[str]:
    """Return the normalised words of `text`: lower case, letters and inner apostrophes, hyphens split words."""
    return [word for parts in _token_words(text) for word in parts]


def _token_words(text: str) -> list[list[str]]:
    """Return one list of words for each blank-separated token that holds a letter or a digit."""
    text = re.sub(r"[—–]|--+", " ", text.replace("’", "'").replace("‘", "'"))
    tokens = [token for token in text.split() if re.search(r"[A-Za-z0-9]", token)]
    split = [[re.sub(r"[^a-z']", "", part.lower()).strip("'") for part in re.split(r"[-/]", token)] for token in tokens]
    return [[part for part in parts if part] for parts in split]


@dataclass(frozen=True)
class SpokenWord:
    """A word and the characters of the phoneme string that speak it; a part of a hyphenated token ends at `fraction`."""

    word: str
    start: int
    stop: int
    fraction: float


@dataclass(frozen=True)
class Sentence:
    """A sentence ready for synthesis."""

    book: str
    phonemes: str
    words: list[SpokenWord]


def phoneme_spans(phonemes: str) -> list[tuple[int, int]]:
    """Return (start, stop) of every word in a phoneme string, its punctuation left out."""
    spans = []
    for match in re.finditer(r"[^ —]+", phonemes):
        start, stop = match.span()
        while start < stop and phonemes[start] in PUNCTUATION:
            start += 1
        while stop > start and phonemes[stop - 1] in PUNCTUATION:
            stop -= 1
        if phonemes[start:stop].strip("ˈˌ"):
            spans.append((start, stop))
    return spans


def build_sentence(book: str, text: str, phonemes: str) -> Sentence | None:
    """Return the sentence with its words placed, or None where text and phonemes do not match word by word."""
    tokens, spans = _token_words(text), phoneme_spans(phonemes)
    if len(tokens) != len(spans) or not tokens:
        return None
    words = []
    for parts, (start, stop) in zip(tokens, spans, strict=True):
        n_letters, done = sum(map(len, parts)), 0
        for part in parts:
            done += len(part)
            words.append(SpokenWord(part, start, stop, done / n_letters))
    return Sentence(book, phonemes, words) if words else None


def read_rows(path: Path) -> list[list[str]]:
    """Read a .tsv.xz or .tsv.gz of source, text, phonemes."""
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path, "rt", encoding="utf-8") as file:
        return [line.split("\t") for line in file.read().split("\n") if line]


def read_sentences(path: Path) -> list[Sentence]:
    """Read and place the sentences of a .tsv.xz or .tsv.gz of source, text, phonemes."""
    built = [build_sentence(*row) for row in read_rows(path)]
    return [sentence for sentence in built if sentence]


class WordPieces:
    """Byte-level BPE without a splitting pattern: each word is coded as a blank and its letters.

    Token ids start at N_SPECIAL_TOKENS; ranks 0..255 are the single bytes, then the merges in order.
    """

    def __init__(self, merges: list[bytes]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + merges
        self.ranks = {token: rank for rank, token in enumerate(self.tokens)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> "WordPieces":
        return cls([bytes(merge) for merge in json.loads(path.read_text())["merges"]])

    @classmethod
    def from_tekken(cls, path: Path) -> "WordPieces":
        """Return the pieces of a checkpoint's tekken.json."""
        vocab = json.loads(path.read_text())["vocab"]
        return cls([base64.b64decode(entry["token_bytes"]) for entry in vocab[256:]])

    @property
    def vocab_size(self) -> int:
        return N_SPECIAL_TOKENS + len(self.tokens)

    def encode(self, word: str) -> list[int]:
        if word not in self._cache:
            pieces = [bytes([byte]) for byte in (" " + word).encode()]
            while len(pieces) > 1:
                candidates = [(self.ranks.get(pieces[i] + pieces[i + 1], 1 << 30), i) for i in range(len(pieces) - 1)]
                rank, i = min(candidates)
                if rank == 1 << 30:
                    break
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            self._cache[word] = [N_SPECIAL_TOKENS + self.ranks[piece] for piece in pieces]
        return self._cache[word]

    def decode(self, ids: list[int]) -> str:
        """Return the text of a token stream; special tokens are skipped."""
        joined = b"".join(self.tokens[i - N_SPECIAL_TOKENS] for i in ids if i >= N_SPECIAL_TOKENS)
        return joined.decode("utf-8", "replace").strip()


def learn_merges(frequencies: dict[str, int], n_merges: int) -> list[bytes]:
    """Learn BPE merges from word frequencies."""
    words = [([bytes([byte]) for byte in (" " + word).encode()], n) for word, n in frequencies.items()]
    pair_counts: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    where: dict[tuple[bytes, bytes], set[int]] = collections.defaultdict(set)
    for index, (pieces, n) in enumerate(words):
        for pair in itertools.pairwise(pieces):
            pair_counts[pair] += n
            where[pair].add(index)
    merges: list[bytes] = []
    while len(merges) < n_merges:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merged = best[0] + best[1]
        if merged not in merges:
            merges.append(merged)
        for index in list(where[best]):
            pieces, n = words[index]
            for pair in itertools.pairwise(pieces):
                pair_counts[pair] -= n
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = [merged]
                else:
                    i += 1
            for pair in itertools.pairwise(pieces):
                pair_counts[pair] += n
                where[pair].add(index)
        del pair_counts[best], where[best]
    return merges


def main() -> None:
    """Learn the word pieces of a vocabulary of 1,024 from sentences: text.py SENTENCES PIECES.json"""
    sentences = read_sentences(Path(sys.argv[1]))
    counts = collections.Counter(word.word for sentence in sentences for word in sentence.words)
    merges = learn_merges(counts, 1024 - 256 - N_SPECIAL_TOKENS)
    Path(sys.argv[2]).write_text(json.dumps({"merges": [list(merge) for merge in merges]}))


if __name__ == "__main__":
    main()
