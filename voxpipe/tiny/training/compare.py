"""The checkpoint in PyTorch beside the same checkpoint in voxpipe, token by token.

Both sides get the same stored weights (quantized ones as the numbers they stand for) in float32. voxpipe hears every clip
as a live stream in chunks of 80 ms. A clip is the same when every token is; the tokens that count as equal end where the
two first part, since a different token changes all that follow. Exit status 1 if any clip differs.

    python -m voxpipe.tiny.training.compare CHECKPOINT_DIR REAL_DIR --lists dev-librispeech,dev-ljspeech --delays 1,6,30
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

from voxpipe import load
from voxpipe.config import MS_PER_TOKEN, SAMPLES_PER_TOKEN
from voxpipe.runtime.transcriber import Transcriber

from .evaluate import read_audio, transcribe
from .export import load_tensors, read_config
from .network import LogMel, Network

BATCH_SIZE = 16


@dataclass
class Counts:
    """What was compared, and what of it was equal."""

    clips: int = 0
    same_clips: int = 0
    tokens: int = 0
    same_tokens: int = 0

    def add(self, one: list[int], other: list[int]) -> None:
        n = min(len(one), len(other))
        parted = next((i for i in range(n) if one[i] != other[i]), n)
        self.clips += 1
        self.tokens += n
        self.same_tokens += parted
        self.same_clips += parted == n


def read_stored(directory: Path) -> Network:
    """Return the network of a checkpoint folder, plain or quantized, with the weights as stored."""
    config = json.loads((directory / "config.json").read_text())
    stored = mx.load(str(directory / "model.safetensors"))
    tensors: dict[str, Tensor] = {}
    for name, weight in stored.items():
        if name.endswith((".scales", ".biases")):
            continue
        stem = name.removesuffix(".weight")
        if weight.dtype == mx.uint32:
            scales, biases = (stored[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            rule = config["quantization"] | config["quantization"].get(stem, {})
            weight = mx.dequantize(weight, scales, biases, group_size=rule["group_size"], bits=rule["bits"])
        tensors[name] = torch.from_numpy(np.array(weight.astype(mx.float32)))
    network = Network(read_config(config))
    load_tensors(network, tensors)
    return network.eval()


def stream_tokens(transcriber: Transcriber, samples: np.ndarray, delay_ms: int) -> list[int]:
    """Return the tokens that voxpipe samples for one live stream."""
    session = transcriber.create_streaming_session(transcription_delay_ms=delay_ms, keep_tokens=True)
    for first in range(0, len(samples), SAMPLES_PER_TOKEN):
        session.feed(samples[first : first + SAMPLES_PER_TOKEN])
        while not session.starved:
            session.step()
    session.close()
    while not session.done:
        session.step()
    return list(session.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description="PyTorch beside voxpipe, token by token")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("directory", type=Path, help="folder of index.tsv and the Opus files")
    parser.add_argument("--lists", default="dev-librispeech,dev-ljspeech")
    parser.add_argument("--delays", default="6", help="in tokens of 80 ms")
    parser.add_argument("--limit", type=int, help="use only so many clips of each list")
    options = parser.parse_args()
    with mx.stream(mx.cpu):
        network = read_stored(options.checkpoint)
    transcriber = load(options.checkpoint)
    mel = LogMel(torch.device("cpu"))
    delays = [int(delay) for delay in options.delays.split(",")]
    total = Counts()
    for name in options.lists.split(","):
        audio = read_audio(options.directory, name)[0][: options.limit]
        for delay, streams in transcribe(network, mel, audio, delays, batch_size=BATCH_SIZE).items():
            counts = Counts()
            for samples, tokens in zip(audio, streams, strict=True):
                heard = stream_tokens(transcriber, samples.numpy(), delay * MS_PER_TOKEN)
                counts.add(tokens, heard)
                total.add(tokens, heard)
            print(
                f"{name} {delay * MS_PER_TOKEN} ms: {counts.same_clips} of {counts.clips} clips the same, "
                f"{counts.same_tokens} of {counts.tokens} tokens",
                flush=True,
            )
    print(f"all: {total.same_clips} of {total.clips} clips, {total.same_tokens} of {total.tokens} tokens")
    sys.exit(total.same_clips < total.clips)


if __name__ == "__main__":
    main()
