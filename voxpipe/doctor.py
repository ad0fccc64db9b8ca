"""`voxpipe doctor`: what this machine gives voxpipe to work with, and for each thing amiss what mends it.

Every check looks at the real thing and returns a `Finding`; none of them changes anything.
"""

import ctypes
import importlib.metadata
import os
import platform
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from voxpipe import __version__, accelerate
from voxpipe.audio import ffmpeg
from voxpipe.checkpoints.files import check_safetensors, config_file, matches_published_hash, weight_files
from voxpipe.checkpoints.hub import TINY, Choice, resolve
from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import ModelError, VoxpipeError
from voxpipe.service.attach import ask_status
from voxpipe.service.protocol import default_socket

SPEED_S = 10.0  # of audio
WORKING_BYTES = 512 << 20  # beside the weights: the process, caches of a few streams


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
        yield model_files(choice)
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
        return Finding("BLAS", "MLX's own, which is slow", f"{sys.executable} -m pip install cmeel-openblas")
    config = accelerate.BLAS.openblas_get_config
    config.restype = ctypes.c_char_p
    return Finding("BLAS", f"{config().decode()}, {accelerate.BLAS.openblas_get_num_threads()} thread(s)")


def model_files(choice: Choice) -> Finding:
    """Whether a model's files are there and whole."""
    again = f"voxpipe pull {choice.name}"
    if choice.directory == TINY:
        again = f"{sys.executable} -m pip install --force-reinstall --no-deps ."
    try:
        weights = weight_files(choice.directory)
        for path in weights:
            check_safetensors(path)
        tokenizer = choice.directory / "tekken.json"
        if not tokenizer.exists():
            raise ModelError(f"{choice.directory} has no tekken.json")
        paths = [*weights, config_file(choice.directory), tokenizer]
        n_checked = 0
        for path in paths:
            matches = matches_published_hash(path)
            if matches is False:
                raise ModelError(f"{path} is damaged: its hash is not the one it was published with")
            n_checked += matches is not None
    except VoxpipeError as exc:
        return Finding("model", str(exc), again)
    except OSError as exc:
        return Finding("model", f"{exc.filename}: {exc.strerror}", f"chmod u+r {exc.filename}")
    n_bytes = sum(path.stat().st_size for path in weights)
    hashes = (
        f"hashes of {n_checked} of {len(paths)} files agree" if n_checked else "no published hashes to compare with"
    )
    return Finding("model", f"{choice.name}, {n_bytes / 2**20:.0f} MiB, {choice.directory}; whole; {hashes}")


def memory(choice: Choice) -> Finding:
    """Whether the model fits."""
    needed = sum(path.stat().st_size for path in choice.directory.glob("*.safetensors")) + WORKING_BYTES
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = total
    with suppress(OSError, LookupError):  # Linux
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    value = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free; {choice.name} wants {needed / 2**30:.1f}"
    return Finding("memory", value, None if needed <= free else "voxpipe --model tiny")


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
    if not path.exists():
        there = next(one for one in path.parents if one.exists())
        if os.access(there, os.W_OK | os.X_OK):
            return Finding("sockets", f"{path}, will be made")
        return Finding("sockets", f"{path} cannot be made", f"export XDG_RUNTIME_DIR=/run/user/{os.getuid()}")
    facts = path.stat()
    if not os.access(path, os.X_OK):
        return Finding("sockets", f"{path} cannot be entered", "export VOXPIPE_SOCKET=$HOME/.voxpipe.sock")
    if facts.st_uid not in (os.getuid(), 0) and "VOXPIPE_SOCKET" not in os.environ:
        return Finding("sockets", f"{path} is another user's", "export VOXPIPE_SOCKET=$HOME/.voxpipe.sock")
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
