"""Why a recording has no outputs: `NAME.error.json` where they would be, for people, and for the next start."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from voxpipe import __version__
from voxpipe.watch.records import Place, Version, read_object, shortened, write_part

ERROR_SUFFIX = ".error.json"


@dataclass(frozen=True)
class Failure:
    """Why there are no outputs: the contents of `NAME.error.json`.

    Attributes:
        attempts: how often it was tried in vain.
    """

    source: str
    version: Version
    code: str
    message: str
    attempts: int

    @property
    def is_lasting(self) -> bool:
        """Whether it will fail again as long as the recording stays as it is."""
        return self.code == "audio"


def failure_path(place: Place) -> str:
    return os.path.join(place.folder, shortened(place.name) + ERROR_SUFFIX)


def read_failure(place: Place) -> Failure | None:
    """What was noted of a recording, if anything was."""
    facts = read_object(failure_path(place))
    try:
        facts.pop("voxpipe")
        failure = Failure(**{**facts, "version": Version(**facts["version"])})
    except (TypeError, KeyError):
        return None
    return failure if failure.source == place.source else None


def write_failure(place: Place, failure: Failure) -> None:
    """Note it, unless something is there that is not ours. Raises OSError."""
    path = failure_path(place)
    if os.path.lexists(path) and read_failure(place) is None:
        return
    place.make()
    os.replace(write_part(place.failure_part, {"voxpipe": __version__, **asdict(failure)}), path)


def remove_failure(place: Place) -> None:
    if read_failure(place) is not None:
        with suppress(OSError):
            os.unlink(failure_path(place))
