"""`python -m voxpipe.bench wer`: word and character error rates of a model over lists of clips, by delay.

Each clip is fed to a session in chunks of 80 ms, as if it were live; what is compared is what a user would have seen.
Both texts are normalised alike: lower case, typographic apostrophes made plain, hyphens and everything but letters, digits
and apostrophes made spaces. Numbers are not spelled out: "4" for "four" is an error.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from voxpipe.cli.options import Delay
from voxpipe.config import SAMPLE_RATE, SAMPLES_PER_TOKEN
from voxpipe.errors import InputError, UnavailableError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file and what is said in it."""

    file: str
    start_s: float
    dur_s: float
    text: str


@click.command()
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--only", default="*", show_default=True, help="Pattern of the files to use.")
@click.option("--delay", "delays_ms", type=Delay(), multiple=True, default=(480,), show_default=True)
@click.option("--model", "models", multiple=True, default=("tiny",), show_default=True, help="Name or directory.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only so many clips of each file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per clip as well, with both texts.")
def wer(
    manifest: Path, only: str, delays_ms: tuple[int, ...], models: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """Print error rates over MANIFEST, tab-separated with the columns file, start_s, dur_s and text, beside its files."""
    try:
        import jiwer
    except ImportError as exc:
        raise UnavailableError("the error rates need jiwer; install it with: pip install jiwer") from exc
    from voxpipe.runtime.transcriber import load

    clips = [clip for clip in read_manifest(manifest) if fnmatch(clip.file, only)]
    if not clips:
        raise InputError(f"{manifest} has no file that matches {only}")
    click.echo(f"{'model':20}{'list':28}{'delay':>8}{'clips':>7}{'words':>7}{'WER %':>8}{'CER %':>8}")
    for name in models:
        transcriber = load(name)
        for file, group in groupby(clips, key=lambda clip: clip.file):
            chosen = list(group)[:limit]
            samples = read_clips(manifest.parent / file, chosen)
            references = [normalise(clip.text) for clip in chosen]
            for delay_ms in delays_ms:
                heard = [stream(transcriber, audio, delay_ms) for audio in samples]
                hypotheses = [normalise(text) for text in heard]
                if as_json:
                    for clip, text in zip(chosen, heard, strict=True):
                        click.echo(json.dumps({**vars(clip), "delay_ms": delay_ms, "heard": text}, ensure_ascii=False))
                n_words = sum(len(reference.split()) for reference in references)
                rates = 100 * jiwer.wer(references, hypotheses), 100 * jiwer.cer(references, hypotheses)
                row = f"{transcriber.name:20}{Path(file).stem:28}{delay_ms:5} ms{len(chosen):7}{n_words:7}"
                click.echo(f"{row}{rates[0]:8.2f}{rates[1]:8.2f}")


def read_manifest(manifest: Path) -> Iterator[Clip]:
    """The clips with words in them; those without are for other tests than this one.

    Raises:
        InputError: a column is missing or a number is none.
    """
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            try:
                clip = Clip(row["file"], float(row["start_s"]), float(row["dur_s"]), row["text"])
            except (KeyError, TypeError, ValueError) as exc:
                raise InputError(
                    f"{manifest} must have the columns file, start_s, dur_s and text: {exc!r} in {row}"
                ) from exc
            if normalise(clip.text):
                yield clip


def read_clips(path: Path, clips: list[Clip]) -> list[Floats]:
    """The samples of each clip of one file."""
    from voxpipe.audio.files import read_blocks

    whole = np.concatenate(list(read_blocks(path)))
    starts = [round(clip.start_s * SAMPLE_RATE) for clip in clips]
    return [whole[start : start + round(clip.dur_s * SAMPLE_RATE)] for start, clip in zip(starts, clips, strict=True)]


def normalise(text: str) -> str:
    """The text as it is compared."""
    text = text.lower().replace("\u2019", "'")
    words = re.sub(r"[^\w']|_", " ", text).split()
    return " ".join(word for word in (word.strip("'") for word in words) if word)


def stream(transcriber: Any, samples: Floats, delay_ms: int) -> str:
    """What a live stream of these samples reads."""
    session = transcriber.create_streaming_session(transcription_delay_ms=delay_ms)
    deltas: list[str] = []
    for first in range(0, len(samples), SAMPLES_PER_TOKEN):
        session.feed(samples[first : first + SAMPLES_PER_TOKEN])
        while not session.starved:
            deltas += session.step()
    session.close()
    while not session.done:
        deltas += session.step()
    return "".join(deltas).strip()
