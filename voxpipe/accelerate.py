"""Put a real BLAS under MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, which multiplies matrices 20 to 40 times slower than OpenBLAS. The symbols of
a library opened with RTLD_GLOBAL win over it, as long as that happens before MLX calls its first one; so every package of
ours that imports MLX imports this module first. On macOS (Accelerate) nothing is to be done.
"""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path


def preload_blas() -> str | None:
    """Open OpenBLAS for the whole process; return its path, or None where there is nothing to open."""
    if not sys.platform.startswith("linux"):
        return None
    cmeel = importlib.util.find_spec("cmeel")
    if cmeel is None or cmeel.origin is None:
        return None
    prefix = Path(cmeel.origin).parent.parent / "cmeel.prefix" / "lib"
    for name in ("libopenblas.so.0", "libopenblas.so"):
        if (prefix / name).exists():
            library = ctypes.CDLL(str(prefix / name), mode=ctypes.RTLD_GLOBAL)
            if "OPENBLAS_NUM_THREADS" not in os.environ:
                library.openblas_set_num_threads(1)
            return str(prefix / name)
    return None


BLAS = preload_blas()
