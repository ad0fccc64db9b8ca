# ruff: noqa: SIM905
"""Synthetic speech: a Kokoro-82M worker that varies the speaker far beyond the voices of the pack.

One worker process writes shards: SHARD.npy (int16, 16 kHz, utterances back to back, each a whole number of 25 ms
frames) and SHARD.pkl (for each utterance: frames, one phoneme label a frame, words with start, end and token ids).
Durations are the synthesiser's own, so word times are exact. A share of the batches is retold with pieces of recorded speech
(`mosaic`): such an utterance is followed by its twin, the same in other sounds. Recorded clips are retold too.

What varies: the blend of voices (any two or three, foreign ones too, also beyond the line between two), timbre and
prosody from different blends, noise on the timbre, pitch, pitch range, tempo, rhythm of single phonemes, words and phrases,
how far the articulation of a phoneme runs into its neighbours, and pronunciations of other accents and of careless speech.
Held-out voices are never touched.

    python -m training.synthesize --kokoro DIR --sentences FILE --pieces FILE --out DIR --shard 0 --n-shards 3 --until TIME
"""

import argparse
import json
import math
import pickle
import random
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .bank import NO_PHONEME, TWIN
from .collect import read_list
from .mosaic import LAYERS, LEVEL, QUIET, Cast, Mosaic, speaker_of
from .teacher import Teacher
from .templates import COMMAND_WORDS
from .text import Sentence, WordPieces, build_sentence, read_rows, words_of

Words = list[tuple[str, float, float]]  # (word, start_s, end_s)
Row = tuple[int, np.ndarray | None, list[tuple[int, int, list[int]]], str]  # frames, phonemes, words in samples, source

HELD_OUT_VOICES = {"af_kore", "am_onyx", "bf_alice", "bm_daniel"}
FRAME_SAMPLES = 400  # 25 ms at 16 kHz: one unit of phoneme duration (600 samples at the synthesiser's 24 kHz)
ROUND_SENTENCES = 3000  # sentences planned together, so that batches of equal length can be formed
BATCH_FRAMES = 10000  # decoder frames in one batch; bounds the memory of a worker at about 15 GB
BLUR_FRAMES = 5  # 125 ms
MOST_BLUR = 0.75
COMMANDS = frozenset(COMMAND_WORDS)
LEAST_LIKENESS = 0.5  # of a mosaic's pieces to what they retell; others stay as the synthesiser spoke them
SENTENCES_A_RETELLING = 150  # synthetic ones for each batch of recorded clips that is retold
RETOLD_TOGETHER = 24
COMMANDS_REPEATED = 8  # digits and commands are spoken so often, each time by another speaker
N_SILENT_IDS = 17  # pads and punctuation in the synthesiser's vocabulary
ACCENTED = 0.25  # share of the sentences with the sounds of another accent

# Substitutions that keep the length of the phoneme string, so that word spans stay valid: (from, to, chance of each).
ACCENTS: list[list[tuple[str, str, float]]] = [
    [("θ", "s", 0.6), ("ð", "d", 0.6), ("ɪ", "i", 0.4), ("z", "s", 0.3), ("v", "w", 0.3), ("æ", "ɛ", 0.5)],
    [("θ", "t", 0.6), ("ð", "d", 0.7), ("w", "v", 0.4), ("ʌ", "a", 0.5), ("æ", "ɛ", 0.4)],
    [("θ", "f", 0.6), ("ð", "v", 0.3), ("ŋ", "n", 0.3), ("h", "ʔ", 0.0), ("ɾ", "t", 0.9)],
    [("ɑ", "ɒ", 0.7), ("ɾ", "t", 0.9), ("æ", "a", 0.5), ("ɹ", "r", 0.5)],
    [("ɪ", "ə", 0.3), ("ɛ", "ɪ", 0.4), ("æ", "ɛ", 0.4), ("t", "ɾ", 0.15), ("ʊ", "u", 0.4)],
    [
        ("ɪ", "ə", 0.4),
        ("ɛ", "ə", 0.3),
        ("ʌ", "ə", 0.6),
        ("ʊ", "ə", 0.4),
        ("ŋ", "n", 0.3),
        ("t", "ʔ", 0.3),
        ("ð", "d", 0.3),
    ],
]
FUNCTION_WORDS = frozenset(
    "a an the of to in on at by for from with and or but as is are was were be been it its he she they we you i his her "
    "their our your my that this these those there than then so if not no can could will would shall should have has had "
    "do did does me him them us".split()
)


@dataclass
class Delivery:
    """How one utterance is spoken. Blends are {voice: weight}, weights sum to 1 and may be negative."""

    prosody: dict[str, float]
    timbre: dict[str, float]
    timbre_noise: float  # in standard deviations over the voices
    speed: float
    pitch: float
    pitch_range: float  # exponent on the distance of F0 from its mean
    rhythm: float  # standard deviation of the logarithm of phoneme durations
    word_rhythm: float  # the same for whole words
    drift: float  # the same for stretches of a few words
    haste: float  # factor on the durations of function words
    blur: float  # share of a phoneme's articulation that is the mean over its neighbourhood


def draw_blend(choose: random.Random, english: list[str], foreign: list[str]) -> dict[str, float]:
    """Draw a blend of voices: mostly two, at times with a foreign one, three, or beyond the line between two."""
    kind = choose.random()
    if kind < 0.4 or not foreign:
        return _weighted([choose.choice(english), choose.choice(english)], [choose.uniform(0.5, 1.0)])
    if kind < 0.7:
        return _weighted([choose.choice(english), choose.choice(foreign)], [choose.uniform(0.25, 0.75)])
    if kind < 0.85:
        first = choose.uniform(0.3, 0.6)
        voices = [choose.choice(english), choose.choice(english), choose.choice(foreign)]
        return _weighted(voices, [first, (1 - first) * 0.6])
    return _weighted([choose.choice(english), choose.choice(english)], [choose.uniform(1.1, 1.35)])


def _weighted(voices: list[str], first_weights: list[float]) -> dict[str, float]:
    """Pair voices with weights; the last voice takes what is left to 1."""
    blend: dict[str, float] = {}
    for voice, weight in zip(voices, [*first_weights, 1 - sum(first_weights)], strict=True):
        blend[voice] = blend.get(voice, 0.0) + weight
    return blend


def draw_delivery(choose: random.Random, english: list[str], foreign: list[str]) -> Delivery:
    """Draw how an utterance is spoken.

    About one in eight is far from ordinary speech; one in four keeps the synthesiser's own rhythm and articulation.
    """
    prosody = draw_blend(choose, english, foreign)
    timbre = draw_blend(choose, english, foreign) if choose.random() < 0.45 else prosody
    wide = choose.random() < 0.15
    even = choose.random() < 0.25
    return Delivery(
        prosody=prosody,
        timbre=timbre,
        timbre_noise=choose.uniform(0.0, 0.8) if choose.random() < 0.6 else 0.0,
        speed=min(1.5, max(0.65, choose.gauss(1.03, 0.17))),
        pitch=choose.uniform(0.65, 1.5) if wide else math.exp(choose.gauss(0.0, 0.12)),
        pitch_range=choose.uniform(0.4, 1.6),
        rhythm=0.0 if even else choose.uniform(0.0, 0.45),
        word_rhythm=0.0 if even else choose.uniform(0.0, 0.5),
        drift=0.0 if even else choose.uniform(0.0, 0.3),
        haste=1.0 if even else choose.uniform(0.7, 1.05),
        blur=0.0 if even or choose.random() < 0.4 else choose.uniform(0.1, MOST_BLUR),
    )


def stretch_words(sentence: Sentence, delivery: Delivery, choose: random.Random) -> list[float]:
    """Return a factor on the duration of every phoneme, pads included: words and stretches have their own tempo."""
    factors = [1.0] * (len(sentence.phonemes) + 2)
    tempo = 1.0
    for i, word in enumerate(sentence.words):
        if i % 3 == 0:
            tempo = math.exp(choose.gauss(0.0, delivery.drift))
        factor = tempo * math.exp(choose.gauss(0.0, delivery.word_rhythm))
        if word.word in FUNCTION_WORDS:
            factor *= delivery.haste
        for k in range(word.start, word.stop):
            factors[1 + k] = factor
    return factors


def accent(phonemes: str, choose: random.Random) -> str:
    """Return the phonemes as a speaker of another accent might say them; same length."""
    rules = choose.choice(ACCENTS)
    strength = choose.uniform(0.4, 1.2)
    table = {old: (new, chance * strength) for old, new, chance in rules}
    return "".join(
        table[symbol][0] if symbol in table and choose.random() < table[symbol][1] else symbol for symbol in phonemes
    )


class Speaker:
    """The synthesiser with its voices, ready to speak batches."""

    def __init__(self, kokoro: Path, device: str, half_precision: bool) -> None:
        sys.path.insert(0, str(kokoro))
        from kokoro_batch import Synth  # the pack's own module

        self.device, self.half_precision = device, half_precision
        self.synth = Synth(
            str(kokoro / "kokoro82m_int8_torch.npz"),
            str(kokoro / "vocab.json"),
            str(kokoro),
            str(kokoro / "voices_en28_fp16.npz"),
            device,
        )
        self.english = [voice for voice in self.synth.V if voice not in HELD_OUT_VOICES]
        self.foreign: list[str] = []
        if (kokoro / "voices_other26_fp16.npz").exists():
            pack = np.load(kokoro / "voices_other26_fp16.npz")
            self.foreign = list(pack.files)
            self.synth.V.update({voice: torch.from_numpy(pack[voice].astype(np.float32)) for voice in pack.files})
        usable = torch.stack([self.synth.V[voice][60] for voice in self.english + self.foreign])
        self.timbre_std = usable[:, :128].std(0).to(device)

    @torch.inference_mode()
    def plan(
        self, phonemes: list[str], deliveries: list[Delivery], tempi: list[list[float]], noise: torch.Generator
    ) -> list[dict[str, Any]]:
        """Return one item for each utterance with its phoneme durations, not yet audible."""
        items = self.synth.stage_a(phonemes, [d.prosody for d in deliveries], [d.speed for d in deliveries])
        for item, text, delivery, tempo in zip(items, phonemes, deliveries, tempi, strict=True):
            if delivery.timbre is not delivery.prosody:
                style = self.synth.style(delivery.timbre, len(text) - 1)
                item["ref"] = torch.cat((style[:128].to(self.device), item["ref"][128:]))
            jolt = torch.randn(128, generator=noise).to(self.device) * self.timbre_std * delivery.timbre_noise
            item["ref"] = torch.cat((item["ref"][:128] + jolt, item["ref"][128:]))
            stretch = torch.exp(torch.randn(len(item["dur"]), generator=noise) * delivery.rhythm) * torch.tensor(tempo)
            item["dur"] = torch.round(item["dur"] * stretch).clamp(min=1).long()
            item["pitch"], item["pitch_range"], item["blur"] = delivery.pitch, delivery.pitch_range, delivery.blur
        return list(items)

    @torch.inference_mode()
    def speak(self, items: list[dict[str, Any]]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Speak items of nearly equal length.

        Returns:
            (n_items, n_samples) int16 at 16 kHz, and the phoneme durations in frames; the trailing pad of shorter
            items is lengthened, so that all end together.
        """
        n_frames = max(int(item["dur"].sum()) for item in items)
        expanded, text, durations = [], [], []
        for item in items:
            duration = item["dur"].clone()
            duration[-1] += n_frames - int(duration.sum())
            durations.append(duration.numpy())
            index = torch.repeat_interleave(torch.arange(len(duration)), duration).to(self.device)
            expanded.append(item["d"][index].T)
            articulation = item["t"][:, index]
            if item["blur"]:
                around = F.avg_pool1d(articulation[None], BLUR_FRAMES, 1, BLUR_FRAMES // 2, count_include_pad=False)[0]
                articulation = torch.lerp(articulation, around, item["blur"])
            text.append(articulation)
        style = torch.stack([item["ref"] for item in items])
        pitch_hz, energy = self.synth.M.predictor.F0Ntrain(torch.stack(expanded), style[:, 128:])
        pitch_hz = self._move_pitch(pitch_hz, items)
        with torch.autocast("cuda", dtype=torch.float16, enabled=self.half_precision and self.device != "cpu"):
            audio = self.synth.M.decoder(torch.stack(text), pitch_hz, energy, style[:, :128])
        audio = torch.nan_to_num(audio.reshape(len(items), -1).float())
        n_samples = audio.shape[1] * 2 // 3  # 24 kHz to 16 kHz by cutting the spectrum
        audio = torch.fft.irfft(torch.fft.rfft(audio)[:, : n_samples // 2 + 1], n=n_samples) * (2 / 3)
        return (audio.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy(), durations

    def _move_pitch(self, pitch_hz: torch.Tensor, items: list[dict[str, Any]]) -> torch.Tensor:
        """Scale F0 and its distance from the mean where speech is voiced."""
        voiced = pitch_hz > 30
        n_voiced = voiced.sum(-1, keepdim=True).clamp(min=1)
        log_pitch = pitch_hz.clamp(min=30).log()
        mean = (log_pitch * voiced).sum(-1, keepdim=True) / n_voiced
        shape = [-1] + [1] * (pitch_hz.dim() - 1)
        shift = torch.tensor([math.log(item["pitch"]) for item in items], device=self.device).view(shape)
        spread = torch.tensor([item["pitch_range"] for item in items], device=self.device).view(shape)
        return torch.where(voiced, (mean + shift + (log_pitch - mean) * spread).exp().clamp(40, 600), pitch_hz)


def group_by_length(items: list[tuple[Sentence, dict[str, Any]]]) -> list[list[tuple[Sentence, dict[str, Any]]]]:
    """Group (sentence, item) pairs whose lengths differ by at most 6 frames (150 ms)."""
    items = sorted(items, key=lambda pair: int(pair[1]["dur"].sum()))
    groups, start = [], 0
    while start < len(items):
        shortest = int(items[start][1]["dur"].sum())
        limit = max(4, min(128, BATCH_FRAMES // max(1, shortest)))
        stop = start
        while stop < len(items) and stop - start < limit and int(items[stop][1]["dur"].sum()) - shortest <= 6:
            stop += 1
        groups.append(items[start:stop])
        start = stop
    return groups


def label_table(vocabulary: dict[str, int]) -> dict[str, int]:
    """Return the label of every phoneme symbol; silence is 0."""
    return {symbol: 0 if i < N_SILENT_IDS else i for symbol, i in vocabulary.items()}


def source_of(words: list[str]) -> str:
    """Return the source of an utterance: digits and commands alone, other utterances of up to three words, the rest."""
    if COMMANDS.issuperset(words):
        return "synthetic-command"
    return "synthetic-short" if len(words) <= 3 else "synthetic"


def describe(sentence: Sentence, durations: np.ndarray, table: dict[str, int], pieces: WordPieces) -> Row:
    """Return a shard's row: frames, one phoneme label a frame, words as (start, end, ids) in samples, source."""
    labels = np.array([0, *(table[symbol] for symbol in sentence.phonemes), 0], np.uint8)
    ends = np.concatenate([[0], np.cumsum(durations)]) * FRAME_SAMPLES
    words = []
    for word in sentence.words:
        start, stop = ends[1 + word.start], ends[1 + word.stop]
        words.append((int(start), int(start + (stop - start) * word.fraction), pieces.encode(word.word)))
    source = source_of([word.word for word in sentence.words])
    return int(durations.sum()), np.repeat(labels, durations), words, source


def read_retellable(directory: Path, names: list[str]) -> list[tuple[np.ndarray, Words, str]]:
    """Return recorded clips as (samples in whole frames at the archive's level, words, speaker), the shortest first."""
    pieces_of = []
    for name in names:
        for clip in read_list(directory, name):
            rms = max(QUIET, float(np.sqrt(np.mean(np.square(clip.samples, dtype=np.float32)))))
            samples = np.clip(clip.samples * (LEVEL / rms), -32767, 32767).astype(np.int16)
            samples = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
            pieces_of.append((samples, clip.words, speaker_of(name, clip)))
    return sorted(pieces_of, key=lambda clip: len(clip[0]))


def describe_clip(samples: np.ndarray, words: Words, pieces: WordPieces) -> Row:
    """Return a shard's row for a recorded clip, whose phonemes are unknown."""
    n_frames = len(samples) // FRAME_SAMPLES
    placed = [(int(start * 16000), min(len(samples), int(end * 16000)), pieces.encode(w)) for w, start, end in words]
    return n_frames, np.full(n_frames, NO_PHONEME, np.uint8), [word for word in placed if word[1] > word[0]], "retold"


class Shard:
    """Utterances on their way to SHARD.npy and SHARD.pkl."""

    def __init__(self) -> None:
        self.audio: list[np.ndarray] = []
        self.rows: list[Row] = []

    @property
    def n_samples(self) -> int:
        return sum(map(len, self.audio))

    def add(self, spoken: np.ndarray, rows: list[Row]) -> None:
        """Add utterances (B, S) as they are; S may be longer than some."""
        for samples, row in zip(spoken, rows, strict=True):
            self._append(samples, row)

    def add_retold(self, spoken: np.ndarray, rows: list[Row], mosaic: Mosaic, cast: Cast, source: str) -> None:
        """Add utterances, each with its twin behind it and a source of its own where the cast could retell it."""
        said, likeness = mosaic.retell(spoken, cast)
        for samples, twin, row, alike in zip(spoken, said, rows, likeness, strict=True):
            is_retold = alike >= LEAST_LIKENESS
            self._append(samples, (*row[:-1], source) if is_retold else row)
            if is_retold:
                self._append(twin, (row[0], None, [], TWIN))

    def _append(self, samples: np.ndarray, row: Row) -> None:
        self.audio.append(samples[: row[0] * FRAME_SAMPLES])
        self.rows.append(row)

    def write(self, stem: Path) -> None:
        np.save(stem.with_suffix(".npy"), np.concatenate(self.audio))
        stem.with_suffix(".tmp").write_bytes(pickle.dumps(self.rows, protocol=5))
        stem.with_suffix(".tmp").rename(stem.with_suffix(".pkl"))  # the reader waits for this name


def work(
    speaker: Speaker, mosaic: Mosaic | None, rows: list[list[str]], table: dict[str, int], options: argparse.Namespace
) -> None:
    """Speak this shard's sentences in random order, again with other deliveries if time is left, until the deadline."""
    choose = random.Random(1000 * options.seed + options.shard)
    noise = torch.Generator().manual_seed(1000 * options.seed + options.shard)
    pieces = WordPieces.load(options.pieces)
    clips = read_retellable(options.recorded, options.retell) if mosaic else []
    order = []
    for i, row in enumerate(rows):
        words = words_of(row[1])
        if any(len(word) > 1 or word in "ai" for word in words):  # letters alone teach nothing that is asked for
            order += [i] * (COMMANDS_REPEATED if COMMANDS.issuperset(words) else 1)
    random.Random(options.seed).shuffle(order)
    mine, done, part, n_samples, began = order[options.shard :: options.n_shards], 0, 0, 0, time.time()
    while time.time() < options.until and (not options.limit or done < options.limit):
        size = options.limit or min(ROUND_SENTENCES, 200 * 2**part)  # short rounds first: speech is awaited
        if done + size > len(mine):
            choose.shuffle(mine)
            done = 0
        built = [build_sentence(*rows[i]) for i in mine[done : done + size]]
        chosen = sorted((sentence for sentence in built if sentence), key=lambda sentence: len(sentence.phonemes))
        done += size
        items: list[tuple[Sentence, dict[str, Any]]] = []
        for start in range(0, len(chosen), 128):
            batch = chosen[start : start + 128]
            deliveries = [draw_delivery(choose, speaker.english, speaker.foreign) for _ in batch]
            tempi = [stretch_words(s, d, choose) for s, d in zip(batch, deliveries, strict=True)]
            phonemes = [sentence.phonemes for sentence in batch]
            phonemes = [accent(p, choose) if choose.random() < ACCENTED else p for p in phonemes]
            items += list(zip(batch, speaker.plan(phonemes, deliveries, tempi, noise), strict=True))
        groups = group_by_length(items)
        choose.shuffle(groups)
        shard = Shard()
        for group in groups:
            if time.time() > options.until:
                break
            spoken, durations = speaker.speak([item for _, item in group])
            described = [describe(s, frames, table, pieces) for (s, _), frames in zip(group, durations, strict=True)]
            if mosaic and choose.random() < options.mosaic:
                shard.add_retold(spoken, described, mosaic, mosaic.draw_cast(choose), "mosaic")
            else:
                shard.add(spoken, described)
        for _ in range(-(-size // SENTENCES_A_RETELLING) if mosaic and clips else 0):
            first = choose.randrange(max(1, len(clips) - RETOLD_TOGETHER))
            batch = clips[first : first + RETOLD_TOGETHER]
            spoken = np.stack([np.pad(samples, (0, len(batch[-1][0]) - len(samples))) for samples, _, _ in batch])
            described = [describe_clip(samples, words, pieces) for samples, words, _ in batch]
            others = mosaic.draw_cast(choose, without={speaker for _, _, speaker in batch})
            shard.add_retold(spoken, described, mosaic, others, "retold")
        if shard.rows:
            shard.write(options.out / f"s{options.seed}_{options.shard}_{part}")
            n_samples += shard.n_samples
            part += 1
        hours = n_samples / 16000 / 3600
        print(
            f"shard {options.shard}: {hours:.2f} h, {hours * 3600 / (time.time() - began):.0f} x real time", flush=True
        )


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description="Kokoro synthesis worker")
    parser.add_argument("--kokoro", type=Path, required=True, help="folder of the synthesiser pack")
    parser.add_argument("--sentences", type=Path, required=True, help=".tsv.xz of source, text, phonemes")
    parser.add_argument("--pieces", type=Path, required=True, help="BPE merges")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mosaic", type=float, default=0.0, help="share of the batches retold with recorded speech")
    parser.add_argument("--recorded", type=Path, help="folder of index.tsv, Opus files, words.json, for --mosaic")
    parser.add_argument("--lists", nargs="*", default=[], help="lists in --recorded to take pieces from")
    parser.add_argument("--readers", nargs="*", default=[], help="those of them from which half of the casts are drawn")
    parser.add_argument("--retell", nargs="*", default=[], help="lists in --recorded whose clips are retold too")
    parser.add_argument("--teacher", type=Path, help="Whisper's encoder (.safetensors), which finds the pieces")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--n-shards", type=int, default=1)
    parser.add_argument("--until", type=float, required=True, help="Unix time at which to stop")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full-precision", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="sentences to speak, for a rehearsal")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(2)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device.startswith("cuda"):
        torch.cuda.set_device(options.device)
    speaker = Speaker(options.kokoro, options.device, not options.full_precision)
    mosaic = None
    if options.mosaic:
        mosaic = Mosaic(
            Teacher.load(options.teacher, torch.device(options.device), LAYERS),
            options.recorded,
            options.lists,
            options.readers,
        )
    rows = read_rows(options.sentences)
    table = label_table(json.loads((options.kokoro / "vocab.json").read_text())["vocab"])
    print(
        f"shard {options.shard} ready: {len(rows)} sentences, {len(speaker.english)} English voices, "
        f"{len(speaker.foreign)} foreign",
        flush=True,
    )
    work(speaker, mosaic, rows, table, options)


if __name__ == "__main__":
    main()
