"""`voxpipe doctor`: what this machine gives voxpipe to work with, and for each thing amiss what mends it.

Every check looks at the real thing and returns a `Finding`; none of them changes anything.
"""

import ctypes
import importlib.metadata
import os
import platform
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from voxpipe import __version__, accelerate
from voxpipe.audio import ffmpeg
from voxpipe.checkpoints.hub import TINY, Choice, resolve
from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import ModelError, VoxpipeError
from voxpipe.service.attach import ask_status
from voxpipe.service.place import REMEDY, default_socket, foreign_folder

SPEED_S = 10.0  # of audio
WORKING_BYTES = 512 << 20  # beside weights and caches: the process, and what a step computes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        value: what was found.
        remedy: the command that mends it; None if nothing is amiss.
    """

    name: str
    value: str
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.remedy is None


def examine(model: str) -> Iterator[Finding]:
    """Look at everything, yielding what is found as it is found; takes a few seconds.

    Args:
        model: as for --model; it is never fetched.
    """
    yield Finding("voxpipe", f"{__version__}, Python {platform.python_version()}, {sys.executable}")
    yield backend()
    if sys.platform.startswith("linux"):
        yield blas()
    try:
        choice = resolve(model, fetch=False)
    except ModelError as exc:
        yield Finding("model", str(exc), f"voxpipe pull {model}" if "pull" in str(exc) else "voxpipe --model tiny")
    else:
        files = model_files(choice)
        yield files
        if files.ok:
            yield memory(choice)
    checks: list[Callable[[], Finding]] = [cache_folder, runtime_folder, daemon, decoder, speed]
    for check in checks:
        yield check()


def backend() -> Finding:
    """MLX, and whether it uses the GPU that is there."""
    import mlx.core as mx

    version = importlib.metadata.version("mlx")
    on_gpu = mx.default_device() == mx.gpu
    value = f"MLX {version}, {'GPU' if on_gpu else 'CPU'}, {platform.system()} {platform.machine()}"
    if not on_gpu and os.path.exists("/dev/nvidia0"):
        pip = f"{sys.executable} -m pip"
        remedy = f"{pip} uninstall -y mlx-cpu && {pip} install 'mlx[cuda13]'"
        return Finding("backend", f"{value}, though there is an NVIDIA GPU", remedy)
    if not on_gpu and sys.platform == "darwin":
        return Finding("backend", f"{value}, though Macs have a GPU", f"{sys.executable} -m pip install -U mlx")
    return Finding("backend", value)


def blas() -> Finding:
    """Whether a fast BLAS lies under MLX's CPU backend."""
    if accelerate.BLAS is None:
        path = accelerate.find_blas()
        obstacle = accelerate.find_obstacle(path) if path else None
        why, remedy = obstacle or ("OpenBLAS is not installed", accelerate.INSTALL)
        return Finding("BLAS", f"MLX's own, which is slow: {why}", remedy)
    config = accelerate.BLAS.openblas_get_config
    config.restype = ctypes.c_char_p
    return Finding("BLAS", f"{config().decode()}, {accelerate.BLAS.openblas_get_num_threads()} thread(s)")


def model_files(choice: Choice) -> Finding:
    """Whether a model's files are there, whole, and could be loaded."""
    from voxpipe.checkpoints.probe import check_hashes, probe

    again = f"voxpipe pull {choice.name}"
    if choice.directory == TINY:
        again = f"{sys.executable} -m pip install --force-reinstall --no-deps ."
    try:
        facts = probe(choice.directory)
        n_hashes, damaged = check_hashes(choice.directory)
    except VoxpipeError as exc:
        return Finding("model", str(exc), again)
    except OSError as exc:
        return Finding("model", f"{exc.filename}: {exc.strerror}", f"chmod u+r {exc.filename}")
    if damaged:
        return Finding("model", f"{damaged[0]} is damaged: its hash is not the one it was published with", again)
    hashes = f"hashes of {n_hashes} files agree" if n_hashes else "no published hashes to compare with"
    return Finding("model", f"{choice.name}, {facts.file_bytes / 2**20:.0f} MiB, {choice.directory}; whole; {hashes}")


def memory(choice: Choice) -> Finding:
    """Whether the model fits, as this backend holds it, with one long stream.

    Raises:
        ModelError: it cannot be loaded.
    """
    from voxpipe.checkpoints.probe import probe

    facts = probe(choice.directory)
    needed = facts.memory_bytes + facts.stream_bytes + WORKING_BYTES
    free, total = usable_memory()
    value = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free; {choice.name} wants {needed / 2**30:.1f}"
    return Finding("memory", value, None if needed <= free else "voxpipe --model tiny")


def usable_memory() -> tuple[int, int]:
    """(bytes that a model may take, bytes that this machine has)."""
    if sys.platform == "darwin":
        import mlx.core as mx

        total = int(subprocess.check_output(["/usr/sbin/sysctl", "-n", "hw.memsize"]))
        return int(mx.device_info().get("max_recommended_working_set_size", total)), total
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10, total


def cache_folder() -> Finding:
    """Whether models can be stored."""
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE)
    there = next(one for one in (path, *path.parents) if one.exists())
    if os.access(there, os.W_OK | os.X_OK):
        return Finding("cache", f"{path}, {'writable' if there == path else 'will be made'}")
    return Finding("cache", f"{path}: {there} is not writable", f"sudo chown {os.getuid()} {there}")


def runtime_folder() -> Finding:
    """Whether the socket's folder is ours alone."""
    path = default_socket().parent
    folder = foreign_folder(default_socket())
    if folder is not None:
        return Finding("sockets", f"{folder} is another user's", REMEDY)
    if not path.exists():
        there = next(one for one in path.parents if one.exists())
        if os.access(there, os.W_OK | os.X_OK):
            return Finding("sockets", f"{path}, will be made")
        remedy = REMEDY if sys.platform == "darwin" else f"export XDG_RUNTIME_DIR=/run/user/{os.getuid()}"
        return Finding("sockets", f"{path} cannot be made", remedy)
    facts = path.stat()
    if not os.access(path, os.X_OK):
        return Finding("sockets", f"{path} cannot be entered", REMEDY)
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX:
        return Finding("sockets", f"{path}: others can write there", f"chmod go-w {path}")
    return Finding("sockets", f"{path}, mode {stat.S_IMODE(facts.st_mode):04o}")


def daemon() -> Finding:
    """Whether there is a daemon, and whether it answers."""
    path = default_socket()
    if not path.exists():
        return Finding("daemon", "none; each pipe loads the model for itself")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return Finding("daemon", f"{path} is left over from one that has gone", f"rm {path}")
        except OSError as exc:
            return Finding("daemon", f"{path}: {exc.strerror or exc}", "voxpipe service status")
    try:
        facts = ask_status(path)
    except VoxpipeError as exc:
        return Finding("daemon", str(exc), "voxpipe service status")
    return Finding("daemon", f"process {facts['pid']}, model {facts['model']}, {len(facts['streams'])} stream(s)")


def decoder() -> Finding:
    """Whether files of every kind can be opened."""
    if ffmpeg.is_installed() and ffmpeg.can_probe():
        return Finding("ffmpeg", "there")
    install = "brew install ffmpeg" if sys.platform == "darwin" else "sudo apt-get install ffmpeg"
    return Finding("ffmpeg", "missing; wav, flac, ogg, opus and mp3 can be opened, nothing else", install)


def speed() -> Finding:
    """How long the embedded model takes for a second of audio, measured on noise, which costs what speech costs."""
    import numpy as np

    from voxpipe.runtime.transcriber import load

    transcriber = load("tiny")
    noise = (0.01 * np.random.default_rng(0).standard_normal(round(SPEED_S * SAMPLE_RATE))).astype(np.float32)
    transcriber.generate(noise[:SAMPLE_RATE])  # what is prepared once
    began = time.monotonic()
    transcriber.generate(noise)
    rtf = (time.monotonic() - began) / SPEED_S
    value = f"tiny takes {rtf:.2f} s for a second of audio"
    if rtf < 1:
        return Finding("speed", value)
    return Finding("speed", f"{value}, too long for live audio; look for what else is running", "top")
