"""Recorded speech: word times by forced alignment, and reading of the aligned lists.

A list is one Opus file with many clips and its rows in `index.tsv` (file, start_s, dur_s, speaker, source, licence,
text). `align` adds `LIST.words.json` beside a list; whoever trains reads the two together with `read_list`. Knows
nothing of the model: words stay text, times stay seconds.

    python -m voxpipe.tiny.training.collect REAL_DIR OUT_DIR train-librispeech train-commands ...

Words outside the aligner's lexicon share the time between their aligned neighbours by their length in letters.
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from .text import words_of

SAMPLE_RATE = 16000
GAP_SAMPLES = 4000  # silence between the clips of a list
COLUMNS = ["file", "start_s", "dur_s", "speaker", "source", "licence", "text"]


@dataclass
class Clip:
    """One utterance of a list: its samples (int16, 16 kHz, mono) and, once aligned, its words with times."""

    samples: np.ndarray
    text: str
    speaker: str
    words: list[tuple[str, float, float]] = field(default_factory=list)  # (word, start_s, end_s) within the clip


def read_index(directory: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of list `name` in `directory`/index.tsv, in file order."""
    with open(directory / "index.tsv", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["file"] == f"{name}.opus"]


def decode(directory: Path, name: str) -> np.ndarray:
    """Return the samples of list `name`: those that `decode_ahead` kept, unless the list has changed since."""
    opus, kept = directory / f"{name}.opus", directory / f"{name}.npy"
    if kept.exists() and kept.stat().st_mtime_ns > opus.stat().st_mtime_ns:
        return np.load(kept)
    samples, rate = soundfile.read(opus, dtype="int16")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{opus.name} has {rate} samples a second; convert it to {SAMPLE_RATE}")
    return samples


def decode_ahead(directory: Path, names: list[str]) -> None:
    """Decode lists side by side and keep them: every process of a run reads them, and each would take a minute and more."""

    def keep(name: str) -> None:
        np.save(directory / f"{name}.part.npy", decode(directory, name))
        (directory / f"{name}.part.npy").rename(directory / f"{name}.npy")

    with ThreadPoolExecutor() as pool:
        list(pool.map(keep, names))


def read_clips(directory: Path, name: str) -> list[Clip]:
    """Return every clip of list `name` without word times."""
    samples = decode(directory, name)
    clips = []
    for row in read_index(directory, name):
        start = round(float(row["start_s"]) * SAMPLE_RATE)
        stop = start + round(float(row["dur_s"]) * SAMPLE_RATE)
        clips.append(Clip(samples[start:stop], row["text"], row["speaker"]))
    return clips


def read_list(directory: Path, name: str) -> list[Clip]:
    """Return the clips of list `name` that `align` could place, with their words."""
    clips = read_clips(directory, name)
    aligned = json.loads((directory / f"{name}.words.json").read_text())
    for entry in aligned:
        clips[entry["clip"]].words = [(word, start, end) for word, start, end in entry["words"]]
    return [clip for clip in clips if clip.words]


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return float samples at 16 kHz, resampled in the frequency domain."""
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    n_samples = round(len(samples) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(samples)[: n_samples // 2 + 1]
    return np.fft.irfft(spectrum, n=n_samples) * (n_samples / len(samples))


def write_list(directory: Path, name: str, clips: Iterable[tuple[np.ndarray, str, str, str, str]], kbit_s: int) -> None:
    """Write `directory`/NAME.opus and its rows in index.tsv, in place of the rows it had there.

    Args:
        clips: samples in [-1, 1] at 16 kHz, speaker, source, licence and text of each.
    """
    audio: list[np.ndarray] = []
    rows, n_samples, gap = [], 0, np.zeros(GAP_SAMPLES, np.float32)
    for samples, *described in clips:
        rows.append([f"{name}.opus", f"{n_samples / SAMPLE_RATE:.4f}", f"{len(samples) / SAMPLE_RATE:.4f}", *described])
        audio += [samples.astype(np.float32), gap]
        n_samples += len(samples) + len(gap)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.wav"
        soundfile.write(joined, np.concatenate(audio), SAMPLE_RATE, subtype="PCM_16")
        command = ["opusenc", "--quiet", "--bitrate", str(kbit_s), str(joined), str(directory / f"{name}.opus")]
        subprocess.run(command, check=True)
    index = directory / "index.tsv"
    before = index.read_text(encoding="utf-8").splitlines() if index.exists() else ["\t".join(COLUMNS)]
    others = [line for line in before if not line.startswith(f"{name}.opus\t")]
    index.write_text("\n".join([*others, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")


def align_clip(decoder: "object", clip: Clip) -> list[tuple[str, float, float]]:
    """Return (word, start_s, end_s) of every word; empty if no path is found and the clip has over three words."""
    words = words_of(clip.text)
    known = [word for word in words if decoder.lookup_word(word)]  # type: ignore[attr-defined]
    duration_s = len(clip.samples) / SAMPLE_RATE
    try:
        spans = list(_known_spans(decoder, clip.samples, known)) if known else []
    except (RuntimeError, TypeError):  # the aligner found no path through the audio
        spans = []
    if not spans or len(spans) != len(known):
        return _by_energy(words, clip.samples) if 0 < len(words) <= 3 else []
    found = iter(spans)
    placed = [(word, next(found) if decoder.lookup_word(word) else None) for word in words]  # type: ignore[attr-defined]
    return trim_last(_fill_gaps(placed, duration_s), clip.samples)


def _known_spans(decoder: "object", samples: np.ndarray, words: list[str]) -> Iterator[tuple[float, float]]:
    decoder.set_align_text(" ".join(words))  # type: ignore[attr-defined]
    decoder.start_utt()  # type: ignore[attr-defined]
    decoder.process_raw(samples.tobytes(), full_utt=True)  # type: ignore[attr-defined]
    decoder.end_utt()  # type: ignore[attr-defined]
    for segment in decoder.seg():  # type: ignore[attr-defined]
        if segment.word[0] not in "<[":  # silences and noises
            yield segment.start_frame / 100, (segment.end_frame + 1) / 100


def loud_part(samples: np.ndarray, *, below_db: float) -> tuple[float, float]:
    """Return start and end in seconds of the part within `below_db` of the loudest 10 ms."""
    n_frames = len(samples) // 160
    energy = np.square(samples[: n_frames * 160].reshape(n_frames, 160).astype(np.float64)).mean(1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-below_db / 10))
    return loud[0] / 100, (loud[-1] + 1) / 100


def trim_last(words: list[tuple[str, float, float]], samples: np.ndarray) -> list[tuple[str, float, float]]:
    """End the last word where the clip falls silent: the aligner tends to run it to the end of the clip."""
    word, start, end = words[-1]
    _, loud_end = loud_part(samples, below_db=32)
    return [*words[:-1], (word, start, max(start + 0.1, min(end, loud_end + 0.03)))]


def _by_energy(words: list[str], samples: np.ndarray) -> list[tuple[str, float, float]]:
    """Spread the words over the loud part of the clip."""
    start, end = loud_part(samples, below_db=25)
    n_letters, done, placed = sum(map(len, words)), 0, []
    for word in words:
        word_start = start + (end - start) * done / n_letters
        done += len(word)
        placed.append((word, round(word_start, 3), round(start + (end - start) * done / n_letters, 3)))
    return placed


def _fill_gaps(
    placed: list[tuple[str, tuple[float, float] | None]], duration_s: float
) -> list[tuple[str, float, float]]:
    """Give words without a span the time between their placed neighbours."""
    words: list[tuple[str, float, float]] = []
    i = 0
    while i < len(placed):
        word, span = placed[i]
        if span:
            words.append((word, round(span[0], 3), round(span[1], 3)))
            i += 1
            continue
        j = i
        while j < len(placed) and placed[j][1] is None:
            j += 1
        next_start = placed[j][1][0] if j < len(placed) else None  # type: ignore[index]
        start = words[-1][2] if words else max(0.0, (next_start or 0.0) - 0.35 * (j - i))
        end = next_start if next_start is not None else max(start + 0.05, duration_s - 0.1)
        n_letters = sum(len(word) for word, _ in placed[i:j])
        done = 0
        for word, _ in placed[i:j]:
            word_start = start + (end - start) * done / n_letters
            done += len(word)
            words.append((word, round(word_start, 3), round(start + (end - start) * done / n_letters, 3)))
        i = j
    return words


def align(directory: Path, name: str, out_directory: Path) -> None:
    """Align every clip of a list and write `out_directory`/NAME.words.json."""
    from pocketsphinx import Decoder

    decoder = Decoder(lm=None, loglevel="FATAL")
    clips = read_clips(directory, name)
    aligned = []
    for i, clip in enumerate(clips):
        words = align_clip(decoder, clip)
        if words:
            aligned.append({"clip": i, "words": words})
    (out_directory / f"{name}.words.json").write_text(json.dumps(aligned, separators=(",", ":")))
    print(f"{name}: aligned {len(aligned)} of {len(clips)} clips", flush=True)


if __name__ == "__main__":
    source, target, *names = sys.argv[1:]
    for list_name in names:
        align(Path(source), list_name, Path(target))
