"""Put a real BLAS under MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, which multiplies matrices 20 to 40 times slower than OpenBLAS. The symbols of
a library opened with RTLD_GLOBAL before MLX is imported win over it; so this module comes first of all of ours, and a
program that imports MLX itself must import voxpipe before. On macOS (Accelerate) nothing is to be done.

OpenBLAS gets one thread unless OPENBLAS_NUM_THREADS says otherwise: its threads wait for each other spinning, which on a
busy machine made a stream ten times slower, and `voxpipe.model.linear` leaves them nothing to gain.

MLX evaluates graphs wider than 20 operations depth first, one half of a batch after the other, and its threads then have
nothing to do at the same time; so the limit is raised.

MLX's CUDA backend hands work to the GPU in graphs that end after a number of operations or of bytes read. A step reads
gigabytes of weights and caches, so that every few operations would be a graph of their own; the limit on bytes is lifted.
"""

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)


os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")
if sys.platform.startswith("linux"):
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")


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
            library = ctypes.CDLL(str(prefix / name), mode=ctypes.RTLD_GLOBAL)
            if "OPENBLAS_NUM_THREADS" not in os.environ:
                library.openblas_set_num_threads(1)
            return library
    return None


BLAS = preload_blas()
