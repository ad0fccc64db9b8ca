"""`python -m voxpipe.bench peers`: the same weights and the same audio through voxpipe and mlx-audio, in turn.

Absolute times drift with the machine; the engines alternate, round by round, and what counts is the ratio of the medians.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from voxpipe.audio.files import read_blocks
from voxpipe.bench import work
from voxpipe.bench.work import ENGINES, SAMPLE_RATE
from voxpipe.config import DecoderConfig, EncoderConfig, ModelConfig
from voxpipe.errors import UnavailableError

FIGURES = ("file_rtf", "stream_rtf", "step_ms_p50", "step_ms_p95")
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
    type=click.Choice(["tiny", "large"]),
    multiple=True,
    default=("tiny", "large"),
    show_default=True,
)
@click.option("--seconds", default=30.0, show_default=True, help="Length of audio.")
@click.option("--rounds", default=3, show_default=True, help="Times each engine is run.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def peers(audio: str, models: tuple[str, ...], seconds: float, rounds: int, as_json: bool) -> None:
    """Time voxpipe beside mlx-audio (pip install mlx-audio) on the same weights and the clip AUDIO, repeated to length.

    tiny: the embedded model at fp16. large: 108 M random parameters at float32, most of them in the decoder.
    """
    if importlib.util.find_spec("mlx_audio") is None:
        raise UnavailableError("the comparison needs mlx-audio; install it with: pip install mlx-audio")
    samples = _clip(audio, seconds)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.npy"
        np.save(clip, samples)
        for model in models:
            directory = _write_model(model, Path(scratch) / model)
            results[model] = compare(directory, clip, rounds)
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {name: version(name) for name in ("voxpipe", "mlx", "mlx-audio")},
        "audio_s": len(samples) / SAMPLE_RATE,
        "rounds": rounds,
    }
    if as_json:
        click.echo(json.dumps({**facts, "models": results}, indent=2))
    else:
        _print_table(facts, results)


def compare(directory: Path, clip: Path, rounds: int) -> dict[str, Any]:
    """Run the engines in turn and return each one's medians, and the ratios of the peer's to ours."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, collected in runs.items():
            # by path: the package would put its BLAS under the peer as well
            command = [sys.executable, work.__file__, name, str(directory), str(clip)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            collected.append(json.loads(done.stdout))
    medians: dict[str, Any] = {
        name: {figure: median(run[figure] for run in collected) for figure in FIGURES}
        for name, collected in runs.items()
    }
    ours, theirs = medians["voxpipe"], medians["mlx-audio"]
    texts = {run[text] for collected in runs.values() for run in collected for text in ("file_text", "stream_text")}
    return {
        **medians,
        "ratio": {figure: theirs[figure] / ours[figure] for figure in FIGURES},
        "same_text": len(texts) == 1,
    }


def _clip(audio: str, seconds: float) -> NDArray[np.float32]:
    return np.resize(np.concatenate(list(read_blocks(audio))), int(seconds * SAMPLE_RATE))


def _write_model(model: str, directory: Path) -> Path:
    """Write the model in the layout that both engines read, unquantized."""
    import mlx.core as mx

    from voxpipe.checkpoints.convert import write_network
    from voxpipe.checkpoints.hub import TINY
    from voxpipe.checkpoints.load import build_network, read_checkpoint
    from voxpipe.model.voxtral import VoxtralRealtime

    if model == "tiny":
        checkpoint = read_checkpoint(TINY)
        network = build_network(checkpoint, dtype=mx.float16, dequantize=True)
    else:
        mx.random.seed(0)
        network = VoxtralRealtime(LARGE)
        network.decoder.embed_tokens.weight[LARGE.eos_id] = 0.0  # at an end of sequence the peer stops, wherever it is
    write_network(network, directory)
    if model == "tiny":
        shutil.copy(TINY / "tekken.json", directory)
        return directory
    tekken = {
        "config": {"default_num_special_tokens": 1000},
        "vocab": [{"rank": rank, "token_bytes": "YQ=="} for rank in range(LARGE.decoder.vocab_size - 1000)],
        "special_tokens": [],
    }
    (directory / "tekken.json").write_text(json.dumps(tekken))
    return directory


def _print_table(facts: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    click.echo(
        f"{facts['machine']}; {versions}; {facts['audio_s']:.0f} s of audio, median of {facts['rounds']} runs in turn"
    )
    click.echo(f"{'model':7}{'engine':11}{'file RTF':>10}{'80 ms RTF':>11}{'step p50':>11}{'step p95':>11}")
    for model, result in results.items():
        for name in ENGINES:
            file_rtf, stream_rtf, p50, p95 = (result[name][figure] for figure in FIGURES)
            click.echo(f"{model:7}{name:11}{file_rtf:10.3f}{stream_rtf:11.3f}{p50:8.1f} ms{p95:8.1f} ms")
        ratios = [result["ratio"][figure] for figure in FIGURES]
        click.echo(
            f"{model:7}{'ratio':11}" + f"{ratios[0]:9.1f}x{ratios[1]:10.1f}x{ratios[2]:10.1f}x{ratios[3]:10.1f}x"
        )
        click.echo(f"{model:7}same text: {'yes' if result['same_text'] else 'no'}")
