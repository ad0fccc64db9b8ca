"""A teacher of features: the encoder of a larger recogniser (Whisper), which the student learns to foretell.

Recorded speech is scarce, and a word error is little to learn from. What a recogniser trained on hundreds of thousands of
hours makes of every 20 ms is much more, and it is nearly the same for a synthetic and for a recorded voice. Only features of
clean training speech are read; no text of the teacher is used.

    python -m voxpipe.tiny.training.teacher MODEL.bin OUT.safetensors     (a CTranslate2 conversion of Whisper)
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from .network import mel_filters

HOP = 320  # samples of one feature
WINDOW_SAMPLES = 480000
GAP_SAMPLES = 4800  # silence between utterances that share a window
N_MELS = 80
HEAD_DIM = 64


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Return the variables of a CTranslate2 model.bin (version 6)."""
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    tensors = {}
    with open(path, "rb") as file:

        def number(form: str) -> int:
            return int(struct.unpack("<" + form, file.read(struct.calcsize(form)))[0])

        def name() -> str:
            return file.read(number("H"))[:-1].decode()

        number("I"), name(), number("I")
        for _ in range(number("I")):
            label, rank = name(), number("B")
            shape = [number("I") for _ in range(rank)]
            kind, n_bytes = number("B"), number("I")
            tensors[label] = torch.from_numpy(np.frombuffer(file.read(n_bytes), types[kind]).copy().reshape(shape))
    return tensors


class Teacher:
    """Whisper's encoder: (B, WINDOW_SAMPLES) at 16 kHz to (B, 1500, dim), in half precision on an accelerator.

    Args:
        n_layers: how many to run, from below; all by default.
    """

    def __init__(self, weights: dict[str, Tensor], device: torch.device, n_layers: int | None = None) -> None:
        self.device = device
        self.type = torch.float16 if device.type == "cuda" else torch.float32
        self.w = {name: weight.to(device, self.type) for name, weight in weights.items()}
        self.n_layers = n_layers or sum(name.endswith("ffn/layer_norm/gamma") for name in weights)
        self.dim = self.w["layer_norm/gamma"].numel()
        self.filters = mel_filters(N_MELS).to(device)
        self.window = torch.hann_window(400, device=device)

    @classmethod
    def load(cls, path: Path, device: torch.device, n_layers: int | None = None) -> "Teacher":
        return cls(load_file(path), device, n_layers)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.w[f"{name}/gamma"], self.w[f"{name}/beta"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}/weight"], self.w[f"{name}/bias"])

    def _log_mel(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, 400, 160, window=self.window, center=True, return_complex=True)[..., :-1]
        log_mel = (self.filters.T @ spectrum.abs().square()).clamp_min(1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.amax((1, 2), keepdim=True) - 8)
        return ((log_mel + 4) / 4).to(self.type)

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        x = F.gelu(F.conv1d(self._log_mel(samples), self.w["conv1/weight"], self.w["conv1/bias"], padding=1))
        x = F.gelu(F.conv1d(x, self.w["conv2/weight"], self.w["conv2/bias"], stride=2, padding=1)).mT
        x = x + self.w["position_encodings/encodings"]
        for i in range(self.n_layers):
            attention, forward = f"layer_{i}/self_attention", f"layer_{i}/ffn"
            joint = self._linear(self._norm(x, f"{attention}/layer_norm"), f"{attention}/linear_0")
            q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in joint.chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self._linear(mixed, f"{attention}/linear_1")
            h = F.gelu(self._linear(self._norm(x, f"{forward}/layer_norm"), f"{forward}/linear_0"))
            x = x + self._linear(h, f"{forward}/linear_1")
        return self._norm(x, "layer_norm")


def pack(lengths: list[int]) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield windows as lists of (utterance, first sample, samples, position in the window), all multiples of HOP."""
    window: list[tuple[int, int, int, int]] = []
    at = GAP_SAMPLES
    for index, length in enumerate(lengths):
        first = 0
        while first < length:
            part = min(length - first, WINDOW_SAMPLES - 2 * GAP_SAMPLES)
            if at + part > WINDOW_SAMPLES:
                yield window
                window, at = [], GAP_SAMPLES
            window.append((index, first, part, at))
            at += -(-part // HOP) * HOP + GAP_SAMPLES
            first += part
    if window:
        yield window


def teach(teacher: Teacher, samples: Tensor, starts: list[int], lengths: list[int], batch_size: int = 24) -> Tensor:
    """Return features (len(samples) / HOP, dim) of utterances in one int16 tensor; starts and its length are multiples of HOP."""
    features = torch.zeros(len(samples) // HOP, teacher.dim, dtype=torch.float16, device=samples.device)
    windows = list(pack(lengths))
    for begin in range(0, len(windows), batch_size):
        chosen = windows[begin : begin + batch_size]
        audio = torch.zeros(len(chosen), WINDOW_SAMPLES, device=samples.device)
        for row, window in enumerate(chosen):
            for index, first, n_samples, at in window:
                part = samples[starts[index] + first :][:n_samples].float()
                audio[row, at : at + n_samples] = part * (0.07 / part.square().mean().sqrt().clamp_min(1.0))
        heard = teacher(audio).half()
        for row, window in enumerate(chosen):
            for index, first, n_samples, at in window:
                n_steps = n_samples // HOP
                features[(starts[index] + first) // HOP :][:n_steps] = heard[row, at // HOP :][:n_steps]
    return features


def main() -> None:
    """Keep the encoder of a CTranslate2 model in float16."""
    tensors = read_ctranslate2(Path(sys.argv[1]))
    kept = {name.removeprefix("encoder/"): weight for name, weight in tensors.items() if name.startswith("encoder/")}
    kept = {name: weight.half().contiguous() for name, weight in kept.items() if weight.dtype == torch.float16}
    save_file(kept, sys.argv[2])


if __name__ == "__main__":
    main()
