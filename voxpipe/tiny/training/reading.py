"""Texts that nobody speaks, from which the decoder learns what is likely: it reads them with nothing to hear.

A sequence of reading is the token stream of some sentences at the pace of speech, as the decoder would see it if they were
spoken; its audio embeddings are zero. The same texts tell which words follow each other where recorded speech is spliced
(`targets`).
"""

import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from .text import WordPieces, words_of

LEAST_COUNT = 2  # of a pair of words that may be spliced
WORD_S, PIECE_S = 0.12, 0.11  # of a word's length, besides chance
PAUSE_S = 0.6  # at most, between sentences


class Texts:
    """Sentences as token ids, in flat arrays that processes can share."""

    def __init__(self, sentences: Iterable[str], pieces: WordPieces) -> None:
        tokens: list[int] = []
        word_ends, sentence_ends = [0], [0]
        counts: Counter[tuple[str, str]] = Counter()
        for sentence in sentences:
            words = words_of(sentence)
            counts.update(pairwise(words))
            for word in words:
                tokens += pieces.encode(word)
                word_ends.append(len(tokens))
            sentence_ends.append(len(word_ends) - 1)
        self.tokens = np.array(tokens, np.int16)
        self.word_ends, self.sentence_ends = np.array(word_ends), np.array(sentence_ends)
        self.pairs = frozenset(
            _pair(pieces.encode(a), pieces.encode(b)) for (a, b), n in counts.items() if n >= LEAST_COUNT
        )

    def __len__(self) -> int:
        return len(self.sentence_ends) - 1

    def words(self, i: int) -> list[list[int]]:
        """Return the words of sentence i as token ids."""
        ends = self.word_ends[self.sentence_ends[i] : self.sentence_ends[i + 1] + 1].tolist()
        return [self.tokens[start:end].tolist() for start, end in pairwise(ends)]

    def follow(self, word: list[int], following: list[int]) -> bool:
        """Return whether two words stand side by side in the texts."""
        return _pair(word, following) in self.pairs

    def read(self, choose: random.Random, until_s: float) -> list[tuple[float, list[int]]]:
        """Return words of random sentences as (end in seconds, token ids), at the pace of a speaker who is drawn."""
        words: list[tuple[float, list[int]]] = []
        tempo, at = choose.uniform(0.7, 1.2), choose.uniform(0.0, 1.0)
        while at < until_s:
            for ids in self.words(choose.randrange(len(self))):
                at += (WORD_S + PIECE_S * len(ids)) * tempo * choose.lognormvariate(0.0, 0.3)
                words.append((at, ids))
            at += choose.uniform(0.0, PAUSE_S)
        return words


def _pair(word: list[int], following: list[int]) -> int:
    return hash((*word, -1, *following))
