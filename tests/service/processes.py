"""Real voxpipe processes with a weakness built in, a model that comes late or one that fails; and a real disk that is full.

What is broken in them is broken by these scripts, around the product's own code: the product has no switch for it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# arguments: a path that must exist before the model is there, then the command line
LATE = """
import os, sys, time
from voxpipe.cli import main
import voxpipe.runtime.transcriber as transcriber

load = transcriber.load_choice
def load_late(choice, **how):
    print("loading", file=sys.stderr, flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.005)
    return load(choice, **how)
transcriber.load_choice = load_late
main.main(sys.argv[2:])
"""

# arguments: a path with whose appearance the model begins to fail, then the command line
FAILING = """
import os, sys
from voxpipe.cli import main
from voxpipe.runtime.runner import Runner

run = Runner.run
def fail(self, *arguments, **named):
    if os.path.exists(sys.argv[1]):
        raise RuntimeError("[metal::malloc] Unable to allocate 12345 bytes.")
    return run(self, *arguments, **named)
Runner.run = fail
main.main(sys.argv[2:])
"""


def script(text: str) -> tuple[str, ...]:
    """The command that runs it, for `live`."""
    return (sys.executable, "-c", text)


@contextmanager
def small_disk(folder: Path, n_kib: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_kib}k", "none", str(folder)]
    if (
        os.getuid() != 0
        or not sys.platform.startswith("linux")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
