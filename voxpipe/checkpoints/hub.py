"""Which model is meant, and how it gets onto the disk.

The local cache is asked first and without a network; only an explicit name fetches anything. `tiny` lies in the package.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from voxpipe.checkpoints.fetch import blobs, fetch
from voxpipe.checkpoints.files import config_file, matches_published_hash, read_json, weight_files
from voxpipe.config import ModelConfig
from voxpipe.errors import ModelError, UnavailableError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"
REPOSITORIES = {
    "4bit": "mlx-community/Voxtral-Mini-4B-Realtime-2602-4bit",
    "fp16": "mlx-community/Voxtral-Mini-4B-Realtime-2602-fp16",
    "bf16": "mistralai/Voxtral-Mini-4B-Realtime-2602",
}
SHARD = re.compile(r".+-of-(\d+)\.safetensors")
FILES = ("config.json", "params.json", "tekken.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Choice:
    """A model on the disk: what to call it, and where it is."""

    name: str
    directory: Path


def resolve(model: str | PathLike[str], *, fetch: bool = True) -> Choice:
    """Find a model.

    Args:
        model: "auto", "tiny", one of `REPOSITORIES`, a directory, or OWNER/NAME on the hub; the last and the names
            that stand for one may be followed by @REVISION.
        fetch: whether a repository that is not in the cache may be fetched.

    Raises:
        ModelError: there is no such model here.
        UnavailableError: it cannot be fetched.
    """
    name = os.fspath(model)
    if name == "auto":
        return _auto()
    if name == "tiny":
        return Choice("tiny", TINY)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return Choice(path.resolve().name, path)
    name, revision = split_revision(name)
    repository = REPOSITORIES.get(name, name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        known = ", ".join(("tiny", *REPOSITORIES))
        raise ModelError(
            f"there is no model {os.fspath(model)!r}: name one of {known}, a directory, or OWNER/NAME on the hub"
        )
    cached = find_cached(repository, revision)
    if cached is not None:
        return Choice(os.fspath(model), cached)
    if not fetch:
        raise ModelError(
            f"the model {os.fspath(model)!r} is not in the local cache; fetch it with: voxpipe pull {model}"
        )
    return Choice(os.fspath(model), pull(repository, revision=revision))


def _auto() -> Choice:
    cached = find_cached(REPOSITORIES["4bit"])
    if cached is not None:
        return Choice("4bit", cached)
    log.warning("using the small embedded English model; for the full one: voxpipe pull 4bit")
    return Choice("tiny", TINY)


def split_revision(model: str) -> tuple[str, str | None]:
    """OWNER/NAME@REVISION in its parts; without one, the second is None."""
    name, _, revision = model.partition("@")
    return name, revision or None


def find_cached(repository: str, revision: str | None = None) -> Path | None:
    """The local snapshot of a repository that has all of a model, without touching the network.

    `snapshot_download(local_files_only=True)` is of no use here: it wants every file of the repository.

    Args:
        revision: a branch, a tag or a commit; None for the main branch.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        tekken = try_to_load_from_cache(repository, "tekken.json", revision=revision)
    except HFValidationError as exc:
        raise ModelError(f"{repository!r} is not the name of a repository: {exc}") from exc
    if not isinstance(tekken, str):
        return None
    directory = Path(tekken).parent
    try:
        config_file(directory)
        weights = weight_files(directory)
    except ModelError:  # left incomplete by a broken download
        return None
    shard = SHARD.fullmatch(weights[0].name)  # the index may be what is missing
    return directory if shard is None or len(weights) == int(shard[1]) else None


def pull(repository: str, *, revision: str | None = None) -> Path:
    """Fetch a repository into the local cache, resuming what is already there, with its progress on stderr.

    What it is and whether it fits is seen by the heads of its files, before any of them is fetched; what is here in the end
    has the hashes that the hub gives, and what is damaged is fetched again.

    Args:
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        UnavailableError: there is no network, or the hub refuses, or there is no room.
        ModelError: there is no such repository, or it is not a Voxtral Realtime model.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    try:
        api = HfApi()
        info = api.model_info(repository, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = _wanted(repository, set(sizes))
        cache = Path(constants.HF_HUB_CACHE)
        cached = find_cached(repository, info.sha)
        is_new = cached is None or bool(_discard_damaged(cached, wanted))
        if is_new and info.sha is not None:
            _check_room(repository, sum(sizes[name] for name in wanted), cache)
            _check_layout(api, repository, info.sha, wanted)
            weights = [name for name in wanted if name.endswith(".safetensors")]
            snapshot_download(repository, revision=revision, allow_patterns=sorted(set(wanted) - set(weights)))
            for name in weights:
                fetch(repository, name, info.sha, cache)
        directory = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except errors.RepositoryNotFoundError as exc:
        raise ModelError(f"the hub has no repository {repository!r} that you may read") from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelError(f"{repository} has no revision {revision!r}") from exc
    except errors.HFValidationError as exc:
        raise ModelError(f"{repository!r} is not the name of a repository: {exc}") from exc
    except errors.OfflineModeIsEnabled as exc:
        raise UnavailableError(f"cannot fetch {repository}: HF_HUB_OFFLINE is set") from exc
    except errors.HfHubHTTPError as exc:
        raise UnavailableError(
            f"cannot fetch {repository}: {_reason(exc)}; what came so far is kept, try again"
        ) from exc
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as exc:  # type: ignore[attr-defined]  # re-exported for its users
        raise UnavailableError(
            f"cannot fetch {repository}: no connection to {constants.ENDPOINT} ({_reason(exc)}); "
            "what came so far is kept, try again when there is a network"
        ) from exc
    except OSError as exc:
        if isinstance(exc, UnavailableError):
            raise
        raise UnavailableError(f"cannot store {repository}: {exc.strerror or exc}") from exc
    damaged = _discard_damaged(directory, wanted) if is_new else []
    if damaged:
        raise UnavailableError(f"{', '.join(damaged)} of {repository} came damaged and was thrown away; try again")
    return directory


def _reason(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)


def _wanted(repository: str, present: set[str]) -> list[str]:
    """The files of a repository that make up one model."""
    if "tekken.json" not in present:
        raise ModelError(f"{repository} has no tekken.json: it is not a Voxtral Realtime model")
    if {"consolidated.safetensors", "params.json"} <= present:  # the same weights may be there in a second layout, too
        return ["consolidated.safetensors", "params.json", "tekken.json"]
    return sorted(name for name in present if any(fnmatch(name, pattern) for pattern in FILES) and "/" not in name)


def _check_room(repository: str, needed: int, cache: Path) -> None:
    """Raise UnavailableError if the disk has no room for what is still to come."""
    folder = blobs(repository, cache)
    there = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
    place = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed - there > free:
        raise UnavailableError(
            f"cannot store {repository}: it takes {(needed - there) / 1e9:.2f} GB more, and {place} has {free / 1e9:.2f}; "
            "make room, or set HF_HOME to a folder on another disk"
        )


def _check_layout(api: "HfApi", repository: str, revision: str | None, wanted: list[str]) -> None:
    """Raise ModelError unless the heads of the files are those of a model, in any layout."""
    from huggingface_hub import errors, hf_hub_download

    from voxpipe.checkpoints.load import check_tensors

    names: list[str] = []
    try:
        for name in (name for name in wanted if name.endswith(".safetensors")):
            names += api.parse_safetensors_file_metadata(repository, name, revision=revision).tensors
    except errors.SafetensorsParsingError as exc:
        raise ModelError(f"{repository} has a {name} that is no safetensors file") from exc
    described = next((name for name in ("config.json", "params.json") if name in wanted), None)
    if not names or described is None:
        raise ModelError(f"{repository} has no weights in safetensors, or nothing that describes them")
    config = read_json(Path(hf_hub_download(repository, described, revision=revision)))
    check_tensors(repository, ModelConfig.from_json(config), names)


def _discard_damaged(directory: Path, names: list[str]) -> list[str]:
    """Delete the files of a snapshot that do not have their published hash, and return which."""
    damaged = [name for name in names if matches_published_hash(directory / name) is False]
    for name in damaged:
        (directory / name).resolve().unlink()
        (directory / name).unlink(missing_ok=True)
    return damaged
