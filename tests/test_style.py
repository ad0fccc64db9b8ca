"""What style promises about imports and start-up, held by running them."""

import importlib.util
import subprocess
import sys

import pytest


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() + done.stderr.strip()


def test_import_of_the_package_does_not_load_mlx() -> None:
    assert run_python("import sys, voxpipe; print('mlx.core' in sys.modules)") == "False"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only MLX's Linux wheels need another BLAS")
def test_openblas_lies_under_mlx() -> None:
    code = """
import ctypes, voxpipe, mlx.core as mx
class Place(ctypes.Structure):
    _fields_ = [("library", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]
everywhere, place = ctypes.CDLL(None), Place()
assert everywhere.dladdr(everywhere.cblas_sgemm, ctypes.byref(place))
print(place.library.decode())"""  # the first of that name in the process is the one MLX's calls are bound to
    assert "libopenblas" in run_python(code)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only MLX's Linux wheels need another BLAS")
def test_says_so_when_mlx_was_imported_first() -> None:
    assert "import voxpipe first" in run_python("import mlx.core, voxpipe")


def test_a_peer_is_timed_without_our_blas() -> None:
    """The package puts OpenBLAS under MLX for its whole process, so the peer's process must not import it."""
    work = importlib.util.find_spec("voxpipe.bench.work")
    assert work is not None
    assert run_python(f"import runpy, sys; runpy.run_path({work.origin!r}); print('voxpipe' in sys.modules)") == "False"
