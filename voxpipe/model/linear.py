"""Linear maps laid out for the CPU.

A step multiplies a few rows by a large matrix, and OpenBLAS's general sgemm then spends most of its time copying the
matrix into its own order. For small products it has kernels that read it where it lies; so the weights are kept in blocks
of 64 outputs, each a small product. One row by 9216 x 3072 took 24 ms as one product on one core, 14 on two, and takes 6
in blocks; four rows take no longer than one.

A large matrix is read by two cores, each its half: a stream of MLX's CPU backend is a thread that sleeps while it waits.
"""

import mlx.core as mx
import mlx.nn as nn

SPLIT_BYTES = 4 << 20  # below it, waking the second thread costs more than it saves
BLOCK = 64  # outputs: up to four rows of 3072 stay below the small kernels' limit of a million multiplications


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

    def multiply(self, x: mx.array) -> mx.array:
        """(..., n_inputs) -> (..., n_outputs)."""
        rows = x.reshape(1, -1, x.shape[-1])
        if self._second is None:
            blocks = rows @ self.weight  # (n_outputs / 64, n_rows, 64)
        else:
            half = self.weight.shape[0] // 2
            behind = mx.matmul(rows, self.weight[half:], stream=self._second)
            blocks = mx.concatenate([rows @ self.weight[:half], behind])
        return blocks.swapaxes(0, 1).reshape(*x.shape[:-1], -1)


class BlockedLinear(Blocked):
    """`nn.Linear` in blocks."""

    def __init__(self, linear: nn.Linear, second: mx.Stream) -> None:
        super().__init__(linear, second)
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        y = self.multiply(x)
        return y + self.bias if "bias" in self else y


class BlockedEmbedding(Blocked):
    """`nn.Embedding` in blocks, for its use as the output layer."""

    def __call__(self, ids: mx.array) -> mx.array:
        return self.weight[ids // BLOCK, :, ids % BLOCK]

    def as_linear(self, x: mx.array) -> mx.array:
        return self.multiply(x)
