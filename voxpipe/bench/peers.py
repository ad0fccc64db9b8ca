"""`python -m voxpipe.bench peers`: the same weights and the same audio through voxpipe, mlx-audio and voxmlx, in turn.

Absolute times drift with the machine; the engines alternate, round by round, and what counts is the ratio of the medians.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from voxpipe.bench import work
from voxpipe.bench.sound import read_clip
from voxpipe.bench.work import SAMPLE_RATE, Floats
from voxpipe.config import DecoderConfig, EncoderConfig, ModelConfig
from voxpipe.errors import UnavailableError, UsageError

FIGURES = {"file_rtf": "file RTF", "stream_rtf": "80 ms RTF", "step_ms_p50": "step p50", "step_ms_p95": "step p95"}
FILE_FIGURES = {"files_s": "short s", "files_rtf": "short RTF", "long_rtf": "long RTF"}
SHORT_S = 10.0  # of a short file, if the clip is as long
PACKAGES = {"mlx-audio": "mlx_audio", "voxmlx": "voxmlx"}  # of the peers, and how they are imported
# the encoder is small and the decoder wide, as in the full model: a step is bound by reading the decoder's weights
LARGE = ModelConfig(
    encoder=EncoderConfig(
        dim=256, n_layers=6, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=768, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=750,
    ),
    decoder=DecoderConfig(
        dim=3072, n_layers=2, n_heads=16, n_kv_heads=4, head_dim=128, hidden_dim=2560, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=8192, vocab_size=3584,
    ),
)  # fmt: skip


@click.command()
@click.argument("audio", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--model",
    "models",
    metavar="tiny|large|DIR",
    multiple=True,
    default=("tiny", "large"),
    show_default=True,
)
@click.option("--seconds", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Length of audio.")
@click.option("--files", "n_files", type=click.IntRange(min=1), help="Time so many short files and a long one instead.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Times each engine is run.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def peers(audio: str, models: tuple[str, ...], seconds: float, n_files: int | None, rounds: int, as_json: bool) -> None:
    """Time voxpipe beside mlx-audio and voxmlx on the same weights and the clip AUDIO, repeated to length.

    With --files, the short files are copies of the clip, 10 s of it at most, and the long one is of --seconds. A peer that
    is not installed (pip install mlx-audio voxmlx) is left out. tiny: the embedded model at fp16. large: 108 M random
    parameters at float32, most of them in the decoder. DIR: a checkpoint in mlx-audio's layout, which voxmlx cannot read.
    """
    for model in models:
        if model not in ("tiny", "large") and not Path(model).is_dir():
            raise UsageError(f"there is no model {model!r}; choose tiny, large or a directory")
    installed = [peer for peer, package in PACKAGES.items() if importlib.util.find_spec(package) is not None]
    if not installed:
        raise UnavailableError("the comparison needs a peer; install one with: pip install mlx-audio voxmlx")
    for peer in set(PACKAGES) - set(installed):
        click.echo(f"voxpipe: {peer} is left out: it is not installed (pip install {peer})", err=True)
    samples = read_clip(audio, seconds)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if n_files is None:
            sound = Path(scratch) / "clip.npy"
            np.save(sound, samples)
        else:
            sound = _write_files(Path(scratch) / "files", audio, samples, n_files)
        for model in models:
            if Path(model).is_dir():
                readers = [peer for peer in installed if peer != "voxmlx"]
                results[Path(model).name] = compare(Path(model), sound, rounds=rounds, peers=readers)
            else:
                directory = _write_model(model, Path(scratch) / model)
                results[model] = compare(directory, sound, rounds=rounds, peers=installed)
    from voxpipe.bench.machine import machine_name

    facts = {
        "machine": machine_name(),
        "versions": {name: version(name) for name in ("voxpipe", "mlx", *installed)},
        "audio_s": len(samples) / SAMPLE_RATE,
        "rounds": rounds,
        **({} if n_files is None else {"n_files": n_files}),
    }
    if as_json:
        click.echo(json.dumps({**facts, "models": results}, indent=2))
    else:
        _print_table(facts, results)


def compare(directory: Path, sound: Path, *, rounds: int, peers: list[str]) -> dict[str, Any]:
    """Run the engines in turn, on a clip (.npy) or a folder of files.

    Returns:
        `engines`, the medians of each engine's figures; `ratio`, of each peer, its figures by ours; `same_text`, of each
        peer, whether all its texts, of files and of streams, are those that we give.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("voxpipe", *peers)}
    for _, name in product(range(rounds), runs):
        # by path: the package would put its BLAS under the peer as well
        command = [sys.executable, "-P", work.__file__, name, str(directory), str(sound)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        runs[name].append(json.loads(done.stdout))
    kinds = FIGURES if sound.is_file() else FILE_FIGURES
    medians = {name: {figure: median(run[figure] for run in runs[name]) for figure in kinds} for name in runs}
    # a stream gives the text of the file; a long file has another than short ones
    pairs = [("file_text", "stream_text")] if sound.is_file() else [("files_text",), ("long_text",)]
    texts = {name: [{run[text] for run in runs[name] for text in pair} for pair in pairs] for name in runs}
    return {
        "engines": medians,
        "ratio": {
            peer: {figure: medians[peer][figure] / medians["voxpipe"][figure] for figure in kinds} for peer in peers
        },
        "same_text": {
            peer: all(len(ours | theirs) == 1 for ours, theirs in zip(texts["voxpipe"], texts[peer], strict=True))
            for peer in peers
        },
    }


def _write_files(folder: Path, audio: str, samples: Floats, n_files: int) -> Path:
    """Write the short files and the long one."""
    import soundfile

    folder.mkdir()
    short = read_clip(audio)[: round(SHORT_S * SAMPLE_RATE)]
    for n in range(n_files):
        soundfile.write(folder / f"{n:04}.wav", short, SAMPLE_RATE)
    soundfile.write(folder / work.LONG_FILE, samples, SAMPLE_RATE)
    return folder


def _write_model(model: str, directory: Path) -> Path:
    """Write the model unquantized, in mlx-audio's layout, which voxpipe reads as well, and below it in voxmlx's."""
    import mlx.core as mx

    from voxpipe.bench.checkpoint import tekken, write_voxmlx
    from voxpipe.checkpoints.convert import write_network
    from voxpipe.checkpoints.hub import TINY
    from voxpipe.checkpoints.load import build_network, read_checkpoint
    from voxpipe.model.voxtral import VoxtralRealtime

    if model == "tiny":
        network = build_network(read_checkpoint(TINY), dtype=mx.float16, dequantize=True)
    else:
        mx.random.seed(0)
        network = VoxtralRealtime(LARGE)
        network.decoder.embed_tokens.weight[LARGE.eos_id] = 0.0  # at an end of sequence the peers stop, wherever it is
    write_network(network, directory)
    write_voxmlx(network, directory / "voxmlx")
    for target in (directory, directory / "voxmlx"):
        if model == "tiny":
            shutil.copy(TINY / "tekken.json", target)
        else:
            (target / "tekken.json").write_text(json.dumps(tekken(LARGE.decoder.vocab_size, n_special=1000)))
    return directory


def _print_table(facts: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    audio = f"{facts['audio_s']:.0f} s of audio"
    if "n_files" in facts:
        audio = f"{facts['n_files']} short files and one of {audio}"
    click.echo(f"{facts['machine']}; {versions}; {audio}, median of {facts['rounds']} runs in turn")
    columns = FILE_FIGURES if "n_files" in facts else FIGURES
    click.echo(f"{'model':7}{'engine':17}" + "".join(f"{title:>12}" for title in columns.values()) + "  same text")
    for model, result in results.items():
        for name, figures in result["engines"].items():
            same = "" if name == "voxpipe" else "  yes" if result["same_text"][name] else "  no"
            click.echo(f"{model:7}{name:17}" + "".join(_figure(figure, figures[figure]) for figure in columns) + same)
        for name, ratio in result["ratio"].items():
            click.echo(f"{model:7}{name + ' / ours':17}" + "".join(f"{ratio[figure]:11.1f}x" for figure in columns))


def _figure(name: str, value: float) -> str:
    return f"{value:9.1f} ms" if "_ms_" in name else f"{value:12.3f}"
