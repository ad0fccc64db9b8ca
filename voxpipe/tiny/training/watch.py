"""Word error rates of a run while it goes on: evaluates every state that appears in its folder, on a device of its own.

    python -m voxpipe.tiny.training.watch RUN/out RECORDED_DIR PIECES.json --device cuda:0

States named stepN.pt are read on four lists; `late.pt` and `final.pt` on all lists and on a minute each of silence, noise
and music. Writes OUT/curve.json, and OUT/heard_NAME.json with every text of the last two.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from .augment import coloured_noise, music
from .evaluate import read_audio, transcribe, word_error_rate
from .export import read_state
from .network import LogMel, Network
from .text import WordPieces

WATCHED = ["dev-librispeech", "dev-ljspeech", "dev-kokoro-unseen", "dev-commands"]
DELAY = 6  # tokens of 80 ms
MINUTE = 60 * 16000


class Watcher:
    """Evaluates states on one device; lists stay in memory."""

    def __init__(self, recorded: Path, pieces: Path, device: torch.device) -> None:
        self.recorded, self.device = recorded, device
        self.pieces = WordPieces.load(pieces)
        self.mel = LogMel(device)
        self.names = sorted(path.stem for path in recorded.glob("dev-*.opus"))
        self.lists = {name: read_audio(recorded, name) for name in self.names}

    def hear(self, network: Network, name: str) -> list[str]:
        streams = transcribe(network, self.mel, self.lists[name][0], [DELAY], batch_size=256)[DELAY]
        return [self.pieces.decode(tokens) for tokens in streams]

    def evaluate(self, path: Path) -> dict[str, Any]:
        """Return WER by list; for states of the end also what non-speech gives, and all texts beside them."""
        network = read_state(path)[0].to(self.device).eval()
        is_last = not path.stem.startswith("step")
        heard = {name: self.hear(network, name) for name in (self.names if is_last else WATCHED) if name in self.lists}
        entry: dict[str, Any] = {"state": path.stem}
        entry |= {name: round(word_error_rate(self.lists[name][1], texts), 2) for name, texts in heard.items()}
        if is_last:
            entry["without speech"] = self.without_speech(network)
            (path.parent / f"heard_{path.stem}.json").write_text(json.dumps(heard))
        return entry

    def without_speech(self, network: Network) -> dict[str, list[str]]:
        """Return the texts of a minute of silence and of four levels of noise and pieces of music."""
        levels = torch.tensor([[0.003], [0.01], [0.03], [0.1]], device=self.device)
        sounds = {
            "silence": torch.zeros(1, MINUTE),
            "noise": coloured_noise(4, MINUTE, self.device) * levels,
            "music": music(4, MINUTE, self.device) * 0.05,
        }
        streams = {kind: transcribe(network, self.mel, list(clips), [DELAY])[DELAY] for kind, clips in sounds.items()}
        return {kind: [self.pieces.decode(tokens)[:80] for tokens in rows] for kind, rows in streams.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="evaluate the states of a run as they appear")
    parser.add_argument("out", type=Path, help="folder the run saves its states to")
    parser.add_argument("recorded", type=Path, help="folder of index.tsv and the Opus files")
    parser.add_argument("pieces", type=Path, help="BPE merges")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    watcher = Watcher(options.recorded, options.pieces, torch.device(options.device))
    curve: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while options.out / "final.pt" not in seen:
        for path in sorted(set(options.out.glob("*.pt")) - seen, key=lambda path: path.stat().st_mtime):
            seen.add(path)
            curve.append(watcher.evaluate(path))
            print(json.dumps(curve[-1]), flush=True)
            (options.out / "curve.json").write_text(json.dumps(curve, indent=0))
        time.sleep(1)


if __name__ == "__main__":
    main()
