"""Which model is meant, and how it gets onto the disk.

The local cache is asked first and without a network; only an explicit name fetches anything. `tiny` lies in the package.
"""

import logging
import os
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from voxpipe.checkpoints.files import config_file, weight_files
from voxpipe.errors import ModelError, UnavailableError

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
        model: "auto", "tiny", one of `REPOSITORIES`, a directory, or OWNER/NAME on the hub.
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
    repository = REPOSITORIES.get(name, name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        known = ", ".join(("tiny", *REPOSITORIES))
        raise ModelError(f"there is no model {name!r}: name one of {known}, a directory, or OWNER/NAME on the hub")
    cached = find_cached(repository)
    if cached is not None:
        return Choice(name, cached)
    if not fetch:
        raise ModelError(f"the model {name!r} is not in the local cache; fetch it with: voxpipe pull {name}")
    return Choice(name, pull(repository))


def _auto() -> Choice:
    cached = find_cached(REPOSITORIES["4bit"])
    if cached is not None:
        return Choice("4bit", cached)
    log.warning("using the small embedded English model; for the full one: voxpipe pull 4bit")
    return Choice("tiny", TINY)


def find_cached(repository: str) -> Path | None:
    """The local snapshot of a repository that has all of a model, without touching the network.

    `snapshot_download(local_files_only=True)` is of no use here: it wants every file of the repository.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        tekken = try_to_load_from_cache(repository, "tekken.json")
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

    Raises:
        UnavailableError: there is no network, or the hub refuses.
        ModelError: there is no such repository, or it is not a Voxtral Realtime model.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        present = {file.rfilename for file in HfApi().model_info(repository, revision=revision).siblings or []}
        if "tekken.json" not in present:
            raise ModelError(f"{repository} has no tekken.json: it is not a Voxtral Realtime model")
        twice = {"consolidated.safetensors", "params.json"} <= present  # the same weights in a second layout beside
        ignored = ["model*.safetensors", "model*.safetensors.index.json", "config.json"] if twice else None
        directory = snapshot_download(
            repository, revision=revision, allow_patterns=list(FILES), ignore_patterns=ignored
        )
    except errors.RepositoryNotFoundError as exc:
        raise ModelError(f"the hub has no repository {repository!r} that you may read") from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelError(f"{repository} has no revision {revision!r}") from exc
    except errors.HFValidationError as exc:
        raise ModelError(f"{repository!r} is not the name of a repository: {exc}") from exc
    except errors.OfflineModeIsEnabled as exc:
        raise UnavailableError(f"cannot fetch {repository}: HF_HUB_OFFLINE is set") from exc
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as exc:  # type: ignore[attr-defined]  # re-exported for its users
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise UnavailableError(f"cannot fetch {repository}: {reason}; what came so far is kept, try again") from exc
    except OSError as exc:
        raise UnavailableError(f"cannot store {repository}: {exc.strerror or exc}") from exc
    return Path(directory)
