"""A large file of the hub into the local cache, going on where an earlier attempt broke off.

huggingface_hub goes on within a process; what a process leaves behind when it fails or is killed, it fetches again. Here
it stays, beside the finished files of the cache and under a name of our own, until it is whole.
"""

import fcntl
from pathlib import Path

from voxpipe.errors import UnavailableError

SUFFIX = ".voxpipe-partial"


def fetch(repository: str, name: str, revision: str, cache: Path) -> None:
    """Have the blob of one file in the cache; its progress is shown on stderr.

    `snapshot_download` then finds it there and only names it.

    Args:
        revision: a commit.
        cache: the hub's.

    Raises:
        UnavailableError: another process is fetching it.
        OSError, HfHubHTTPError: as huggingface_hub has them.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, name, revision=revision)
    facts = get_hf_file_metadata(url)
    if facts.etag is None:  # no hub does that; its own client says so
        return
    blob = blobs(repository, cache) / facts.etag
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + SUFFIX)
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UnavailableError(f"another process is fetching {name} of {repository}; wait for it") from exc
        n_bytes = file.seek(0, 2)
        if facts.size is not None and n_bytes > facts.size:
            n_bytes = file.truncate(0)
        http_get(
            url,
            file,
            resume_size=n_bytes,
            headers=build_hf_headers(),
            expected_size=facts.size,
            displayed_filename=name,
        )
        partial.rename(blob)


def blobs(repository: str, cache: Path) -> Path:
    """Where a repository's files lie in the cache, under their hashes."""
    return cache / f"models--{repository.replace('/', '--')}" / "blobs"
