"""Put a real BLAS under MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, which multiplies matrices 20 to 40 times slower than OpenBLAS. The symbols of
a library opened with RTLD_GLOBAL before MLX is imported win over it; so this module comes first of all of ours, and a
program that imports MLX itself must import voxpipe before. On macOS (Accelerate) nothing is to be done.

Some builds of OpenBLAS are for one kind of processor and end the process on others; such a one is left closed.

OpenBLAS gets one thread unless OPENBLAS_NUM_THREADS says otherwise: its threads wait for each other spinning, which on a
busy machine made a stream ten times slower, and `voxpipe.model.linear` leaves them nothing to gain.

MLX evaluates graphs wider than 20 operations depth first, one half of a batch after the other, and its threads then have
nothing to do at the same time; so the limit is raised.

MLX's CUDA backend hands work to the GPU in graphs that end after a number of operations or of bytes read. A step reads
gigabytes of weights and caches, so that every few operations would be a graph of their own; the limit on bytes is lifted,
and the one on operations doubled.
"""

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
AVX512_BUILDS = ("SKYLAKEX", "COOPERLAKE", "SAPPHIRERAPIDS")
LACKING = "install the Fortran library that it needs, for example: sudo apt install libgfortran5"
INSTALL = f"{sys.executable} -m pip install cmeel-openblas==0.3.29"

os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")
if sys.platform.startswith("linux"):
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "200")


def find_blas() -> Path | None:
    """Return where OpenBLAS is installed; None without it, and where nothing is to be done."""
    cmeel = importlib.util.find_spec("cmeel") if sys.platform.startswith("linux") else None
    if cmeel is None or cmeel.origin is None:
        return None
    prefix = Path(cmeel.origin).parent.parent / "cmeel.prefix" / "lib"
    return next((prefix / name for name in ("libopenblas.so.0", "libopenblas.so") if (prefix / name).exists()), None)


def find_obstacle(path: Path) -> tuple[str, str] | None:
    """Return why OpenBLAS at `path` is of no use on this machine, and the remedy; None if it is."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return str(error), LACKING
    library.openblas_get_corename.restype = ctypes.c_char_p
    core = library.openblas_get_corename().decode()
    if core.upper() in AVX512_BUILDS and "avx512f" not in CPU_INFO.read_text():
        return f"it is built for {core}, and this processor has no AVX-512", f"install one for all with AVX2: {INSTALL}"
    return None


def preload_blas() -> ctypes.CDLL | None:
    """Open OpenBLAS for the whole process; None where there is nothing to open, or nothing of use."""
    path = find_blas()
    if path is None:
        return None
    if "mlx.core" in sys.modules:
        log.warning("mlx was imported before voxpipe, and keeps its slow BLAS; import voxpipe first")
    if obstacle := find_obstacle(path):
        log.warning("voxpipe: slow, because OpenBLAS cannot be used (%s); %s", *obstacle)
        return None
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        library.openblas_set_num_threads(1)
    return library


BLAS = preload_blas()
