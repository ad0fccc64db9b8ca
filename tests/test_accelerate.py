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


class BuiltFor:
    """An OpenBLAS that was built for one kind of processor."""

    def __init__(self, core: bytes) -> None:
        self.openblas_get_corename = lambda: core


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere MLX brings a fast BLAS")
def test_a_build_for_other_processors_is_left_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    for core, is_avx512 in ((b"SKYLAKEX", True), (b"ZEN", False), (b"neoversen1", False)):
        function = BuiltFor(core)
        monkeypatch.setattr(accelerate.ctypes, "CDLL", lambda path, function=function: function)
        obstacle = accelerate.find_obstacle(tmp_path)
        if is_avx512 and not has_avx512:
            assert obstacle
            assert "SKYLAKEX" in obstacle[0]
            assert "cmeel-openblas==0.3.29" in obstacle[1]
        else:
            assert obstacle is None


def test_doctor_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate, "BLAS", None)
    monkeypatch.setattr(accelerate, "find_blas", lambda: Path("/nowhere/libopenblas.so.0"))
    assert "apt install libgfortran5" in (doctor.blas().remedy or "")
    monkeypatch.setattr(accelerate, "find_blas", lambda: None)
    assert "pip install cmeel-openblas" in (doctor.blas().remedy or "")
