"""What lies on this machine: the embedded model and the snapshots in the hub's cache, and how the latter are freed.

Only repositories that hold a Voxtral Realtime model, or the beginning of one, are seen here; others' are nobody's business.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from voxpipe.checkpoints.files import model_files
from voxpipe.checkpoints.hub import REPOSITORIES, TINY, find_cached, split_revision
from voxpipe.checkpoints.probe import Facts, probe
from voxpipe.errors import ModelError, OutputError, UsageError

LEAST_COMMIT = 8  # characters of a commit that stand for it, as `voxpipe list` prints them


@dataclass(frozen=True)
class Stored:
    """A model on this machine.

    Attributes:
        name: what --model calls it.
        repository: on the hub; None for the embedded one.
        revisions: branches and tags that stand for it in the cache.
        commit: of the repository.
        directory: of its files.
        file_bytes: that are freed with it.
        facts: what it is; None if it cannot be loaded.
        problem: why not.
    """

    name: str
    repository: str | None
    revisions: tuple[str, ...]
    commit: str | None
    directory: Path
    file_bytes: int
    facts: Facts | None = None
    problem: str | None = None


def stored_models() -> list[Stored]:
    """The embedded model, then those in the cache by name."""
    n_bytes = sum(path.stat().st_size for path in model_files(TINY))
    return [
        _looked_into(Stored("tiny", None, (), None, TINY, n_bytes)),
        *map(_looked_into, sorted(_cached(), key=_order)),
    ]


def find_stored(model: str) -> list[Stored]:
    """What lies in the cache of a model that is to be removed.

    Args:
        model: a name, or OWNER/NAME for all of its revisions, or OWNER/NAME@REVISION.

    Raises:
        UsageError: it is the embedded one.
        ModelError: it is not in the cache.
    """
    name, revision = split_revision(model)
    if name == "tiny":
        raise UsageError("tiny is part of voxpipe; it goes with: pip uninstall voxpipe")
    repository = REPOSITORIES.get(name, name)
    found = [one for one in _cached() if one.repository == repository]
    if revision is not None:
        found = [one for one in found if revision in one.revisions or _is_commit(revision, one.commit)]
    if not found:
        raise ModelError(f"the model {model!r} is not in the local cache; see what is with: voxpipe list")
    return found


def remove(models: list[Stored]) -> None:
    """Delete what `find_stored` has found, and what only that needs.

    Raises:
        OutputError: something cannot be deleted.
    """
    from huggingface_hub import scan_cache_dir

    try:
        for repository in {one.repository for one in models}:
            others = [one for one in _cached() if one.repository == repository and one not in models]
            commits = [one.commit for one in models if one.repository == repository and one.commit]
            if others:
                scan_cache_dir(_cache()).delete_revisions(*commits).execute()
            else:  # with the downloads that were never finished
                shutil.rmtree(_folder(str(repository)))
                shutil.rmtree(_cache() / ".locks" / _folder(str(repository)).name, ignore_errors=True)
    except OSError as exc:
        raise OutputError(f"cannot remove {exc.filename}: {exc.strerror}") from exc


def _is_commit(revision: str, commit: str | None) -> bool:
    return len(revision) >= LEAST_COMMIT and (commit or "").startswith(revision)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(repository: str) -> Path:
    return _cache() / f"models--{repository.replace('/', '--')}"


def _cached() -> list[Stored]:
    """The snapshots of models in the cache."""
    names = {repository: name for name, repository in REPOSITORIES.items()}
    found = []
    for folder in sorted(_cache().glob("models--*--*")):
        repository = "/".join(folder.name.split("--", 2)[1:])
        refs = {
            path.relative_to(folder / "refs").as_posix(): path
            for path in (folder / "refs").rglob("*")
            if path.is_file()
        }
        commits = {name: path.read_text().strip() for name, path in refs.items()}
        for directory in sorted((folder / "snapshots").glob("*")):
            if not (directory / "tekken.json").exists():
                continue
            revisions = tuple(sorted(name for name, commit in commits.items() if commit == directory.name))
            name = names.get(repository, repository)
            called = name if "main" in revisions else f"{name}@{next(iter(revisions), directory.name)}"
            blobs = {path.resolve() for path in directory.rglob("*") if path.is_file()}
            n_bytes = sum(blob.stat().st_size for blob in blobs)
            found.append(Stored(called, repository, revisions, directory.name, directory, n_bytes))
    return found


def _looked_into(model: Stored) -> Stored:
    whole = model.repository is None or find_cached(model.repository, model.commit) is not None
    try:
        if not whole:
            raise ModelError(f"incomplete; go on with: voxpipe pull {model.name}")
        return replace(model, facts=probe(model.directory))
    except ModelError as exc:
        return replace(model, problem=str(exc))


def _order(model: Stored) -> tuple[str, str]:
    return model.name, model.commit or ""
