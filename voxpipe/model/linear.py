"""Linear maps laid out for the CPU.

A step multiplies a few rows by a large matrix, and OpenBLAS's general sgemm then spends most of its time copying the
matrix into its own order. For small products it has kernels that read it where it lies; so the weights are kept in blocks
of 64 outputs, each a small product. One row by 9216 x 3072 took 24 ms as one product on one core, 14 on two, and takes 6
in blocks; four rows take no longer than one. More rows than a small product allows are multiplied in equal parts, block by
block, while the block is in the cache: eight rows by 5120 x 3072 took 9.9 ms together and take 4.7 in fours.

A large matrix is read by two cores, each its half: a stream of MLX's CPU backend is a thread that sleeps while it waits.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

SPLIT_BYTES = 4 << 20  # below it, waking the second thread costs more than it saves
BLOCK = 64  # outputs: up to four rows of 3072 stay below
SMALL_PRODUCT = 1_000_000  # multiplications, OpenBLAS's limit for its small kernels
ROWS_AT_ONCE = 4  # those kernels take rows by fours


def use_blocks(network: nn.Module, second: mx.Stream) -> None:
    """Lay out every linear map and embedding of a float32 network in blocks, in place, where its outputs divide by 64.

    Args:
        second: the MLX stream that multiplies the second half of a large matrix.
    """
    for path, module in network.named_modules():
        if type(module) not in (nn.Linear, nn.Embedding) or module.weight.shape[0] % BLOCK or ".ada." in path:
            continue
        kind = BlockedLinear if type(module) is nn.Linear else BlockedEmbedding
        blocked = kind(module, second)
        mx.eval(blocked.parameters())
        replace_module(network, path, blocked)
        module.clear()  # one by one: there is never a second copy of all weights


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place that `path` (a.0.b) names."""
    *parents, name = path.split(".")
    holder = network
    for parent in parents:
        holder = holder[int(parent)] if isinstance(holder, list) else holder[parent]
    holder[int(name) if isinstance(holder, list) else name] = module


def _blocks(weight: mx.array) -> mx.array:
    """(n_outputs, n_inputs) -> (n_outputs / 64, n_inputs, 64)."""
    n_outputs, n_inputs = weight.shape
    return mx.contiguous(weight.reshape(n_outputs // BLOCK, BLOCK, n_inputs).swapaxes(1, 2))


class Blocked(nn.Module):
    """A matrix in blocks; `second` is the stream that multiplies the second half of a large one."""

    def __init__(self, plain: nn.Linear | nn.Embedding, second: mx.Stream) -> None:
        super().__init__()
        self.weight = _blocks(plain.weight)
        self._second = second if self.weight.nbytes >= SPLIT_BYTES else None

    def blocks(self, x: mx.array) -> mx.array:
        """(N, n_inputs) -> (n_outputs / 64, N, 64)."""
        n_rows, n_inputs = x.shape
        n_together = _rows_together(n_rows, n_inputs)
        if n_together == n_rows:
            return self._product(x[None], self.weight)
        if n_rows % n_together:
            x = mx.concatenate([x, mx.zeros((n_together - n_rows % n_together, n_inputs), x.dtype)])
        blocks = self._product(x.reshape(1, -1, n_together, n_inputs), self.weight[:, None])
        return blocks.reshape(blocks.shape[0], -1, BLOCK)[:, :n_rows]

    def _product(self, rows: mx.array, weight: mx.array) -> mx.array:
        if self._second is None:
            return rows @ weight
        half = weight.shape[0] // 2
        behind = mx.matmul(rows, weight[half:], stream=self._second)
        return mx.concatenate([rows @ weight[:half], behind])


def side_by_side(blocks: mx.array) -> mx.array:
    """(n, N, width) -> (N, n width)."""
    return blocks.swapaxes(0, 1).reshape(blocks.shape[1], -1)


def by_heads(project: Callable[[mx.array], mx.array], x: mx.array, head_dim: int) -> mx.array:
    """(N, n_inputs) -> (n_outputs / head_dim, N, head_dim): a product in blocks comes so where a block is a head."""
    if isinstance(project, BlockedLinear) and head_dim == BLOCK:
        return project.blocks(x)
    return project(x).reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _rows_together(n_rows: int, n_inputs: int) -> int:
    """How many rows to multiply at once: all of them in a small product, or else a part of them."""
    most = SMALL_PRODUCT // (BLOCK * n_inputs)
    if n_rows <= max(most, ROWS_AT_ONCE):
        return n_rows
    most = max(most // ROWS_AT_ONCE, 1) * ROWS_AT_ONCE
    part = -(-n_rows // -(-n_rows // most))
    return -(-part // ROWS_AT_ONCE) * ROWS_AT_ONCE


class BlockedLinear(Blocked):
    """`nn.Linear` in blocks."""

    def __init__(self, linear: nn.Linear, second: mx.Stream) -> None:
        super().__init__(linear, second)
        if "bias" in linear:
            self.bias = linear.bias.reshape(-1, 1, BLOCK)

    def blocks(self, x: mx.array) -> mx.array:
        blocks = super().blocks(x)
        return blocks + self.bias if "bias" in self else blocks

    def __call__(self, x: mx.array) -> mx.array:
        return side_by_side(self.blocks(x))


class BlockedEmbedding(Blocked):
    """`nn.Embedding` in blocks, for its use as the output layer."""

    def __call__(self, ids: mx.array) -> mx.array:
        return self.weight[ids // BLOCK, :, ids % BLOCK]

    def as_linear(self, x: mx.array) -> mx.array:
        return side_by_side(self.blocks(x))
