"""How people pronounce words, measured on recorded speech and given to the synthesiser.

The synthesiser speaks every word as a dictionary does; people do not. What they do is heard by the network itself: a linear
classifier on its layers learns the phonemes of synthetic speech, where they are known, and then follows recorded
speech along its dictionary pronunciation. It tells for every phoneme what stood there: the same, another one, or nothing.
What it mishears of synthetic speech too is its own error and is taken off.

    python -m training.pronounce CHECKPOINT_DIR SHARDS VOCAB.json RECORDED OUT.json --group native train-librispeech ...

`Pronunciations` draws from the result: common words as somebody said them, others phoneme by phoneme in their context.
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import PHONEME_LAG
from .bank import FRAME_SAMPLES
from .collect import read_list
from .export import read_checkpoint
from .network import LEFT_PAD, TOKEN_SAMPLES, LogMel, Network, masked_attention, window_mask
from .ring import read_shard
from .teacher import HOP
from .text import Sentence, SpokenWord, build_sentence, phoneme_spans

MARKS = "ˈˌː"  # stress and length: they belong to a phoneme and are none
NOTHING = "-"
VOWELS = frozenset("aeiouyAIOQWYɑɐɒæəɚɛɜɪɨᵻʊʌɔᵊ")
EDGE = "|"  # what stands beside the first and the last phoneme of an utterance
FLOOR = 0.02  # likelihood of a phoneme of which nothing is heard
SKIP = -3.0  # log likelihood of a phoneme left out
LEAST_WORDS = 25  # times a pronunciation must have been heard to be varied as a whole
LEAST_CONTEXT = 30  # times a phoneme must have been heard in a context to be varied by it
LEAST_RATE = 0.01

Heard = list[tuple[str, str]]  # for each word: its phonemes without marks, and what was heard for each of them


def plain(phonemes: str) -> str:
    return phonemes.translate({ord(mark): None for mark in MARKS})


# ---- listening


class Listener:
    """Phonemes of every 20 ms from the network's layers."""

    def __init__(self, network: Network, vocabulary: dict[str, int]) -> None:
        self.network, self.mel = network, LogMel(torch.device("cpu"))
        self.symbols = {label: symbol for symbol, label in vocabulary.items()}
        self.head = torch.nn.Linear(2 * network.c.dim, network.c.n_phonemes)

    @torch.no_grad()
    def layers(self, samples: np.ndarray) -> Tensor:
        """Return the middle and the last layer (n_frames, 2 dim) for int16 samples."""
        audio = F.pad(torch.from_numpy(samples.astype(np.float32) / 32768), (LEFT_PAD * TOKEN_SAMPLES, PHONEME_LAG))
        audio = F.pad(audio, (0, -len(audio) % TOKEN_SAMPLES))[None]
        n_frames = audio.shape[1] // HOP
        mask = window_mask(n_frames, n_frames, self.network.c.enc_window, audio.device)
        _, last, middle = self.network.encoder(self.mel(audio), masked_attention(mask))
        layers = torch.cat((F.rms_norm(middle[0], middle.shape[-1:]), F.rms_norm(last[0], last.shape[-1:])), 1)
        return layers[4 * LEFT_PAD :]

    def learn(self, speech: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Learn from (samples, label of every 25 ms); return the share of frames that a tenth of it has right."""
        inputs, labels = [], []
        for samples, frames in speech:
            layers = self.layers(samples)
            at = (np.arange(len(layers)) * HOP + HOP - PHONEME_LAG) // FRAME_SAMPLES
            inside = (at >= 0) & (at < len(frames))
            inputs.append(layers[inside])
            labels.append(torch.from_numpy(frames[at[inside]].astype(np.int64)))
        cut = len(inputs) // 10
        x, y = torch.cat(inputs[cut:]), torch.cat(labels[cut:])
        adam = torch.optim.Adam(self.head.parameters(), lr=3e-3)
        n_steps = 1500
        for step in range(n_steps):
            adam.param_groups[0]["lr"] = 3e-3 * (1 - step / n_steps)
            chosen = torch.randint(0, len(x), (1024,))
            loss = F.cross_entropy(self.head(x[chosen]), y[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            right = self.head(torch.cat(inputs[:cut])).argmax(1) == torch.cat(labels[:cut])
        return float(right.float().mean())

    @torch.no_grad()
    def follow(self, samples: np.ndarray, words: list[str]) -> Heard:
        """Follow an utterance along the phonemes of its words."""
        likely = self.head(self.layers(samples)).softmax(-1).numpy()
        return follow(likely, words, self.symbols)


def follow(likely: np.ndarray, words: list[str], symbols: dict[int, str]) -> Heard:
    """Find the best path of an utterance (n_frames, n_labels) through its phonemes, each of which may be left out.

    Between words there may be silence (label 0).
    """
    label_of = {symbol: label for label, symbol in symbols.items()}
    states: list[tuple[int, int]] = [(-1, 0)]  # (word, label)
    for i, phonemes in enumerate(words):
        states += [(i, label_of[symbol]) for symbol in phonemes]
        states.append((-1, 0))
    labels = np.array([label for _, label in states])
    silent = labels == 0
    score = np.log(likely[:, labels] + FLOOR)
    n_frames, n_states = score.shape
    step_cost = np.zeros((3, n_states))  # from the state before, from two before, from three before
    skipped = np.where(silent, 0.0, SKIP)
    step_cost[1, 2:] = skipped[1:-1]
    step_cost[2, 3:] = skipped[1:-2] + skipped[2:-1]
    best = np.full(n_states, -np.inf)
    best[:2] = score[0, :2]
    came = np.zeros((n_frames, n_states), np.int8)
    for t in range(1, n_frames):
        options = np.full((4, n_states), -np.inf)
        options[0] = best
        for jump in (1, 2, 3):
            options[jump, jump:] = best[:-jump] + step_cost[jump - 1, jump:]
        came[t] = options.argmax(0)
        best = options[came[t], np.arange(n_states)] + score[t]
    state = n_states - 1 if best[-1] >= best[-2] else n_states - 2
    sums: dict[int, np.ndarray] = {}  # log likelihoods over the frames of a state
    for t in range(n_frames - 1, -1, -1):
        log_p = np.log(likely[t] + 1e-4)
        sums[state] = sums[state] + log_p if state in sums else log_p
        state -= int(came[t, state])
    heard = [""] * len(words)
    for i, (word, _) in enumerate(states):
        if word >= 0:
            heard[word] += symbols.get(int(sums[i].argmax()), NOTHING) if i in sums else NOTHING
    return list(zip(words, heard, strict=True))


def merge_marks(labels: np.ndarray, marks: set[int]) -> np.ndarray:
    """Give the frames of stress and length marks to the phoneme they belong to: the next one, or the last."""
    merged = labels.copy()
    for i in range(len(merged) - 2, -1, -1):
        if merged[i] in marks:
            merged[i] = merged[i + 1]
    for i in range(1, len(merged)):
        if merged[i] in marks:
            merged[i] = merged[i - 1]
    return merged


def spoken_words(labels: np.ndarray, symbols: dict[int, str]) -> list[str]:
    """Return the phonemes between silences, each run of a label once."""
    words = [""]
    for before, label in pairwise([0, *labels.tolist(), 0]):
        if label and label != before:
            words[-1] += symbols[label]
        elif not label and words[-1]:
            words.append("")
    return words[:-1]


# ---- counting


def in_context(heard: Heard) -> Iterator[tuple[list[str], str, str]]:
    """Yield for every phoneme its contexts from the narrowest to the widest, itself, and what was heard."""
    said = EDGE + "".join(word for word, _ in heard) + EDGE
    at = 1
    for word, outcome in heard:
        for i, (symbol, result) in enumerate(zip(word, outcome, strict=True)):
            yield contexts(said, at, i, len(word)), symbol, result
            at += 1


def contexts(said: str, at: int, i: int, n: int) -> list[str]:
    place = "." if n == 1 else "<" if i == 0 else ">" if i == n - 1 else "="
    before, symbol, after = said[at - 1], said[at], said[at + 1]
    return [f"{before}{symbol}{after}{place}", f"{symbol}{after}{place}", f"{symbol}{place}"]


def rates_by_phoneme(heard: Iterable[Heard]) -> dict[str, dict[str, float]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for utterance in heard:
        for _, symbol, result in in_context(utterance):
            counts[symbol][result] += 1
    return {s: {r: n / c.total() for r, n in c.items()} for s, c in counts.items()}


def summarise(heard: list[Heard], baseline: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return what `Pronunciations` draws from: words, contexts, and how far each change is trusted."""
    words: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for utterance in heard:
        for word, outcome in utterance:
            words[word][outcome] += 1
        for keys, _, result in in_context(utterance):
            for key in keys:
                places[key][result] += 1
    trust: dict[str, dict[str, float]] = {}
    for symbol, rates in rates_by_phoneme(heard).items():
        own = baseline.get(symbol, {})
        trust[symbol] = {r: round(max(0.0, 1 - own.get(r, 0.0) / rate), 2) for r, rate in rates.items() if r != symbol}
    kept = {w: dict(c) for w, c in words.items() if c.total() >= LEAST_WORDS}
    likely = {
        key: {r: round(n / c.total(), 3) for r, n in c.items() if n / c.total() >= LEAST_RATE and n > 1}
        for key, c in places.items()
        if c.total() >= LEAST_CONTEXT
    }
    return {"words": kept, "contexts": likely, "trust": trust}


# ---- speaking


class Pronunciations:
    """Draws pronunciations of a group of people; `strength` is the share of their changes that are made."""

    def __init__(self, measured: dict[str, dict[str, Any]]) -> None:
        self.words: dict[str, dict[str, int]] = measured["words"]
        self.contexts: dict[str, dict[str, float]] = measured["contexts"]
        self.trust: dict[str, dict[str, float]] = measured["trust"]

    @classmethod
    def load(cls, path: Path) -> dict[str, "Pronunciations"]:
        return {group: cls(measured) for group, measured in json.loads(path.read_text()).items()}

    def vary(self, sentence: Sentence, choose: random.Random, strength: float) -> Sentence:
        """Return the sentence as somebody might say it."""
        spans = phoneme_spans(sentence.phonemes)
        bare = [plain(sentence.phonemes[start:stop]) for start, stop in spans]
        said, at = EDGE + "".join(bare) + EDGE, 1
        text, done, moved = "", 0, {}
        for (start, stop), word in zip(spans, bare, strict=True):
            outcome = self._draw(word, said, at, choose, strength)
            at += len(word)
            text += sentence.phonemes[done:start]
            begin = len(text)
            text += respell(sentence.phonemes[start:stop], outcome)
            moved[start, stop] = (begin, len(text))
            done = stop
        text += sentence.phonemes[done:]
        words = [SpokenWord(w.word, *moved[w.start, w.stop], w.fraction) for w in sentence.words]
        return Sentence(sentence.book, text, words)

    def _draw(self, word: str, said: str, at: int, choose: random.Random, strength: float) -> str:
        if word in self.words:
            variants = self.words[word]
            drawn = choose.choices(list(variants), list(variants.values()))[0]
        else:
            drawn = "".join(self._draw_one(said, at + i, i, len(word), choose) for i in range(len(word)))
        made = ""
        for i, (symbol, result) in enumerate(zip(word, drawn, strict=True)):
            if result != symbol and result in (said[at + i - 1], said[at + i + 1]):
                # its neighbour was heard for longer: a consonant is gone, of a vowel nobody knows what became of it
                result = symbol if symbol in VOWELS else NOTHING
            is_made = result == symbol or choose.random() < strength * self.trust[symbol].get(result, 0.0)
            made += result if is_made else symbol
        return made if made.strip(NOTHING) else word

    def _draw_one(self, said: str, at: int, i: int, n: int, choose: random.Random) -> str:
        known = [key for key in contexts(said, at, i, n) if key in self.contexts]
        rates = self.contexts[known[0]] if known else {}
        left = choose.random()
        for result, rate in rates.items():
            left -= rate
            if left < 0:
                return result
        return said[at]


def respell(phonemes: str, outcome: str) -> str:
    """Put what is said in place of each phoneme; the marks stay, but those of a phoneme that is left out."""
    results, spelled, mark = iter(outcome), "", ""
    for symbol in phonemes:
        if symbol in MARKS:
            mark = symbol
            continue
        result = next(results)
        if result != NOTHING:
            spelled += (mark if mark != "ː" else "") + result
            mark = ""
    return spelled


# ---- program


def synthetic(shards: Path, vocabulary: dict[str, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    marks = {vocabulary[mark] for mark in MARKS}
    rows = [speech for path in sorted(shards.glob("*.pkl")) for speech in read_shard(path)]
    return [
        (s.samples, merge_marks(s.phonemes, marks)) for s in rows if s.phonemes is not None and (s.phonemes < 255).all()
    ]


def recorded(listener: Listener, directory: Path, name: str, every: int) -> list[Heard]:
    """Follow every `every`-th clip of a list; its text is phonemised."""
    from hibari import Hibari

    phonemiser, known = Hibari(threads=1), set(listener.symbols.values())
    heard = []
    for clip in read_list(directory, name)[::every]:
        text = clip.text.lower() if clip.text.isupper() else clip.text
        sentence = build_sentence(name, text, " ".join(phonemiser.phonemize(text)))
        if sentence and len(clip.samples) < 35 * 16000:
            words = [plain(sentence.phonemes[start:stop]) for start, stop in phoneme_spans(sentence.phonemes)]
            if known.issuperset("".join(words)):
                heard.append(listener.follow(clip.samples, words))
    return heard


def main() -> None:
    parser = argparse.ArgumentParser(description="measure how people pronounce")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("shards", type=Path, help="synthetic speech without accents (`synthesize`)")
    parser.add_argument("vocabulary", type=Path, help="the synthesiser's vocab.json")
    parser.add_argument("recorded", type=Path, help="folder of index.tsv, Opus files and words.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", nargs="+", action="append", metavar=("NAME", "LIST[=EVERY]"), required=True)
    options = parser.parse_args()
    torch.manual_seed(1)
    vocabulary = json.loads(options.vocabulary.read_text())["vocab"]
    listener = Listener(read_checkpoint(options.checkpoint), vocabulary)
    speech = synthetic(options.shards, vocabulary)
    print(f"{len(speech)} synthetic utterances, {100 * listener.learn(speech):.1f} % of the frames right", flush=True)
    known = [
        listener.follow(samples, spoken_words(labels, listener.symbols))
        for samples, labels in speech[: len(speech) // 10 * 3]
    ]
    baseline = rates_by_phoneme(known)
    measured = {}
    for group, *names in options.group:
        heard = []
        for name, _, every in (name.partition("=") for name in names):
            heard += recorded(listener, options.recorded, name, int(every or 1))
        measured[group] = summarise(heard, baseline)
        n_phonemes = sum(len(word) for utterance in heard for word, _ in utterance)
        n_changed = sum(a != b for utterance in heard for w, o in utterance for a, b in zip(w, o, strict=True))
        print(f"{group}: {len(heard)} clips, {n_phonemes} phonemes, {100 * n_changed / n_phonemes:.1f} % changed")
    options.out.write_text(json.dumps(measured, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
