"""What the machine is, and how fast MLX reads its memory: the yardstick of a step, which reads all weights once."""

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

GPU_BYTES = 1 << 30  # of the matrix read: far more than any cache holds
CPU_BYTES = 256 << 20
N_INPUTS = 4096
BLOCK = 64
REPEATS = 5


def machine_name() -> str:
    """Processor, cores that this process may use, system, and accelerator."""
    name = f"{_processor()}, {n_cores()} cores, {platform.system()} {platform.machine()}"
    return name if mx.default_device() == mx.cpu else f"{_device()} ({name})"


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bandwidth(dtype: mx.Dtype, lanes: Sequence[mx.Stream]) -> float:
    """Bytes per second that MLX reads at best.

    Of a vector by a large matrix, by the same in blocks of 64 columns (which OpenBLAS reads fastest), of the sum of its
    columns, and of a copy, each several times, the fastest counts.

    Args:
        dtype: of the matrix.
        lanes: MLX streams that share the work, each with a matrix of its own.
    """
    n_bytes = CPU_BYTES if mx.default_device() == mx.cpu else GPU_BYTES
    n_blocks = n_bytes // dtype.size // len(lanes) // (N_INPUTS * BLOCK)
    blocks = [mx.ones((n_blocks, N_INPUTS, BLOCK), dtype) for _ in lanes]
    rows = [block.reshape(-1, N_INPUTS) for block in blocks]
    vector = mx.ones((N_INPUTS, 1), dtype)
    mx.eval(blocks, vector)
    n_read = sum(block.nbytes for block in blocks)
    works: list[tuple[int, Callable[[int, mx.Stream], mx.array]]] = [
        (n_read, lambda i, lane: mx.matmul(rows[i], vector, stream=lane)),
        (n_read, lambda i, lane: mx.matmul(vector.reshape(1, 1, -1), blocks[i], stream=lane)),
        (n_read, lambda i, lane: mx.sum(rows[i], axis=0, stream=lane)),
        (2 * n_read, lambda i, lane: mx.negative(rows[i], stream=lane)),
    ]
    best = 0.0
    for n_moved, work in works:
        seconds = []
        for _ in range(1 + REPEATS):  # the first one warms up
            started_at = time.perf_counter()
            mx.eval([work(i, lane) for i, lane in enumerate(lanes)])
            seconds.append(time.perf_counter() - started_at)
        best = max(best, n_moved / min(seconds))
    mx.clear_cache()
    return best


def give_back_memory() -> None:
    """Return to the system what MLX and, where it is glibc, the C library keep for later use."""
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _processor() -> str:
    if platform.system() == "Darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or "Apple silicon"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _device() -> str:
    info: dict[str, Any] = mx.device_info()
    return str(info.get("device_name", "GPU"))


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
