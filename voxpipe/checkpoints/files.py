"""A checkpoint's files: which ones they are, and whether they are whole.

Only safetensors are opened, never pickles. A file's header says where its last byte must be, so a download that broke
off is noticed before any tensor is touched.
"""

import base64
import hashlib
import importlib.metadata
import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from voxpipe.errors import ModelError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
GIT_HASH, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file is missing, unreadable or not a JSON object.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise ModelError(f"{path.parent} has no {path.name}") from exc
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ModelError(f"{path} is not valid JSON ({exc}); fetch it again") from exc
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is not a JSON object; fetch it again")
    return raw


def config_file(directory: Path) -> Path:
    """The JSON file that describes the model in `directory`."""
    if not directory.is_dir():
        raise ModelError(f"there is no model directory {directory}")
    if (directory / "consolidated.safetensors").exists() and (directory / "params.json").exists():
        return directory / "params.json"
    for name in ("config.json", "params.json"):
        if (directory / name).exists():
            return directory / name
    raise ModelError(f"{directory} has no config.json or params.json: it is not a model directory")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the model in `directory`, in order.

    Raises:
        ModelError: there are none, or some that the index names are missing.
    """
    consolidated = directory / "consolidated.safetensors"
    if consolidated.exists() and (directory / "params.json").exists():
        return [consolidated]
    for index in sorted(directory.glob("*.safetensors.index.json")):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{index} has no weight_map; fetch it again")
        files = [directory / name for name in sorted({str(name) for name in weight_map.values()})]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelError(f"{directory} lacks {', '.join(missing)}, which {index.name} names; fetch the model again")
        return files
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(f"{directory} holds {pickles[0]}, a pickle, which can run code; only safetensors are loaded")
    raise ModelError(f"{directory} has no .safetensors file")


def model_files(directory: Path) -> list[Path]:
    """All that is read of the model in `directory`."""
    return [config_file(directory), directory / "tekken.json", *weight_files(directory)]


def check_safetensors(path: Path) -> None:
    """Raise ModelError if `path` is not a whole safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= header_bytes <= MAX_HEADER_BYTES:
                raise ModelError(f"{path} is not a safetensors file; fetch it again")
            header = json.loads(file.read(header_bytes)) if 8 + header_bytes <= size else None
        if header is not None:
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
        if isinstance(exc, ModelError):
            raise
        raise ModelError(f"{path} is not a safetensors file; fetch it again") from exc
    if header is None or size != 8 + header_bytes + max(ends, default=0):
        raise ModelError(f"{path} is truncated or damaged ({size} bytes); fetch it again")


def matches_published_hash(path: Path) -> bool | None:
    """Whether a file has the hash under which it was published; None if nobody has written that down."""
    expected = _recorded_hashes().get(path.resolve())
    if expected is not None:
        digest = base64.urlsafe_b64encode(_digest(path, "sha256").digest()).decode().rstrip("=")
        return digest == expected
    blob = path.resolve().name  # the hub's cache names files by what they hold
    if SHA256.fullmatch(blob):
        return _digest(path, "sha256").hexdigest() == blob
    if GIT_HASH.fullmatch(blob):
        return _digest(path, "sha1", b"blob %d\0" % path.stat().st_size).hexdigest() == blob
    return None


def _digest(path: Path, name: str, prefix: bytes = b"") -> "hashlib._Hash":
    digest = hashlib.new(name, prefix, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest


@cache
def _recorded_hashes() -> dict[Path, str]:
    """What the installed package's own record says of its files."""
    with suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("voxpipe") or []
        return {Path(str(file.locate())).resolve(): file.hash.value for file in files if file.hash}
    return {}
