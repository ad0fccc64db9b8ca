"""What can be said of this process: what it runs, for how long, and how much memory it takes."""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from voxpipe import __version__

STARTED_AT = time.monotonic()


class _Usage(ctypes.Structure):
    """`struct rusage_info_v0` of macOS, `sys/resource.h`."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        *((name, ctypes.c_uint64) for name in ("user", "system", "idle_wakeups", "interrupts", "pageins")),
        *((name, ctypes.c_uint64) for name in ("wired", "resident", "footprint", "began", "ended")),
    )


def resident_bytes() -> int:
    """Memory that this process holds; on macOS its footprint, as only that counts what Metal holds for it."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    usage = _Usage()
    libproc = ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)
    if libproc.proc_pid_rusage(os.getpid(), 0, ctypes.byref(usage)) != 0:
        raise OSError(ctypes.get_errno(), "proc_pid_rusage")
    return int(usage.footprint)


def uptime_s() -> float:
    """Seconds since this was first imported, which is when the process began to be one of ours."""
    return time.monotonic() - STARTED_AT


def process_status(*, model: str | None, delay_ms: int | None) -> dict[str, Any]:
    """The part of a status that is not about streams. What is None is not known yet."""
    facts = {
        "v": 1,
        "version": __version__,
        "pid": os.getpid(),
        "model": model,
        "delay_ms": delay_ms,
        "uptime_s": round(uptime_s(), 1),
        "backend": mx.default_device().type.name,
        "resident_bytes": resident_bytes(),
        "mlx_bytes": mx.get_active_memory(),
        "mlx_cache_bytes": mx.get_cache_memory(),
        "mlx_peak_bytes": mx.get_peak_memory(),
    }
    return {name: value for name, value in facts.items() if value is not None}
