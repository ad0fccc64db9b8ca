"""The bank: training speech in the memory of one device.

Samples are int16; every 25 ms has a phoneme (synthetic speech only) and the inverse level of its utterance, every 20 ms the
features of the teacher. Utterances know where they lie, who speaks, and where their words end; a sequence planner refers to
them. Recorded lists stay for the whole run; synthetic speech comes and goes behind them (`ring`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .collect import read_list
from .teacher import HOP, Teacher, teach
from .text import WordPieces

FRAME_SAMPLES = 400  # 25 ms at 16 kHz, the synthesiser's unit of duration
SAMPLE_RATE = 16000
NO_PHONEME = 255
TWIN = "twin"
ALIGNMENT = 1600  # samples: every utterance starts at a whole frame of phonemes and of features

Words = list[tuple[int, int, list[int]]]  # (start, end, token ids), samples from the start of the utterance


@dataclass(slots=True)
class Utterance:
    """Speech in the bank: where it lies, its words, which list it came from, and who speaks.

    `twin` is the way in samples from here to the same utterance in other sounds (`mosaic`); 0 without one.
    """

    base: int
    n_samples: int
    words: Words
    source: str
    speaker: str = ""
    twin: int = 0


@dataclass(slots=True)
class Speech:
    """An utterance on its way into the bank; `phonemes` holds one label for each frame, None if unknown.

    Whose source is `TWIN` says what the utterance before it says, sample by sample; only its sound is kept.
    """

    samples: np.ndarray
    phonemes: np.ndarray | None
    words: Words
    source: str
    speaker: str = ""


def room_for(item: Speech) -> int:
    """Return the samples that an utterance takes up in the bank."""
    return -(-len(item.samples) // ALIGNMENT) * ALIGNMENT


class Bank:
    """Room for `n_samples` of speech on `device`; without a teacher there are no features."""

    def __init__(self, n_samples: int, device: torch.device, teacher: Teacher | None = None) -> None:
        n_samples = n_samples // ALIGNMENT * ALIGNMENT
        self.samples = torch.zeros(n_samples, dtype=torch.int16, device=device)
        self.phonemes = torch.zeros(n_samples // FRAME_SAMPLES, dtype=torch.uint8, device=device)
        self.inverse_rms = torch.zeros(n_samples // FRAME_SAMPLES, device=device)
        self.teacher = teacher
        dim = teacher.dim if teacher else 0
        self.features = torch.zeros(n_samples // HOP, dim, dtype=torch.float16, device=device)
        self.utterances: list[Utterance] = []  # recorded
        self.filled = 0  # samples of recorded speech, from the front

    @property
    def hours(self) -> float:
        return self.filled / SAMPLE_RATE / 3600

    def write(self, begin: int, speech: Sequence[Speech]) -> list[Utterance]:
        """Copy utterances to the device, back to back from sample `begin`; return where they lie."""
        audio, phonemes, levels, utterances, at = [], [], [], [], begin
        for item in speech:
            n_samples = room_for(item)
            n_frames = n_samples // FRAME_SAMPLES
            rms = max(60.0, float(np.sqrt(np.mean(np.square(item.samples[::3], dtype=np.float32)))))
            audio.append(np.pad(item.samples, (0, n_samples - len(item.samples))))
            labels = np.full(n_frames, NO_PHONEME, np.uint8)
            if item.phonemes is not None:
                labels[:] = 0
                labels[: len(item.phonemes)] = item.phonemes
            phonemes.append(labels)
            levels.append(np.full(n_frames, 1 / rms, np.float32))
            if item.source == TWIN:
                utterances[-1].twin = at - utterances[-1].base
            else:
                utterances.append(Utterance(at, n_samples, item.words, item.source, item.speaker))
            at += n_samples
        if utterances:
            frames = slice(begin // FRAME_SAMPLES, at // FRAME_SAMPLES)
            self.samples[begin:at] = torch.from_numpy(np.concatenate(audio)).to(self.samples.device)
            self.phonemes[frames] = torch.from_numpy(np.concatenate(phonemes)).to(self.samples.device)
            self.inverse_rms[frames] = torch.from_numpy(np.concatenate(levels)).to(self.samples.device)
            if self.teacher:
                starts = [utterance.base - begin for utterance in utterances]
                lengths = [utterance.n_samples for utterance in utterances]
                self.features[begin // HOP : at // HOP] = teach(self.teacher, self.samples[begin:at], starts, lengths)
        return utterances

    def deposit(self, speech: Sequence[Speech]) -> None:
        """Add recorded utterances that stay."""
        utterances = self.write(self.filled, speech)
        self.utterances += utterances
        self.filled += sum(utterance.n_samples for utterance in utterances)


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
