"""Speech of other synthesisers for variety: flite and espeak-ng.

Speaks random sentences with random voices, speeds and pitches, joins them to one Opus list with its rows in index.tsv, ready
for `collect` to align. A few hours are enough: these voices widen the range, they do not sound like people.

    python -m voxpipe.tiny.training.engines TEXTS OUT_DIR --name other-engines --hours 1.5
"""

import argparse
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from .collect import SAMPLE_RATE, resample, write_list

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


def spoken(texts: list[str], hours: float, seed: int) -> Iterator[tuple[np.ndarray, str, str, str, str]]:
    """Yield clips for `write_list` until there are `hours` of them."""
    choose, n_samples = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        while n_samples < hours * 3600 * SAMPLE_RATE:
            text = choose.choice(texts)
            speaker = speak(text, wav, choose)
            samples = resample(*soundfile.read(wav, dtype="float32"))
            if 8000 < len(samples) < 20 * SAMPLE_RATE:
                n_samples += len(samples)
                yield samples * (0.25 / max(1e-3, float(np.abs(samples).max()))), speaker, "synthetic", "", text


def main() -> None:
    parser = argparse.ArgumentParser(description="speech of other synthesisers")
    parser.add_argument("texts", type=Path, help="plain sentences, one a line")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="other-engines")
    parser.add_argument("--hours", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    texts = options.texts.read_text().splitlines()
    write_list(options.out, options.name, spoken(texts, options.hours, options.seed), kbit_s=20)


if __name__ == "__main__":
    main()
