"""Speech of other synthesisers for variety: flite and espeak-ng.

Speaks random sentences with random voices, speeds and pitches, joins them to one Opus list with its rows in index.tsv, ready
for `collect` to align. A few hours are enough: these voices widen the range, they do not sound like people.

    python -m voxpipe.tiny.training.engines TEXTS OUT_DIR --name other-engines --hours 1.5
"""

import argparse
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
FLITE_VOICES = ["slt", "awb", "rms", "kal16"]
ESPEAK_VOICES = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029"]
ESPEAK_VARIANTS = ["", "+f1", "+f2", "+f3", "+f4", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+klatt2"]


def speak(text: str, path: Path, choose: random.Random) -> str:
    """Write one spoken sentence to `path`; return the speaker's name."""
    draw = choose.random()
    if draw < 0.7:
        voice = choose.choices(FLITE_VOICES, [4, 3, 3, 1])[0]
        stretch = f"duration_stretch={choose.uniform(0.8, 1.25):.2f}"
        shift = f"f0_shift={choose.uniform(0.8, 1.25):.2f}"
        command = ["flite", "-voice", voice, "--setf", stretch, "--setf", shift, "-t", text, "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return f"flite-{voice}"
    voice = choose.choice(ESPEAK_VOICES) + choose.choice(ESPEAK_VARIANTS)
    speed, pitch = str(choose.randint(120, 210)), str(choose.randint(20, 80))
    command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(path), text]
    subprocess.run(command, check=True, capture_output=True)
    return f"espeak-{voice}"


def read_16k(path: Path) -> np.ndarray:
    """Return the samples of a WAV at 16 kHz, resampled in the frequency domain."""
    samples, rate = soundfile.read(path, dtype="float32")
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    n_samples = round(len(samples) * SAMPLE_RATE / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: n_samples // 2 + 1], n=n_samples) * (n_samples / len(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description="speech of other synthesisers")
    parser.add_argument("texts", type=Path, help="plain sentences, one a line")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="other-engines")
    parser.add_argument("--hours", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    texts = options.texts.read_text().splitlines()
    audio: list[np.ndarray] = []
    rows, n_samples = [], 0
    gap = np.zeros(4000, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        while n_samples < options.hours * 3600 * SAMPLE_RATE:
            text = choose.choice(texts)
            speaker = speak(text, wav, choose)
            samples = read_16k(wav).astype(np.float32)
            if not 8000 < len(samples) < 20 * SAMPLE_RATE:
                continue
            samples *= 0.25 / max(1e-3, float(np.abs(samples).max()))
            rows.append(
                [
                    f"{options.name}.opus",
                    f"{n_samples / SAMPLE_RATE:.4f}",
                    f"{len(samples) / SAMPLE_RATE:.4f}",
                    speaker,
                    "synthetic",
                    "",
                    text,
                ]
            )
            audio += [samples, gap]
            n_samples += len(samples) + len(gap)
        joined = Path(folder) / "joined.wav"
        soundfile.write(joined, np.concatenate(audio), SAMPLE_RATE, subtype="PCM_16")
        target = options.out / f"{options.name}.opus"
        subprocess.run(["opusenc", "--quiet", "--bitrate", "20", str(joined), str(target)], check=True)
    header = ["file", "start_s", "dur_s", "speaker", "source", "licence", "text"]
    lines = ["\t".join(row) for row in [header, *rows]]
    (options.out / "index.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
