"""Put a real BLAS under MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, which multiplies matrices 20 to 40 times slower than OpenBLAS. The symbols of
a library opened with RTLD_GLOBAL before MLX is imported win over it; so this module comes first of all of ours, and a
program that imports MLX itself must import voxpipe before. On macOS (Accelerate) nothing is to be done.

OpenBLAS's threads wait for each other spinning. On a busy machine that costs ten times what it gains where matrices are
small, and pays only where reading the weights is the work; so a small model gets one thread and a large one all cores,
unless OPENBLAS_NUM_THREADS says otherwise.
"""

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

LARGE_MODEL_BYTES = 256 << 20  # beyond any cache: every step reads the weights from memory


def preload_blas() -> ctypes.CDLL | None:
    """Open OpenBLAS for the whole process; None where there is nothing to open."""
    if not sys.platform.startswith("linux"):
        return None
    cmeel = importlib.util.find_spec("cmeel")
    if cmeel is None or cmeel.origin is None:
        return None
    prefix = Path(cmeel.origin).parent.parent / "cmeel.prefix" / "lib"
    for name in ("libopenblas.so.0", "libopenblas.so"):
        if (prefix / name).exists():
            if "mlx.core" in sys.modules:
                log.warning("mlx was imported before voxpipe, and keeps its slow BLAS; import voxpipe first")
            return ctypes.CDLL(str(prefix / name), mode=ctypes.RTLD_GLOBAL)
    return None


def set_blas_threads(model_bytes: int) -> None:
    """Choose the number of BLAS threads for a model of this size."""
    if BLAS is not None and "OPENBLAS_NUM_THREADS" not in os.environ:
        n_threads = len(os.sched_getaffinity(0)) if model_bytes >= LARGE_MODEL_BYTES else 1
        BLAS.openblas_set_num_threads(n_threads)


BLAS = preload_blas()
set_blas_threads(0)
