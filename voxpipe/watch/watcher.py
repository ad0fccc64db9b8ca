"""One watched folder at work: a thread that finds recordings, waits until each is complete, claims it, and publishes what
the model's thread has made of it.

All that touches the folder happens on this thread, so that a slow disc does not hold up live streams; the model's thread
takes jobs with `take` and brings progress with `bring`. The thread obeys one queue of calls.
"""

import errno
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from voxpipe.audio.files import display_name
from voxpipe.errors import OutputError, UnavailableError, VoxpipeError
from voxpipe.watch.backlog import MAX_RETRY_S, Backlog, retry_in_s
from voxpipe.watch.claims import RENEW_S, Claim
from voxpipe.watch.failures import ERROR_SUFFIX, Failure, read_failure, remove_failure, write_failure
from voxpipe.watch.folder import Folder, WatchOptions, explain
from voxpipe.watch.job import ChangedError, WatchJob
from voxpipe.watch.lookout import Lookout
from voxpipe.watch.moving import put_away
from voxpipe.watch.records import Place, Record, Version, moved, owner_of
from voxpipe.watch.reports import Reports
from voxpipe.watch.settling import Key, Settling, read_key

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress

log = logging.getLogger(__name__)

N_CALLS = 200  # that are obeyed between two looks at everything else
ELSEWHERE_S = 2.0  # between two looks at a recording that another watcher has claimed
# after which nothing else can be written either, for a while
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ENXIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
)


class FolderWatcher(threading.Thread):
    """Watches a folder until it is stopped or, with `once`, until everything in it is done.

    Args:
        model: its name.
        delay_ms: the model's own delay, if the options name none.
        tell: called when there is something to `take`, or it has ended.

    Attributes:
        finished: it has ended, or nothing is left to be done and that was all it was for.
        failure: the exception that ended it.
    """

    def __init__(
        self, options: WatchOptions, reports: Reports, *, model: str, delay_ms: int, tell: Callable[[], None]
    ) -> None:
        super().__init__(name=f"folder-{os.path.basename(options.path)}", daemon=True)  # it may wait for a dead disc
        self.options = options
        self.reports = reports
        self.finished = False
        self.failure: BaseException | None = None
        self._path = os.path.abspath(options.path)
        self._folder = Folder(options)
        self._model = model
        self._delay_ms = options.delay_ms or delay_ms
        self._tell = tell
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._lookout = Lookout(
            self._folder,
            options,
            reports,
            on_change=lambda path, is_whole: self._calls.put(lambda: self._on_change(path, is_whole)),
            on_folder=lambda path: self._calls.put(lambda: self._on_folder(path)),
            on_loss=self.rescan,
        )
        self._settling = Settling(options.settle_s)
        self._backlog = Backlog()
        self._prepared: deque[WatchJob] = deque()  # claimed, for the model's thread to take
        self._in_work: dict[str, WatchJob] = {}
        self._attempts: dict[str, int] = {}
        self._settled: dict[str, Key] = {}  # done or given up, and in which version
        self._renew_at = 0.0

    # --- for other threads ---------------------------------------------------------------------------------------------

    def take(self) -> WatchJob | None:
        """The next recording, to be transcribed now."""
        try:
            job = self._prepared.popleft()
        except IndexError:
            return None
        self._calls.put(lambda: self._on_start(job))
        return job

    def bring(self, job: WatchJob, progress: "Progress") -> None:
        """Hand over what came of a turn."""
        self._calls.put(lambda: self._on_progress(job, progress))

    def stop(self) -> None:
        """Give up what is unfinished and end; `join` may follow. Safe in signal handlers."""
        self._stopping = True
        self._calls.put(lambda: None)

    def rescan(self) -> None:
        """Look at everything now. Safe in signal handlers."""
        self._calls.put(self._lookout.ask)

    def status(self) -> dict[str, object]:
        """Facts about it."""
        return {
            "folder": self._path,
            "polling": self._lookout.is_polling,
            "waiting": len(self._settling) + len(self._backlog),
            "in_work": len(self._in_work),
            "done": self.reports.counts["done"],
            "failed": self.reports.counts["failed"],
        }

    # --- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._path = self._folder.root
            self._lookout.start()
            while not self._stopping and not self._is_over():
                self._obey()
                self._look()
                self._settle()
                self._look_again()
                self._prepare()
                self._renew()
        except BaseException as exc:
            self.failure = exc
        finally:
            self._lookout.stop()
            for job in list(self._in_work.values()):
                job.give_up()
            self.finished = True
            self._tell()

    def _obey(self) -> None:
        """Do what was asked for, waiting for it as long as there is nothing else to do."""
        try:
            self._calls.get(timeout=self._idle_s())()
            for _ in range(N_CALLS):
                self._calls.get_nowait()()
        except queue.Empty:
            pass

    def _idle_s(self) -> float:
        if self._may_prepare():
            return 0.0
        now = time.monotonic()
        due = [
            self._lookout.due_in_s(now),
            self._settling.due_in_s(now),
            self._backlog.due_in_s(now),
            self._renew_at - now,
        ]
        return max(0.0, min(seconds for seconds in due if seconds is not None))

    def _is_over(self) -> bool:
        if not self.options.once or self._lookout.is_looking or not self._calls.empty():
            return False
        return not (self._settling or self._backlog or self._in_work)

    # --- finding -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at some more files, if it is time for that."""
        if self._lookout.begin(time.monotonic()):
            self._settled.clear()
        for path, key in self._lookout.look():
            self._see(path, key, is_event=False)

    def _on_change(self, path: str, is_whole: bool) -> None:
        """Something happened to a path."""
        if not self._folder.is_recording(path):
            if self._folder.has_output(path) and not os.path.lexists(path):
                self._on_lost_output(path)
            return
        key = read_key(path)
        if key is None:
            self._forget(path)
        elif is_whole and path not in self._in_work and path not in self._backlog:
            self._lookout.add(path)
            self._settling.drop(path)
            self._backlog.drop(path)
            if self._is_todo(path, key):
                self._queue(path, key)
        else:
            self._see(path, key, is_event=True)

    def _on_folder(self, path: str) -> None:
        """A folder came, perhaps with recordings that nobody reports."""
        if self._folder.is_looked_into(path):
            self._lookout.ask_for_new()

    def _on_lost_output(self, path: str) -> None:
        """An output has been removed, which asks for it again."""
        folder, name = os.path.split(path)
        if name.endswith(ERROR_SUFFIX):
            source: str | None = os.path.join(self._folder.mirror(folder), name.removesuffix(ERROR_SUFFIX))
        else:
            source = owner_of(folder, name)
        key = None if source is None else read_key(source)
        if source is not None and key is not None and source not in self._in_work and self._folder.is_recording(source):
            self._settled.pop(source, None)
            self._attempts.pop(source, None)
            self._see(source, key, is_event=True)

    def _see(self, path: str, key: Key, *, is_event: bool) -> None:
        """A recording is there."""
        self._lookout.add(path)
        job = self._in_work.get(path)
        if job is not None:
            if key[:2] != (job.version.size, job.version.mtime_ns):
                job.cancel(ChangedError("has changed while it was being read"))
        elif not self._backlog.holds(path, key):
            self._backlog.drop(path)
            if path in self._settling or self._is_todo(path, key):
                self._settling.touch(path, key, time.monotonic(), is_event=is_event)

    def _is_todo(self, path: str, key: Key) -> bool:
        """Whether a recording has no outputs yet, and has not failed for good."""
        if self._settled.get(path) == key:
            return False
        version, place = self._version(key), self._place(path)
        _, record = place.find(*key[:2])
        is_done = record is not None and place.is_done(record, version, self.options.formats)
        failure = None if is_done else read_failure(place)
        is_lost = failure is not None and failure.is_lasting and failure.version == version
        if is_lost or (is_done and self.options.done_dir is None):
            self._settled[path] = key
            return False
        return True

    def _forget(self, path: str) -> None:
        """A recording has gone."""
        self._lookout.remove(path)
        self._settled.pop(path, None)
        self._attempts.pop(path, None)
        was_waiting = path in self._settling
        self._settling.drop(path)
        if self._backlog.drop(path) or was_waiting:
            self.reports.discarded(path, "is gone")

    def _settle(self) -> None:
        """Queue what is complete now."""
        for verdict in self._settling.look(time.monotonic()):
            key = None if verdict.is_gone else read_key(verdict.path)
            if key is None:
                self._lookout.remove(verdict.path)
                self.reports.discarded(verdict.path, "is gone")
            elif not verdict.is_settled:
                self.reports.waiting(verdict.path, verdict.lack or "")
            else:
                if verdict.lack is not None:
                    self.reports.incomplete(verdict.path, verdict.lack, self._settling.patience_s)
                self._queue(verdict.path, key)

    def _queue(self, path: str, key: Key) -> None:
        self._backlog.add(path, key)
        self.reports.queued(path, key[0])

    def _look_again(self) -> None:
        """Queue what was put off until now."""
        for path, then in self._backlog.due(time.monotonic()):
            key = read_key(path)
            if key is None:
                self._lookout.remove(path)
            elif key != then:
                self._see(path, key, is_event=True)
            elif self._is_todo(path, key):
                self._backlog.add(path, key)
            else:
                self.reports.skipped(path, "another watcher has done it")

    # --- beginning -----------------------------------------------------------------------------------------------------

    def _may_prepare(self) -> bool:
        return not self._prepared and self._backlog.may_begin(time.monotonic(), len(self._in_work))

    def _prepare(self) -> None:
        """Claim the next recording, so that it is at hand; what others could do stays free."""
        while self._may_prepare():
            taken = self._backlog.take()
            if taken is None or taken[0] in self._in_work:
                continue
            path, key = taken
            now = read_key(path)
            if now == key:
                self._claim(path, key)
            elif now is None:
                self._forget(path)
                self.reports.discarded(path, "is gone")
            else:
                self._settling.touch(path, now, time.monotonic(), is_event=True)

    def _try_later(self, path: str, key: Key, seconds: float) -> None:
        self._backlog.put_off(path, key, until=time.monotonic() + seconds)

    def _claim(self, path: str, key: Key) -> None:
        place, version = self._place(path), self._version(key)
        claim = Claim(place.claim_path)
        try:
            place.make()
            if not claim.take():
                self._try_later(path, key, ELSEWHERE_S)
                return
            place.clean()
            job = self._make_job(path, place, version, claim)
        except OSError as exc:
            self._on_failure(path, place, version, _as_output_error(exc, place.folder))
            claim.release()
            return
        if job is None:
            claim.release()
            return
        self._in_work[path] = job
        self._prepared.append(job)
        self._tell()

    def _make_job(self, path: str, place: Place, version: Version, claim: Claim) -> WatchJob | None:
        """The job of a recording that has been claimed; None if there is nothing to be done any more."""
        stem, record = place.find(version.size, version.mtime_ns)
        if record is not None and place.is_done(record, version, self.options.formats):
            if not record.is_done:  # its maker was killed after the last output had got its name
                record = Record(place.source, version, record.outputs, is_done=True)
                place.write(stem, record)
            if self._folder.done_root is None:
                self.reports.skipped(path, "its outputs are there")
            self._finish(path, place, stem, record)
            return None
        while record is None:
            stem, record = place.find(version.size, version.mtime_ns)
            record = record or place.reserve(stem, version)
        job = WatchJob(
            path,
            self.options.formats,
            place=place,
            stem=stem,
            record=record,
            version=version,
            claim=claim,
            delay_ms=self.options.delay_ms,
        )
        try:
            place.check_free((os.path.basename(one) for one in job.paths().values()), record)
        except OutputError:
            place.release(stem)
            raise
        return job

    def _on_start(self, job: WatchJob) -> None:
        job.begin()
        self.reports.started(job.path)

    # --- ending --------------------------------------------------------------------------------------------------------

    def _on_progress(self, job: WatchJob, progress: "Progress") -> None:
        if not job.add(progress):
            return
        del self._in_work[job.path]
        error = job.failure
        try:
            if isinstance(error, ChangedError):
                self._on_discard(job, str(error))
            elif error is not None:
                self._on_failure(job.path, job.place, job.version, error)
            else:
                self._on_done(job, progress)
        finally:
            job.give_up()

    def _on_done(self, job: WatchJob, progress: "Progress") -> None:
        self._backlog.release()
        self._attempts.pop(job.path, None)
        remove_failure(job.place)
        wall_s = time.monotonic() - job.started_at
        self.reports.done(job.path, job.outputs, audio_s=progress.audio_s, wall_s=wall_s, truncated=progress.truncated)
        self._finish(job.path, job.place, job.stem, job.record)

    def _finish(self, path: str, place: Place, stem: str, record: Record) -> None:
        """Put a recording away that is done, if that is wanted; else note it."""
        target = self._folder.done_root
        if target is not None:
            try:
                place.write(stem, moved(record))  # first: what comes under its name after this is another one
                size, mtime_ns = record.version.size, record.version.mtime_ns
                target = put_away(path, os.path.join(target, os.path.relpath(path, self._folder.root)), size, mtime_ns)
            except OSError as exc:
                log.warning("%s: cannot be moved: %s; tried again", display_name(path), explain(exc))
                key = read_key(path)
                if key is not None and not self.options.once:
                    self._try_later(path, key, MAX_RETRY_S)
                return
            if target is not None:
                self.reports.moved(path, target)
            return
        key = read_key(path)
        if key is not None and key[:2] == (record.version.size, record.version.mtime_ns):
            self._settled[path] = key

    def _on_discard(self, job: WatchJob, reason: str) -> None:
        self.reports.discarded(job.path, reason)
        key = read_key(job.path)
        if key is not None:
            self._settling.touch(job.path, key, time.monotonic(), is_event=True)

    def _on_failure(self, path: str, place: Place, version: Version, error: VoxpipeError) -> None:
        key = read_key(path)
        if key is None and not isinstance(error, OutputError):
            self.reports.discarded(path, "is gone")
            return
        attempts = self._attempts[path] = self._attempts.get(path, 0) + 1
        failure = Failure(place.source, version, error.code, _message(path, error), attempts)
        retry_s = None
        if key is not None and not failure.is_lasting and not self.options.once:
            retry_s = retry_in_s(attempts)
            if getattr(error.__cause__, "errno", None) in STORAGE_ERRORS:
                retry_s = self._backlog.hold(time.monotonic())
            elif isinstance(error, OutputError | UnavailableError):  # somebody must do something first
                retry_s = self.options.rescan_s
            self._try_later(path, key, retry_s)
        elif key is not None:
            self._settled[path] = key
        try:
            write_failure(place, failure)
        except OSError as exc:
            log.info("%s: cannot be noted: %s", display_name(path), exc.strerror)
        self.reports.failed(path, error, attempts=attempts, retry_s=retry_s)

    # --- small things --------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        now = time.monotonic()
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            for job in self._in_work.values():
                job.claim.renew()

    def _version(self, key: Key) -> Version:
        return Version(key[0], key[1], self._model, self._delay_ms, self.options.channels)

    def _place(self, path: str) -> Place:
        return Place(path, self._folder.outputs_of(path), has_namesake=self._lookout.has_namesake(path))


def _message(path: str, error: VoxpipeError) -> str:
    return str(error).removeprefix(f"{display_name(path)}: ")


def _as_output_error(error: OSError, folder: str) -> VoxpipeError:
    if isinstance(error, VoxpipeError):
        return error
    failure = OutputError(f"cannot write in {folder}: {explain(error)}")
    failure.__cause__ = error
    return failure
