"""Training sequences: which pieces of which speech stand where, and the tokens the model owes at each position.

A sequence is LEFT_PAD tokens of silence and then `n_tokens - LEFT_PAD` tokens (80 ms each) of speech blocks with gaps.
Synthetic blocks are mostly whole sentences. Recorded blocks are always random runs of words, half of them spliced from
several clips of one speaker, so that no clip can be learned by heart; where they are joined, the words follow each other in the
training text too, if possible, lest recorded speech seem to make no sense. Runs on the CPU, in data-loader workers; the audio
itself is fetched later from a bank on the accelerator, by the plan made here.

Target rule: a word that ends in slot e = ceil(end / 80 ms) - 1 is due at output position LEFT_PAD + delay + e. If nothing is
waiting, [STREAMING_WORD] and its pieces follow, one a slot; if earlier pieces still wait, its pieces follow directly.
Everything else is [STREAMING_PAD].
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .bank import Utterance
from .network import BOS, LEFT_PAD, PAD, TOKEN_SAMPLES, WORD
from .reading import Texts
from .ring import SegmentReader

DELAYS = [6] * 10 + [1, 2, 3, 3, 4, 4, 5, 5, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 30, 30]
MAX_PIECES = 48
SHORT_SOURCES = ("synthetic-command", "synthetic-short", "train-commands", "train-wakewords", "train-wakewords2")
SHORT_START = 0.3  # of the sequences begin with one of these: a stream of one word has only its beginning
SUDDEN = 0.5  # of the sequences that begin with speech leave out what lies before its first sound
SPLICE_TRIES = 40  # runs drawn until one begins with a word that may follow
MAX_CTC_TOKENS = 200
IGNORED = -100
SAMPLE_RATE = 16000


@dataclass
class Piece:
    """A stretch of the bank to be placed in a sequence: bank position, start and length in the sequence."""

    bank_start: int
    utterance_base: int
    start: int
    length: int
    rate: float
    gain_db: float
    warp: float
    twin: int  # way to the same stretch in other sounds, 0 without one


@dataclass
class Sequence:
    pieces: list[Piece]
    targets: np.ndarray  # (n_tokens,) token after each position, IGNORED inside the prompt
    inputs: np.ndarray  # (n_tokens,) token before each position
    delay: int
    silence_from: int  # sample from which the signal is digital zero
    gated: bool  # noise only where speech is
    ctc: list[int] = field(default_factory=list)


def emit(words: list[tuple[float, list[int]]], delay: int, n_tokens: int) -> np.ndarray:
    """Return the target token of every position for words given as (end in samples, token ids)."""
    targets = np.full(n_tokens, PAD, np.int64)
    origin = LEFT_PAD + delay
    targets[:origin] = IGNORED
    next_free = 0
    for end, ids in words:
        slot = max(0, -(-int(end) // TOKEN_SAMPLES) - 1)
        owed = [WORD, *ids] if slot >= next_free else ids
        slot = max(slot, next_free)
        position = origin + slot
        if position >= n_tokens:
            break
        stop = min(n_tokens, position + len(owed))
        targets[position:stop] = owed[: stop - position]
        next_free = slot + len(owed)
    return targets


def previous(targets: np.ndarray, delay: int) -> np.ndarray:
    """Return the token before each position: the prompt, then the targets."""
    inputs = np.full(len(targets), PAD, np.int64)
    inputs[0] = BOS
    inputs[LEFT_PAD + delay + 1 :] = targets[LEFT_PAD + delay : -1]
    return inputs


class SequencePlanner(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of sequence plans.

    Args:
        recorded: utterances that stay; they are used as word runs only.
        index: folder in which the ring tells what synthetic speech there is.
        mix_path: JSON {source: share of the time}; read again when it changes, so the mix may be edited while
            training runs. A source of which there is nothing is skipped.
        texts: for sequences of reading, and for what may be spliced; without them there is no reading, and anything may.
    """

    def __init__(
        self,
        recorded: list[Utterance],
        index: Path,
        mix_path: Path,
        *,
        batch_size: int,
        n_tokens: int,
        seed: int,
        texts: Texts | None = None,
    ) -> None:
        self.mix_path, self.texts = mix_path, texts
        self.batch_size, self.n_tokens, self.seed = batch_size, n_tokens, seed
        self.ring = SegmentReader(index)
        self.recorded: dict[str, list[Utterance]] = defaultdict(list)
        by_speaker: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
        for utterance in recorded:
            self.recorded[utterance.source].append(utterance)
            by_speaker[utterance.source][utterance.speaker].append(utterance)
        self.by_speaker = {source: dict(speakers) for source, speakers in by_speaker.items()}
        self.synthetic: dict[str, list[Utterance]] = {}
        self.mix_time = -1

    def _refresh(self) -> None:
        """Read the mix and the list of synthetic speech again if they changed."""
        mix_time = self.mix_path.stat().st_mtime_ns
        moved = self.ring.changed()
        if moved:
            found: dict[str, list[Utterance]] = defaultdict(list)
            for utterance in self.ring.utterances():
                found[utterance.source].append(utterance)
            self.synthetic = dict(found)
        if moved or mix_time != self.mix_time:
            self.mix_time = mix_time
            mix = json.loads(self.mix_path.read_text())
            self.sources = [source for source in mix if self.recorded.get(source) or self.synthetic.get(source)]
            self.shares = [mix[source] for source in self.sources]
            self.short_sources = [source for source in self.sources if source in SHORT_SOURCES]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        choose = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            self._refresh()
            plan = collate([self.plan(choose) for _ in range(self.batch_size)])
            yield plan | self._reading(choose, self.batch_size if self.texts else 0)

    def _reading(self, choose: random.Random, n_rows: int) -> dict[str, torch.Tensor]:
        """Return sequences of reading: "read_targets" and "read_inputs" (n_rows, n_tokens), "read_delay" (n_rows,)."""
        delays = [choose.choice(DELAYS) for _ in range(n_rows)]
        targets = np.full((n_rows, self.n_tokens), IGNORED, np.int64)
        inputs = np.full((n_rows, self.n_tokens), PAD, np.int64)
        for row, delay in enumerate(delays):
            assert self.texts is not None
            words = self.texts.read(choose, self.n_tokens * TOKEN_SAMPLES / SAMPLE_RATE)
            targets[row] = emit([(end * SAMPLE_RATE, ids) for end, ids in words], delay, self.n_tokens)
            inputs[row] = previous(targets[row], delay)
        return {
            "read_targets": torch.from_numpy(targets),
            "read_inputs": torch.from_numpy(inputs),
            "read_delay": torch.tensor(delays, dtype=torch.float32),
        }

    def plan(self, choose: random.Random) -> Sequence:
        """Plan one sequence."""
        delay = choose.choice(DELAYS)
        n_slots = self.n_tokens - LEFT_PAD
        n_silent = min(delay + 11 + choose.randint(0, 10), n_slots // 2) if choose.random() < 0.5 else 0
        limit = (n_slots - n_silent) * TOKEN_SAMPLES
        pieces: list[Piece] = []
        words: list[tuple[float, list[int]]] = []
        at = int(SAMPLE_RATE * choose.uniform(0, 1.2)) if choose.random() < 0.65 else 0
        if choose.random() >= 0.05:  # else: noise or music alone
            favourite = choose.choices(self.sources, self.shares)[0]
            if self.short_sources and choose.random() < SHORT_START:
                at = self._add_block(choose, choose.choice(self.short_sources), at, limit, pieces, words)
            while at < limit - SAMPLE_RATE // 2 and len(pieces) < MAX_PIECES:
                if choose.random() < 0.5:
                    favourite = choose.choices(self.sources, self.shares)[0]
                at = self._add_block(choose, favourite, at, limit, pieces, words)
        targets = emit(words, delay, self.n_tokens)
        inputs = previous(targets, delay)
        ctc = [token for _, ids in words for token in ids]
        gated = choose.random() < 0.2
        return Sequence(pieces, targets, inputs, delay, limit if n_silent else n_slots * TOKEN_SAMPLES, gated, ctc)

    def _add_block(
        self,
        choose: random.Random,
        source: str,
        at: int,
        limit: int,
        pieces: list[Piece],
        words: list[tuple[float, list[int]]],
    ) -> int:
        """Append one speaker's block at sample `at`; return where the next may begin."""
        gain_db = choose.gauss(0.0, 3.0)
        if source in self.recorded:
            rate = min(1.35, max(0.72, choose.gauss(1.0, 0.14)))
            warp = choose.uniform(0.82, 1.2) if choose.random() < 0.8 else 1.0
            runs = self._recorded_runs(choose, source)
        else:
            rate = min(1.3, max(0.76, choose.gauss(1.0, 0.12))) if choose.random() < 0.75 else 1.0
            warp = choose.uniform(0.86, 1.15) if choose.random() < 0.5 else 1.0
            runs = [self._synthetic_run(choose, choose.choice(self.synthetic[source]))]
        if at == 0 and choose.random() < SUDDEN:
            utterance, first, last, begin, end = runs[0]
            runs[0] = utterance, first, last, max(begin, utterance.words[first][0] - choose.randint(0, 800)), end
        for utterance, first, last, begin, end in runs:
            if len(pieces) >= MAX_PIECES:
                return limit
            run = utterance.words
            while last > first and at + (run[last - 1][1] - begin) / rate > limit:
                last -= 1
                end = run[last][0]
            if last <= first:
                return limit
            end = max(run[last - 1][1], min(end, begin + int((limit - at) * rate)))
            length = min(int((end - begin) / rate), limit - at)
            pieces.append(
                Piece(utterance.base + begin, utterance.base, at, length, rate, gain_db, warp, utterance.twin)
            )
            words += [(at + (stop - begin) / rate, ids) for _, stop, ids in run[first:last]]
            at += length
            if len(runs) > 1 and choose.random() < 0.7:
                at += int(SAMPLE_RATE * choose.uniform(0.0, 0.35))
        draw = choose.random()
        if draw < 0.2:
            return at
        return at + int(SAMPLE_RATE * (choose.uniform(0.05, 0.8) if draw < 0.9 else choose.uniform(0.8, 4.0)))

    def _synthetic_run(self, choose: random.Random, u: Utterance) -> tuple[Utterance, int, int, int, int]:
        """Return (utterance, first word, last word + 1, begin, end): a whole sentence, or a run of its words."""
        n_words = len(u.words)
        if n_words > 3 and choose.random() < 0.3:
            first = choose.randint(0, n_words - 2)
            last = choose.randint(first + 1, n_words)
            return u, first, last, *self._cut(choose, u, first, last)
        begin = max(0, u.words[0][0] - choose.randint(0, 4000))
        return u, 0, n_words, begin, min(u.n_samples, u.words[-1][1] + choose.randint(0, 8000))

    def _recorded_runs(self, choose: random.Random, source: str) -> list[tuple[Utterance, int, int, int, int]]:
        """Return word runs of one speaker: one long run, or several short ones."""
        if choose.random() < 0.5:
            speaker = choose.choice(list(self.by_speaker[source]))
        else:
            speaker = choose.choice(self.recorded[source]).speaker
        clips = self.by_speaker[source][speaker]
        runs = []
        if choose.random() < 0.5 and source != "train-commands":
            wanted, longest = 1, 40
        else:
            wanted, longest = choose.randint(1, 7), choose.randint(1, 4)
        before: list[int] = []
        for _ in range(wanted):
            for _ in range(SPLICE_TRIES if before and self.texts and source not in SHORT_SOURCES else 1):
                u = choose.choice(clips)
                n_words = len(u.words)
                first = choose.randint(0, max(0, n_words - 2)) if choose.random() < 0.8 else 0
                if self.texts and self.texts.follow(before, u.words[first][2]):
                    break
            last = min(n_words, first + choose.randint(1, longest))
            before = u.words[last - 1][2]
            runs.append((u, first, last, *self._cut(choose, u, first, last)))
        return runs

    @staticmethod
    def _cut(choose: random.Random, u: Utterance, first: int, last: int) -> tuple[int, int]:
        """Return begin and end of a word run, with a little of the silence around it but none of its neighbours."""
        floor = u.words[first - 1][1] if first else 0
        ceiling = u.words[last][0] if last < len(u.words) else u.n_samples
        begin = max(floor, u.words[first][0] - choose.randint(0, 4000))
        end = min(ceiling, u.words[last - 1][1] + choose.randint(200, 4800))
        return min(begin, u.words[first][0]), max(end, u.words[last - 1][1])


def collate(sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """Return a batch of plans as tensors; unused pieces start beyond every sequence."""
    B = len(sequences)
    bank_start = np.zeros((B, MAX_PIECES), np.int64)
    utterance_base = np.zeros((B, MAX_PIECES), np.int64)
    start = np.full((B, MAX_PIECES), 1 << 30, np.int64)
    length = np.zeros((B, MAX_PIECES), np.int64)
    rate = np.ones((B, MAX_PIECES), np.float64)
    gain_db = np.zeros((B, MAX_PIECES), np.float32)
    warp = np.ones((B, MAX_PIECES), np.float32)
    twin = np.zeros((B, MAX_PIECES), np.int64)
    ctc = np.zeros((B, MAX_CTC_TOKENS), np.int64)
    n_ctc = np.zeros(B, np.int64)
    for b, sequence in enumerate(sequences):
        for k, piece in enumerate(sequence.pieces):
            bank_start[b, k], utterance_base[b, k] = piece.bank_start, piece.utterance_base
            start[b, k], length[b, k] = piece.start, piece.length
            rate[b, k], gain_db[b, k], warp[b, k] = piece.rate, piece.gain_db, piece.warp
            twin[b, k] = piece.twin
        n_ctc[b] = min(MAX_CTC_TOKENS, len(sequence.ctc))
        ctc[b, : n_ctc[b]] = sequence.ctc[: n_ctc[b]]
    arrays = {
        "bank_start": bank_start,
        "utterance_base": utterance_base,
        "start": start,
        "length": length,
        "rate": rate,
        "gain_db": gain_db,
        "warp": warp,
        "twin": twin,
        "targets": np.stack([sequence.targets for sequence in sequences]),
        "inputs": np.stack([sequence.inputs for sequence in sequences]),
        "delay": np.array([sequence.delay for sequence in sequences], np.float32),
        "silence_from": np.array([sequence.silence_from for sequence in sequences]),
        "gated": np.array([sequence.gated for sequence in sequences]),
        "ctc": ctc,
        "n_ctc": n_ctc,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
