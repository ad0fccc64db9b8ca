"""`voxpipe transcribe`: files in, text, captions or JSON out."""

import glob
import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from voxpipe.cli.cluster import check_send, cluster_options, connect
from voxpipe.cli.interrupts import Interrupted, Interrupts
from voxpipe.cli.options import load_model, model_options
from voxpipe.cli.recordings import Awake, recording_options
from voxpipe.cli.stdout import EventResults, StdoutResults, Turns
from voxpipe.errors import EX_OK, UsageError, VoxpipeError
from voxpipe.output.events import JsonLines
from voxpipe.output.results import Source, check_directory, make_directory, output_stems, size_of

if TYPE_CHECKING:
    from voxpipe.runtime.files import Progress
    from voxpipe.runtime.jobs import FileJob

log = logging.getLogger(__name__)

Begun = tuple[dict[str, Any], "Generator[Progress, None, None]"]  # `model` and `delay_ms`, and what comes of the files

STDOUT = "-"
ONE_AT_A_TIME = ("srt", "vtt")  # two of them behind each other are not a third


@click.command(short_help="Transcribe audio files, and with ffmpeg video files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    metavar="DIR|-",
    default=STDOUT,
    show_default=True,
    help="Folder for one file per FILE and format; - is stdout.",
)
@click.option("--force", is_flag=True, help="Replace outputs that are there already.")
@click.option("--skip-existing", is_flag=True, help="Leave outputs that are there already, and make the others.")
@recording_options
@cluster_options
@model_options
def transcribe(
    files: tuple[str, ...],
    formats: tuple[tuple[str, ...], ...],
    output: str,
    force: bool,
    skip_existing: bool,
    channels: str,
    jobs: int,
    cluster: str | None,
    send: bool,
    delay_ms: int | None,
    dtype: str | None,
    model: str | None,
) -> int:
    """Transcribe audio FILEs: wav, flac, ogg, opus, mp3, and with ffmpeg all others, video included.

    A FILE may be a quoted pattern such as 'talks/**/*.wav', whose folders are kept below DIR. On stdout, text comes in the
    order of the files. A file that cannot be read is named on stderr and the others follow; the exit status is that of the
    first failure. Ctrl-C keeps the files that are finished.
    """
    names = tuple(dict.fromkeys(name for group in formats for name in group))
    if force and skip_existing:
        raise UsageError("--force and --skip-existing contradict each other")
    check_send(cluster, send=send)
    sources = find_sources(files)
    is_split = channels == "split"
    if output == STDOUT:
        _check_stdout(names, n_transcripts=2 if is_split else len(sources))
        jobs_to_do = _jobs_to_stdout(sources, is_split=is_split)
    else:
        check_directory(output)
        jobs_to_do = _jobs_to_files(sources, output, names, is_split=is_split, replace=force, skip=skip_existing)
        make_directory(output)
    if not jobs_to_do:
        return EX_OK
    n_at_once = min(jobs, len(jobs_to_do))
    if cluster is None:
        begun = _begin_here(jobs_to_do, model, dtype, n_at_once=n_at_once, delay_ms=delay_ms)
    else:
        begun = _begin_on(cluster, jobs_to_do, model, dtype, n_at_once=n_at_once, delay_ms=delay_ms, send=send)
    shows_bar = sys.stderr.isatty() and (output != STDOUT or not sys.stdout.isatty())
    try:
        with Interrupts() as interrupts, begun as (how, turns), Awake():
            results = _results(jobs_to_do, names[0], output, how)
            return carry(turns, jobs_to_do, results, interrupts, shows_bar=shows_bar)
    except Interrupted as exc:  # while the model was loaded
        log.error("interrupted; 0 of %d files are finished", len(jobs_to_do))
        return 128 + exc.number


@contextmanager
def _begin_here(
    jobs: "list[FileJob]", model: str | None, dtype: str | None, *, n_at_once: int, delay_ms: int | None
) -> Iterator[Begun]:
    from voxpipe.runtime.files import transcribe_together

    transcriber = load_model(model, dtype)
    how = {"model": transcriber.name, "delay_ms": delay_ms or transcriber.config.transcription_delay_ms}
    yield how, transcribe_together(jobs, transcriber, jobs=n_at_once, delay_ms=delay_ms)


@contextmanager
def _begin_on(
    address: str,
    jobs: "list[FileJob]",
    model: str | None,
    dtype: str | None,
    *,
    n_at_once: int,
    delay_ms: int | None,
    send: bool,
) -> Iterator[Begun]:
    with connect(address, model, dtype) as cluster:
        from voxpipe.cluster.files import transcribe_on

        how = {"model": cluster.facts.name, "delay_ms": delay_ms or cluster.facts.delay_ms}
        yield how, transcribe_on(cluster, jobs, n_at_once=n_at_once, delay_ms=delay_ms, send=send)


def _results(jobs: "list[FileJob]", format: str, output: str, how: dict[str, Any]) -> "list[Results]":
    from voxpipe.runtime.jobs import FileResults

    if output != STDOUT:
        return [FileResults(job, **how) for job in jobs]
    if format == "jsonl":
        JsonLines(sys.stdout.buffer).ready(**how)
        return [EventResults(job, **how) for job in jobs]
    turns = Turns(len(jobs))
    return [StdoutResults(job, turns, n, format, **how) for n, job in enumerate(jobs)]


class Results(Protocol):
    """What becomes of one file's transcripts."""

    def add(self, progress: "Progress") -> VoxpipeError | None:
        """Take what has come; return what went wrong with a transcript that has ended."""

    def discard(self) -> None:
        """Give up what is unfinished."""


def carry(
    turns: Generator["Progress", None, None],
    jobs: "list[FileJob]",
    results: Sequence[Results],
    interrupts: Interrupts,
    *,
    shows_bar: bool,
) -> int:
    """Carry progress to the results until all is done or a signal comes; return the exit status."""
    from voxpipe.cli.progress import Estimate, progress_bar

    estimate = Estimate([size_of(job.path) for job in jobs])
    errors: dict[int, VoxpipeError] = {}
    n_ended = [0] * len(jobs)
    n_finished = 0
    try:
        with closing(turns), progress_bar(estimate, len(jobs), shown=shows_bar) as bar:
            for progress in turns:
                index, job = progress.index, jobs[progress.index]
                with interrupts.held_back():  # so that a file's outputs get their names together, and are counted
                    error = results[index].add(progress)
                    n_ended[index] += progress.is_last
                    has_ended = progress.is_last and n_ended[index] >= progress.n_channels
                    if error is not None and index not in errors:
                        errors[index] = error
                        log.error("%s", job.explain(error))
                    n_finished += has_ended and index not in errors
                estimate.open(index, None if job.info is None else job.info.duration_s)
                estimate.read(index, progress.audio_s)
                if has_ended:
                    estimate.end(index)
                bar.draw()
    except Interrupted as exc:
        log.error("interrupted; %d of %d files are finished", n_finished, len(jobs))
        return 128 + exc.number
    finally:
        for result in results:
            result.discard()
    return errors[min(errors)].status if errors else EX_OK


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Expand the patterns that no shell has expanded: an argument that is no file but matches some."""
    sources: list[Source] = []
    for argument in arguments:
        matches: list[str] = []
        if glob.has_magic(argument) and not os.path.lexists(argument):
            matches = sorted(path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path))
        root = _fixed_part(argument)
        sources += [Source(path, os.path.relpath(path, root)) for path in matches] or [Source.alone(argument)]
    return sources


def _fixed_part(pattern: str) -> str:
    """The folder in which all matches of a pattern lie."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def _check_stdout(formats: tuple[str, ...], *, n_transcripts: int) -> None:
    if len(formats) > 1:
        raise UsageError("stdout takes one format; name a folder with `-o DIR` for several")
    if n_transcripts > 1 and formats[0] in ONE_AT_A_TIME:
        raise UsageError(f"stdout takes one {formats[0]}; name a folder with `-o DIR` for several")


def _jobs_to_stdout(sources: list[Source], *, is_split: bool) -> "list[FileJob]":
    from voxpipe.runtime.jobs import FileJob

    return [FileJob(source.path, is_split=is_split) for source in sources]


def _jobs_to_files(
    sources: list[Source], directory: str, formats: tuple[str, ...], *, is_split: bool, replace: bool, skip: bool
) -> "list[FileJob]":
    """What is to be made in a folder, less what is there already if it is to be skipped."""
    from voxpipe.runtime.jobs import FileJob

    sources = list(dict.fromkeys(sources))
    protected = {os.path.realpath(source.path) for source in sources}
    stems = output_stems(sources, directory)
    jobs = []
    for source, stem in zip(sources, stems, strict=True):
        job = FileJob(source.path, formats, stem=stem, is_split=is_split, replace=replace, protected=protected)
        if skip:
            job.formats = tuple(name for name, path in job.paths().items() if not os.path.lexists(path))
        if job.formats:
            jobs.append(job)
    if len(jobs) < len(sources):
        log.warning("%d of %d files are skipped: their outputs are there", len(sources) - len(jobs), len(sources))
    return jobs
