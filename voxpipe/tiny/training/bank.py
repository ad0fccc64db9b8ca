"""The bank: all training speech in the memory of one device, and how lists and shards get into it.

Samples are int16; every 25 ms has a phoneme (synthetic speech only) and the inverse level of its utterance. Utterances know
where they lie, who speaks, and where their words end; a sequence planner refers to them by number.
"""

import json
import pickle
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .collect import read_list
from .text import Sentence, WordPieces

FRAME_SAMPLES = 400  # 25 ms at 16 kHz, the synthesiser's unit of duration
SAMPLE_RATE = 16000
NO_PHONEME = 255

Words = list[tuple[int, int, list[int]]]  # (start, end, token ids), samples from the start of the utterance


@dataclass
class Utterance:
    """Speech in the bank: where it lies, its words, which list it came from, and who speaks."""

    base: int
    n_samples: int
    words: Words
    source: str
    speaker: str = ""


@dataclass
class Speech:
    """An utterance on its way into the bank; `phonemes` holds one label for each frame, None if unknown."""

    samples: np.ndarray
    phonemes: np.ndarray | None
    words: Words
    source: str
    speaker: str = ""


class Bank:
    """Room for `n_samples` of speech on `device`, filled from the front."""

    def __init__(self, n_samples: int, device: torch.device) -> None:
        n_frames = n_samples // FRAME_SAMPLES
        self.samples = torch.zeros(n_frames * FRAME_SAMPLES, dtype=torch.int16, device=device)
        self.phonemes = torch.zeros(n_frames, dtype=torch.uint8, device=device)
        self.inverse_rms = torch.zeros(n_frames, device=device)
        self.utterances: list[Utterance] = []
        self.filled = 0

    @property
    def hours(self) -> float:
        return self.filled / SAMPLE_RATE / 3600

    def deposit(self, speech: Iterable[Speech]) -> None:
        """Add utterances in one copy to the device; what finds no room is left out."""
        begin, audio, phonemes, levels = self.filled, [], [], []
        for item in speech:
            n_samples = -(-len(item.samples) // FRAME_SAMPLES) * FRAME_SAMPLES
            if self.filled + n_samples > len(self.samples):
                break
            n_frames = n_samples // FRAME_SAMPLES
            rms = max(60.0, float(np.sqrt(np.mean(np.square(item.samples[::3], dtype=np.float32)))))
            audio.append(np.pad(item.samples, (0, n_samples - len(item.samples))))
            phonemes.append(np.full(n_frames, NO_PHONEME, np.uint8) if item.phonemes is None else item.phonemes)
            levels.append(np.full(n_frames, 1 / rms, np.float32))
            self.utterances.append(Utterance(self.filled, n_samples, item.words, item.source, item.speaker))
            self.filled += n_samples
        if audio:
            frames = slice(begin // FRAME_SAMPLES, self.filled // FRAME_SAMPLES)
            self.samples[begin : self.filled] = torch.from_numpy(np.concatenate(audio))
            self.phonemes[frames] = torch.from_numpy(np.concatenate(phonemes))
            self.inverse_rms[frames] = torch.from_numpy(np.concatenate(levels))


def load_recorded(
    bank: Bank, directory: Path, names: list[str], pieces: WordPieces, report: Callable[[str], None]
) -> None:
    """Deposit aligned lists; the source of an utterance is the name of its list."""
    with ThreadPoolExecutor() as pool:
        for name, clips in zip(names, pool.map(lambda n: read_list(directory, n), names), strict=True):
            before, speech = bank.hours, []
            for clip in clips:
                n = len(clip.samples)
                words = [
                    (min(n, int(start * SAMPLE_RATE)), min(n, int(end * SAMPLE_RATE)), pieces.encode(word))
                    for word, start, end in clip.words
                ]
                words = [word for word in words if word[1] > word[0]]
                if words:
                    speech.append(Speech(clip.samples, None, words, name, clip.speaker))
            bank.deposit(speech)
            report(f"{name}: {len(speech)} clips, {bank.hours - before:.2f} h")


def load_synthetic(
    bank: Bank,
    directory: Path,
    sentences: list[Sentence],
    pieces: WordPieces,
    *,
    symbols: Path,
    until: float,
    report: Callable[[str], None],
) -> None:
    """Deposit shards as the synthesiser writes them, until the Unix time `until`.

    Utterances of up to three words have the source "synthetic-short", all others "synthetic".
    """
    phoneme_ids = json.loads(symbols.read_text())["vocab"]
    label_of = np.arange(256, dtype=np.uint8)
    label_of[:17] = 0  # pads and punctuation are silence
    seen: set[Path] = set()
    before = bank.hours
    while True:
        is_last_look = time.time() > until
        for rows_path in sorted(set(directory.glob("*.pkl")) - seen):
            seen.add(rows_path)
            audio, at, speech = np.load(rows_path.with_suffix(".npy"), mmap_mode="r"), 0, []
            for index, n_frames, durations in pickle.loads(rows_path.read_bytes()):
                samples = np.asarray(audio[at : at + n_frames * FRAME_SAMPLES])
                at += n_frames * FRAME_SAMPLES
                if np.abs(samples[::7]).max() < 300:
                    continue  # the synthesiser failed
                ids = np.array([0, *(phoneme_ids[symbol] for symbol in sentences[index].phonemes), 0])
                ends = np.concatenate([[0], np.cumsum(durations)]) * FRAME_SAMPLES
                words = place_words(sentences[index], ends, pieces)
                source = "synthetic-short" if len(words) <= 3 else "synthetic"
                speech.append(Speech(samples, np.repeat(label_of[ids], durations), words, source))
            bank.deposit(speech)
        if is_last_look:
            break
        time.sleep(0.5)
    report(f"synthetic: {len(seen)} shards, {bank.hours - before:.2f} h")


def place_words(sentence: Sentence, ends: np.ndarray, pieces: WordPieces) -> Words:
    """Return the words with their times; `ends` are the phonemes' borders in samples, the first pad included."""
    words = []
    for word in sentence.words:
        start, stop = ends[1 + word.start], ends[1 + word.stop]
        words.append((int(start), int(start + (stop - start) * word.fraction), pieces.encode(word.word)))
    return words
