"""Muon: momentum whose matrices are made orthogonal before they are applied.

Matrices of one shape are updated together. Updates are scaled to the size of AdamW's (0.2 sqrt(max dimension)), so that one
learning rate serves both. Source: Keller Jordan's Muon (Newton-Schulz coefficients), Moonshot's scale.
"""

from typing import Any

import torch
from torch import Tensor


def orthogonalise(update: Tensor) -> Tensor:
    """Return (n, rows, cols) with singular values near 1, by five Newton-Schulz steps."""
    x = update.bfloat16() if update.is_cuda else update
    tall = update.shape[1] > update.shape[2]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Muon over a list of matrices; momentum is the only state."""

    def __init__(self, weights: list[Tensor], *, compile_update: bool) -> None:
        self.groups: dict[tuple[int, int], list[Tensor]] = {}
        for weight in weights:
            self.groups.setdefault((weight.shape[0], weight.shape[1]), []).append(weight)
        self.momentum = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups.items()
        }
        self.orthogonalise = torch.compile(orthogonalise, dynamic=False) if compile_update else orthogonalise

    @torch.no_grad()
    def step(self, learning_rate: float, *, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        for shape, weights in self.groups.items():
            gradient = torch.stack([weight.grad for weight in weights])  # type: ignore[misc]
            buffer = self.momentum[shape]
            buffer.lerp_(gradient, 1 - momentum)
            update = self.orthogonalise(gradient.lerp(buffer, momentum)) * (0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(weights, 1 - learning_rate * weight_decay)
            torch._foreach_add_(weights, list(update.to(weights[0].dtype).unbind()), alpha=-learning_rate)

    def reset(self) -> None:
        for buffer in self.momentum.values():
            buffer.zero_()

    def state(self) -> dict[str, Any]:
        """Return the momentum in float16."""
        return {f"{rows}x{cols}": buffer.half() for (rows, cols), buffer in self.momentum.items()}
