"""Recorded speech of actors: the spoken lines of three freely licensed adventure games become lists with transcripts.

Every line of such a game is a file of its own whose words the player can read, so that speech and text belong together
without any recogniser. Left out are lines that are no words (cries, spelled letters, digits) or are spoken at an unlikely
speed. The lists go to OUT, their rows are added to OUT/index.tsv; `collect` aligns them.

    python -m voxpipe.tiny.training.adventures SCUMMVM_DIR OUT

SCUMMVM_DIR is usr/share/scummvm of the unpacked Debian packages beneath-a-steel-sky, drascula, flight-of-the-amazon-queen.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..collect import SAMPLE_RATE, resample, write_list
from ..corpus import TITLES
from ..text import words_of
from . import drascula, queen, sky

Line = tuple[str, str, np.ndarray, int]  # speaker, text, int16 samples, samples a second
GAMES: dict[str, tuple[Callable[[Path], Iterator[Line]], str]] = {
    "sky": (sky.lines, "beneath-a-steel-sky"),
    "drascula": (drascula.lines, "drascula/en"),
    "queen": (queen.lines, "flight-of-the-amazon-queen/queen.1c"),
}
SLOWEST, FASTEST = 4.0, 28.0  # letters a second
SHORTEST_S = 0.25
KBIT_S = 16  # nothing lies above 5.5 kHz


def readable(text: str) -> str | None:
    """Return the text with titles written out, or None if it is not made of words."""
    for short, long in TITLES.items():
        text = text.replace(short, long)
    words = words_of(text)
    if re.search(r"[0-9<>()\[\]{}#$%=+/\\]", text) or not all(re.search("[aeiouy]", word) for word in words):
        return None
    return " ".join(text.split()) if len("".join(words)) > 1 else None


def clips(name: str, lines: Iterator[Line]) -> Iterator[tuple[np.ndarray, str, str, str, str]]:
    """Yield the lines of a game as clips for `write_list`."""
    for speaker, raw, samples, rate in lines:
        text, duration_s = readable(raw), len(samples) / rate
        if text and duration_s >= SHORTEST_S and SLOWEST <= len(text) / duration_s <= FASTEST:
            yield resample(samples / 32768, rate), speaker, name, "distributable with its notices, not for sale", text


def main() -> None:
    games, out = map(Path, sys.argv[1:])
    for name, (lines, place) in GAMES.items():
        found = list(clips(name, lines(games / place)))
        write_list(out, f"train-{name}", found, KBIT_S)
        n_samples = sum(len(samples) for samples, *_ in found)
        print(f"train-{name}: {len(found)} lines, {n_samples / SAMPLE_RATE / 3600:.2f} h", flush=True)


if __name__ == "__main__":
    main()
