"""A file and its results, from the open file to the finished outputs.

Knows nothing of the model: blocks leave here and come back as progress.
"""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from voxpipe.audio.ffmpeg import Children
from voxpipe.audio.files import AudioFile, AudioInfo, check_is_file, display_name
from voxpipe.audio.resample import Samples
from voxpipe.errors import InputError, OutputError, VoxpipeError
from voxpipe.output.formats import AudioFacts, Heading
from voxpipe.output.results import ResultFiles, check_free, output_paths

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress

log = logging.getLogger(__name__)


def path_as_text(path: str) -> str:
    """A path in UTF-8, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FileJob:
    """One file to be transcribed.

    Args:
        stem: path of its outputs without `.txt` and the like; None if they are not files.
        is_split: a transcript per channel.
        replace: whether outputs that are there may be replaced.
        protected: real paths that may not be replaced in any case.

    Attributes:
        info: what its header says, once it is open.
        error: set it to stop the reading of the file with this error.
    """

    def __init__(
        self,
        path: str,
        formats: tuple[str, ...] = (),
        *,
        stem: str | None = None,
        is_split: bool = False,
        replace: bool = False,
        protected: Collection[str] = (),
    ) -> None:
        self.path = path
        self.formats = formats
        self.is_split = is_split
        self.replace = replace
        self.info: AudioInfo | None = None
        self.error: VoxpipeError | None = None
        self._stem = stem
        self._protected = protected
        self._status: os.stat_result | None = None
        self._children = Children()

    def __iter__(self) -> Iterator[Samples]:
        return self.blocks()

    def cancel(self, error: VoxpipeError | None = None) -> None:
        """Have the reading end soon, with this error. Safe from any thread."""
        self.error = self.error or error or InputError(f"{display_name(self.path)}: is not read any further")
        self._children.kill()

    def paths(self, channel: int = 0) -> dict[str, str]:
        """The output of each format; of a channel, counted from 0, if each has its own."""
        assert self._stem is not None
        return output_paths(self._stem, self.formats, channel=channel + 1 if self.is_split else None)

    def heading(self, channel: int, *, model: str, delay_ms: int) -> Heading:
        return Heading(path_as_text(self.path), model, delay_ms, channel + 1 if self.is_split else None)

    def blocks(self) -> Iterator[Samples]:
        """Open the file and yield its sound: (n,) float32 of 16 kHz, or (n, channels) if split.

        Raises:
            OutputError: an output is there already. Nothing has been read then.
            VoxpipeError: as AudioFile's, or `error`.
        """
        self._check_outputs()
        with AudioFile(self.path, split=self.is_split, children=self._children) as file:
            self.info, self._status = file.info, file.status
            for block in file.blocks():
                if self.error is not None:
                    raise self.error
                yield block

    def look(self) -> os.stat_result:
        """Note what the file is, for one that is read elsewhere; errors as far as they can be seen from outside."""
        self._check_outputs()
        self._status = check_is_file(self.path)
        return self._status

    def _check_outputs(self) -> None:
        for path in self.paths().values() if self._stem is not None else ():
            check_free(path, replace=self.replace)
            if os.path.realpath(path) in self._protected:
                raise OutputError(f"{path} is itself one of the files to be read; name another folder")

    def facts(self, audio_s: float) -> AudioFacts:
        """What json says of the file, of which `audio_s` seconds were read."""
        if self.info is None or self._status is None:
            return AudioFacts(audio_s)
        return AudioFacts(
            audio_s,
            size=self._status.st_size,
            mtime=round(self._status.st_mtime, 6),
            container=self.info.container,
            encoding=self.info.encoding,
            rate=self.info.rate,
            channels=self.info.channels,
        )

    def has_changed(self) -> bool:
        """Whether the file is another one now than when it was opened."""
        if self._status is None:
            return False
        try:
            status = os.stat(self.path)
        except OSError:
            return False  # it is gone: what was read is all there will be
        return (status.st_size, status.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns)

    def explain(self, error: VoxpipeError) -> str:
        """One line that names the file."""
        name, message = display_name(self.path), str(error)
        return message if message.startswith(f"{name}:") else f"{name}: {message}"


class FileResults:
    """Turns the progress of one job into its output files: all of them when the last of its channels has ended, or none."""

    def __init__(self, job: FileJob, *, model: str, delay_ms: int) -> None:
        self._job = job
        self._model = model
        self._delay_ms = delay_ms
        self._results: dict[int, ResultFiles] = {}  # of each channel
        self._ends: dict[int, tuple[float, bool]] = {}  # of each channel that has ended, seconds, and whether truncated

    def add(self, progress: "Progress") -> VoxpipeError | None:
        """Write what has come, and complete the outputs if that was all.

        Returns:
            What went wrong with a transcript that has ended; the job leaves no outputs then.
        """
        job = self._job
        try:
            if job.error is None and progress.error is None and progress.n_channels:
                self._write(progress)
        except VoxpipeError as exc:
            job.error = exc  # the rest need not be read
            self.discard()
        if not progress.is_last:
            return None
        error = job.error or progress.error
        if error is not None:
            self.discard()
        return error

    def discard(self) -> None:
        """Remove what is unfinished."""
        for results in self._results.values():
            results.discard()
        self._results.clear()

    def _write(self, progress: "Progress") -> None:
        job, channel = self._job, progress.channel
        if channel not in self._results:
            heading = job.heading(channel, model=self._model, delay_ms=self._delay_ms)
            self._results[channel] = self._begin(channel, heading)
        self._results[channel].add(progress.deltas)
        if progress.is_last:
            self._ends[channel] = progress.audio_s, progress.truncated
        if len(self._ends) == progress.n_channels:
            for channel, (audio_s, truncated) in self._ends.items():
                self._results[channel].finish(job.facts(audio_s), truncated=truncated)
            self._publish([self._results[channel] for channel in sorted(self._results)])
            self._results.clear()

    def _begin(self, channel: int, heading: Heading) -> ResultFiles:
        return ResultFiles(self._job.paths(channel), heading, replace=self._job.replace)

    def _publish(self, results: Sequence[ResultFiles]) -> None:
        """Give complete outputs their names."""
        for result in reversed(results):  # where the first one's outputs are, all are
            result.publish()
        if self._job.has_changed():
            log.warning("%s: has changed while it was being read; transcribe it again", display_name(self._job.path))
