"""One recording of a watched folder, from the claim on it to its published outputs."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from voxpipe.errors import InputError, OutputError, VoxpipeError
from voxpipe.output.formats import Heading
from voxpipe.output.results import ResultFiles, sync_directory
from voxpipe.runtime.jobs import FileJob, FileResults
from voxpipe.watch.claims import Claim
from voxpipe.watch.records import Place, Record, Version, digest_of
from voxpipe.watch.settling import read_key

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress


class ChangedError(InputError):
    """The recording is not any more what was being read; nothing has gone wrong."""

    code = "changed"


class WatchJob(FileJob):
    """A recording that is claimed, and may be transcribed.

    Args:
        record: what is known of its outputs, in a place that is reserved for them.

    Attributes:
        outputs: paths of what was published.
    """

    def __init__(
        self,
        path: str,
        formats: tuple[str, ...],
        *,
        place: Place,
        stem: str,
        record: Record,
        version: Version,
        claim: Claim,
        delay_ms: int | None,
    ) -> None:
        stem_path = os.path.join(place.folder, stem)
        super().__init__(path, formats, stem=stem_path, is_split=version.channels == "split", replace=True)
        self.place = place
        self.stem = stem
        self.record = record
        self.version = version
        self.claim = claim
        self.delay_ms = delay_ms
        self.outputs: list[str] = []
        self.started_at = 0.0
        self._results = _Results(self, model=version.model, delay_ms=version.delay_ms)
        self._n_ended = 0
        self._error: VoxpipeError | None = None

    def begin(self) -> None:
        """It is being read from now on."""
        self.started_at = time.monotonic()

    @property
    def is_stale(self) -> bool:
        """Whether the recording has changed, by what can be seen of it now; one that is gone has not."""
        key = read_key(self.path)
        opened = self._status
        seen = [] if opened is None else [(opened.st_size, opened.st_mtime_ns)]
        seen += [] if key is None else [key[:2]]
        return any(one != (self.version.size, self.version.mtime_ns) for one in seen)

    def add(self, progress: "Progress") -> bool:
        """Take what came of a turn; return whether that was all, and `error` says how it ended."""
        error = self._results.add(progress)
        self._error = self._error or error
        self._n_ended += progress.is_last
        return progress.is_last and self._n_ended >= progress.n_channels

    @property
    def failure(self) -> VoxpipeError | None:
        """What went wrong; ChangedError if it is to be done again as it is now."""
        if self._error is not None and not isinstance(self._error, OutputError) and self.is_stale:
            return ChangedError("has changed while it was being read")
        return self._error

    def give_up(self) -> None:
        """Leave nothing of it, if it is not finished, and nothing claimed."""
        self._results.discard()
        self.place.release(self.stem)
        self.claim.release()

    def publish(self, results: Sequence[ResultFiles]) -> None:
        """Give the outputs their names, so that being killed at any moment leaves none that is not known as ours."""
        if self.is_stale:
            raise ChangedError("has changed while it was being read")
        if not self.claim.is_ours():
            raise ChangedError("was taken over by another watcher")
        parts = {path: part for result in results for path, part in result.complete.items()}
        digests = {os.path.basename(path): digest_of(part) or "" for path, part in parts.items()}
        self.place.check_free(digests, self.record)
        before = self.record
        try:
            writing = Record(self.place.source, self.version, digests, self.place.present(before))
            self.place.write(self.stem, writing)
            for result in results:
                result.publish(lambda path: self.place.may_replace(os.path.basename(path), writing))
            sync_directory(self.place.folder)
            outputs = self.place.remove_leftovers(before, writing)
            self.record = Record(self.place.source, self.version, outputs, is_done=True)
            self.place.write(self.stem, self.record)
        except OutputError:
            raise
        except OSError as exc:
            raise OutputError(f"cannot write {self.place.folder}: {exc.strerror or exc}") from exc
        self.outputs = list(parts)


class _Results(FileResults):
    """Writes under temporary names in voxpipe's own folder, and publishes by way of the record."""

    def __init__(self, job: WatchJob, *, model: str, delay_ms: int) -> None:
        super().__init__(job, model=model, delay_ms=delay_ms)
        self._watched = job

    def _begin(self, channel: int, heading: Heading) -> ResultFiles:
        job = self._watched
        return ResultFiles(job.paths(channel), heading, replace=True, part_stem=job.place.part_stem(channel))

    def _publish(self, results: Sequence[ResultFiles]) -> None:
        self._watched.publish(results)
