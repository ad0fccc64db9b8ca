"""A BLAS that cannot be opened costs speed, not the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from voxpipe import accelerate, doctor


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere MLX brings a fast BLAS")
def test_without_the_library_that_openblas_needs(tmp_path: Path) -> None:
    (tmp_path / "cmeel").mkdir()
    (tmp_path / "cmeel/__init__.py").touch()
    (tmp_path / "cmeel.prefix/lib").mkdir(parents=True)
    (tmp_path / "cmeel.prefix/lib/libopenblas.so.0").write_bytes(b"not a library")
    script = "import voxpipe, mlx.core as mx; print(mx.sum(mx.ones((3, 3)) @ mx.ones((3, 3))).item())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "27.0\n"), done.stderr
    assert "libopenblas.so.0" in done.stderr
    assert "apt install libgfortran5" in done.stderr
    assert "Traceback" not in done.stderr


class OpenBLAS:
    """Stands for a build; which processor it is for is all that is asked."""

    def __init__(self, core: str) -> None:
        self.openblas_get_corename = lambda: core.encode()
        self.openblas_set_num_threads = lambda n: None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere MLX brings a fast BLAS")
@pytest.mark.parametrize(
    ("core", "flags", "is_opened"),
    [
        ("SKYLAKEX", "avx avx2", False),
        ("SkylakeX", "avx avx2", False),
        ("SKYLAKEX", "avx avx2 avx512f", True),
        ("ZEN", "avx avx2", True),
        ("neoversen1", "", True),
    ],
)
def test_a_build_for_other_processors_is_left_closed(
    core: str, flags: str, is_opened: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def open_library(path: str, mode: int = os.RTLD_LOCAL) -> OpenBLAS:
        modes.append(mode)
        return OpenBLAS(core)

    modes: list[int] = []
    monkeypatch.setattr(accelerate.ctypes, "CDLL", open_library)
    monkeypatch.setattr(accelerate, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(accelerate, "BLAS", None)
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert (accelerate.preload_blas() is not None) == is_opened
    assert (os.RTLD_GLOBAL in modes) == is_opened, "MLX would call it"
    if not is_opened:
        assert core in doctor.blas().value
        assert "pip install cmeel-openblas==0.3.29" in (doctor.blas().remedy or "")


def test_doctor_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate, "BLAS", None)
    monkeypatch.setattr(accelerate, "find_blas", lambda: Path("/nowhere/libopenblas.so.0"))
    assert "apt install libgfortran5" in (doctor.blas().remedy or "")
    monkeypatch.setattr(accelerate, "find_blas", lambda: None)
    assert "pip install cmeel-openblas" in (doctor.blas().remedy or "")
