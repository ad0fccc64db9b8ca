"""Make tests/data/golden/transformers.npz: `python -m tests.parity.make_golden`, with the extra `parity` installed.

A small random checkpoint (from a seed: only its fingerprint is stored), 0.6 s of audio, and what transformers makes of
them, so that CI holds voxpipe to the reference without PyTorch.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.model import golden
from tests.model.offline import prompt
from tests.parity.peers import Transformers
from tests.random_checkpoints import fingerprint, random_tensors, write_checkpoint


def main() -> None:
    import torch
    import transformers

    tensors = random_tensors(golden.SIZES, seed=golden.SEED)
    stored = golden.pcm()
    samples = golden.samples(stored)
    arrays: dict[str, Any] = {
        "versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        "fingerprint": np.array(fingerprint(tensors)),
        "pcm": stored,
    }
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(Path(directory) / "model", "hugging-face", sizes=golden.SIZES, tensors=tensors)
        peer = Transformers(path)
        for delay_ms in golden.DELAYS_MS:
            n_delay_tokens = delay_ms // 80
            mel = peer.mel(samples, n_delay_tokens)
            sampled = peer.generate(samples, delay_ms)
            tokens = np.array(prompt(n_delay_tokens) + sampled)
            assert len(tokens) == len(mel) // 8
            arrays[f"tokens_{delay_ms}"] = np.array(sampled, np.int32)
            arrays[f"logits_{delay_ms}"] = peer.logits(mel, tokens, n_delay_tokens)
            if delay_ms == 480:
                arrays["mel_480"] = mel
                arrays["audio_embeds_480"] = peer.audio_embeds(mel)
    golden.PATH.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(golden.PATH, **arrays)
    print(f"{golden.PATH}: {golden.PATH.stat().st_size} bytes, {arrays['versions']}")
    for name, array in arrays.items():
        print(name, array.shape, array.dtype)


if __name__ == "__main__":
    main()
