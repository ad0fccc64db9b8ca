"""Everything that `voxpipe bench` measures, in order, and how it is printed.

Warm-up comes before each measurement and is not timed; times are medians of several or percentiles of many.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import mlx.core as mx

from voxpipe.bench.cost import Cost, cost_of
from voxpipe.bench.load import IN_TURN_TICKS, Load, Ticks, file, files_together, in_turn, together
from voxpipe.bench.machine import machine_name, memory_bandwidth
from voxpipe.config import MS_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN
from voxpipe.model.voxtral import ENCODER_GROUP_TOKENS
from voxpipe.runtime.frontend import right_pad_tokens
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.transcriber import Transcriber

FILE_ROUNDS = 3
WARM_UP_S = 2.0
MAX_IN_TURN = 8  # sessions: more of them give no more audio in a second
ROOFLINE = """\
roofline: the least time that reading takes (weights, and the keys and values that windows see, by the memory bandwidth),
          by the time taken; a live tick reads decoder and encoder once, a file as often as it called them
x in turn: beside as many sessions, at most 8, stepped one after another; RSS may reuse what was freed before"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class FileResult:
    """One stream fed as a file.

    Attributes:
        wall_s, plain_wall_s: with guesses and without.
        tokens_per_call: positions that came of a decoder call, with guesses.
        right_share: of the guesses; 0 if there were none.
        roofline_share: of the calls that were made.
    """

    audio_s: float
    wall_s: float
    plain_wall_s: float
    rtf: float
    ms_per_token: float
    n_guesses: int
    n_right: int
    right_share: float
    tokens_per_call: float
    roofline_share: float


@dataclass(frozen=True)
class LiveResult:
    """One stream fed 80 ms at a time, and stepped by itself."""

    n_ticks: int
    p50_ms: float
    p95_ms: float
    rtf: float
    roofline_share: float


@dataclass(frozen=True)
class StreamsResult:
    """So many streams fed 80 ms at a time in lock-step, as one batch.

    Attributes:
        audio_s_per_s: of all streams together.
        in_turn_audio_s_per_s: the same by as many sessions, at most MAX_IN_TURN, each stepped by itself.
        ratio: of these two.
        is_real_time: whether 95 of 100 ticks take no longer than 80 ms.
        files_audio_s_per_s: of as many files as one batch.
        active_bytes_per_stream, resident_bytes_per_stream: by which memory grew.
        ring_bytes_per_stream: of the caches of one.
    """

    n: int
    n_ticks: int
    p50_ms: float
    p95_ms: float
    audio_s_per_s: float
    in_turn_audio_s_per_s: float
    ratio: float
    is_real_time: bool
    roofline_share: float
    files_audio_s_per_s: float
    active_bytes_per_stream: float
    resident_bytes_per_stream: float
    ring_bytes_per_stream: float


@dataclass(frozen=True)
class Report:
    """All numbers of one run.

    Attributes:
        most_streams: largest number of streams, of those tried, that is carried in real time; 0 if none is.
    """

    machine: str
    device: str
    versions: dict[str, str]
    model: str
    dtype: str
    delay_ms: int
    audio: str
    audio_s: float
    context_s: float
    load_s: float
    bandwidth_gb_s: float
    n_parameters: int
    decoder_bytes: int
    encoder_bytes: int
    file: FileResult
    live: LiveResult
    streams: list[StreamsResult]
    most_streams: int

    def to_json(self) -> dict[str, Any]:
        """The same as objects, lists, numbers and strings."""
        return asdict(self)


def measure(
    transcriber: Transcriber, load: Load, *, n_streams: Sequence[int], audio: str, load_s: float, say: Say
) -> Report:
    """Measure one model.

    Args:
        n_streams: numbers of streams to try, ascending.
        audio: what the samples are, for the report.
        load_s: what loading the model took.
        say: is told what comes next.
    """
    network = transcriber.network
    audio_s = len(load.samples) / SAMPLE_RATE
    say("memory bandwidth")
    bandwidth = memory_bandwidth(network.dtype, network.lanes)
    cost = cost_of(network)
    say("one file")
    file_result = _measure_file(transcriber, load, cost, bandwidth)
    say("one live stream")
    live_result = _measure_live(transcriber, load, cost, bandwidth)
    streams = []
    for n in n_streams:
        say(f"{n} live streams" if n > 1 else "1 live stream of an engine")
        streams.append(_measure_streams(transcriber, load, n, cost, bandwidth))
    return Report(
        machine=machine_name(),
        device="cpu" if mx.default_device() == mx.cpu else "gpu",
        versions={name: version(name) for name in ("voxpipe", "mlx")},
        model=transcriber.name,
        dtype=str(network.dtype).rpartition(".")[2],
        delay_ms=load.delay_ms or network.config.transcription_delay_ms,
        audio=audio,
        audio_s=audio_s,
        context_s=load.context_s,
        load_s=load_s,
        bandwidth_gb_s=bandwidth / 1e9,
        n_parameters=cost.n_parameters,
        decoder_bytes=cost.decoder_bytes,
        encoder_bytes=cost.encoder_bytes,
        file=file_result,
        live=live_result,
        streams=streams,
        most_streams=max((result.n for result in streams if result.is_real_time), default=0),
    )


def _measure_file(transcriber: Transcriber, load: Load, cost: Cost, bandwidth: float) -> FileResult:
    guessing = Runner(transcriber.network)
    plain = Runner(transcriber.network, speculate=False)
    warm_up = Load(load.samples[: round(WARM_UP_S * SAMPLE_RATE)], load.context_s, load.delay_ms)
    for runner in (guessing, plain):
        file(transcriber, runner, warm_up)
    before = guessing.n_calls, guessing.n_positions, guessing.n_guessed, guessing.n_right
    walls_s: dict[Runner, list[float]] = {guessing: [], plain: []}
    for _ in range(FILE_ROUNDS):
        for runner, collected in walls_s.items():  # in turn: the machine may change under them
            collected.append(file(transcriber, runner, load))
    after = guessing.n_calls, guessing.n_positions, guessing.n_guessed, guessing.n_right
    n_calls, n_positions, n_guesses, n_right = (new - old for new, old in zip(after, before, strict=True))
    audio_s = len(load.samples) / SAMPLE_RATE
    wall_s, plain_wall_s = median(walls_s[guessing]), median(walls_s[plain])
    n_delay = (load.delay_ms or transcriber.config.transcription_delay_ms) // MS_PER_TOKEN
    n_tokens = -(-len(load.samples) // SAMPLES_PER_TOKEN) + right_pad_tokens(n_delay)
    read = cost.read_bytes(
        n_streams=1,
        heard_s=audio_s / 2,  # on the average
        decoder_calls=n_calls / n_positions,
        encoder_calls=1 / ENCODER_GROUP_TOKENS,
    )
    return FileResult(
        audio_s=audio_s,
        wall_s=wall_s,
        plain_wall_s=plain_wall_s,
        rtf=wall_s / audio_s,
        ms_per_token=1000 * wall_s / n_tokens,
        n_guesses=n_guesses,
        n_right=n_right,
        right_share=n_right / n_guesses if n_guesses else 0.0,
        tokens_per_call=n_positions / n_calls,
        roofline_share=n_tokens * read / bandwidth / wall_s,
    )


def _measure_live(transcriber: Transcriber, load: Load, cost: Cost, bandwidth: float) -> LiveResult:
    ticks = in_turn(transcriber, load, n_streams=1, limit_s=len(load.samples) / SAMPLE_RATE)
    return LiveResult(
        n_ticks=len(ticks.tick_s),
        p50_ms=ticks.p50_ms,
        p95_ms=ticks.p95_ms,
        rtf=1 / ticks.audio_s_per_s,
        roofline_share=_tick_share(ticks, load, cost, bandwidth),
    )


def _measure_streams(transcriber: Transcriber, load: Load, n: int, cost: Cost, bandwidth: float) -> StreamsResult:
    limit_s = len(load.samples) / SAMPLE_RATE
    ticks = together(transcriber, load, n_streams=n, limit_s=limit_s)
    shorter = Load(load.samples[: (IN_TURN_TICKS + 4) * SAMPLES_PER_TOKEN], load.context_s, load.delay_ms)
    alone = in_turn(transcriber, shorter, n_streams=min(n, MAX_IN_TURN), limit_s=limit_s)
    return StreamsResult(
        n=n,
        n_ticks=len(ticks.tick_s),
        p50_ms=ticks.p50_ms,
        p95_ms=ticks.p95_ms,
        audio_s_per_s=ticks.audio_s_per_s,
        in_turn_audio_s_per_s=alone.audio_s_per_s,
        ratio=ticks.audio_s_per_s / alone.audio_s_per_s,
        is_real_time=ticks.p95_ms <= MS_PER_TOKEN,
        roofline_share=_tick_share(ticks, load, cost, bandwidth),
        files_audio_s_per_s=files_together(transcriber, load, n_files=n, limit_s=limit_s),
        active_bytes_per_stream=ticks.active_bytes / n,
        resident_bytes_per_stream=ticks.resident_bytes / n,
        ring_bytes_per_stream=ticks.ring_bytes / n,
    )


def _tick_share(ticks: Ticks, load: Load, cost: Cost, bandwidth: float) -> float:
    heard_s = load.context_s + len(ticks.tick_s) * MS_PER_TOKEN / 1000 / 2  # on the average
    return cost.read_bytes(n_streams=ticks.n_streams, heard_s=heard_s) / bandwidth / (ticks.p50_ms / 1000)


def table(report: Report) -> str:
    """The report for people."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines = [
        f"{report.machine}; {versions} on the {report.device}; {report.model}: {report.n_parameters / 1e6:.0f} M "
        f"parameters, {report.dtype}, delay {report.delay_ms} ms; {report.audio_s:g} s of {report.audio}; "
        f"context {report.context_s:g} s",
        "",
        _row("memory bandwidth", f"{report.bandwidth_gb_s:.1f} GB/s"),
        _row("load", f"{report.load_s:.2f} s"),
        _row("weights of a decoder call", f"{report.decoder_bytes / 1e6:.1f} MB"),
        _row("weights of an encoder call", f"{report.encoder_bytes / 1e6:.1f} MB"),
        "",
        f"{'one stream':24}{'ms per 80 ms':>14}{'p95':>9}{'RTF':>9}{'roofline':>10}",
        f"{'as a file':24}{report.file.ms_per_token:14.2f}{'':9}{report.file.rtf:9.4f}"
        f"{report.file.roofline_share:10.0%}",
        f"{'live, 80 ms at a time':24}{report.live.p50_ms:14.2f}{report.live.p95_ms:9.2f}{report.live.rtf:9.4f}"
        f"{report.live.roofline_share:10.0%}",
        "",
        f"guesses: {report.file.audio_s:g} s of audio in {report.file.wall_s:.2f} s, without them "
        f"{report.file.plain_wall_s:.2f} s; {report.file.n_right} of {report.file.n_guesses} right "
        f"({report.file.right_share:.0%}), {report.file.tokens_per_call:.2f} tokens per decoder call",
        "",
        f"{'':7}{'tick of 80 ms each':^22}{'audio s per s':^31}{'real':>6}{'roof-':>7}{'MB per stream':^30}",
        f"{'streams':>7}{'p50 ms':>11}{'p95 ms':>11}{'live':>10}{'x in turn':>11}{'files':>10}{'time':>6}{'line':>7}"
        f"{'rings':>10}{'MLX':>10}{'RSS':>10}",
    ]
    lines += [
        f"{one.n:7}{one.p50_ms:11.1f}{one.p95_ms:11.1f}{one.audio_s_per_s:10.1f}{one.ratio:11.2f}"
        f"{one.files_audio_s_per_s:10.1f}{'yes' if one.is_real_time else 'no':>6}{one.roofline_share:7.0%}"
        f"{one.ring_bytes_per_stream / 1e6:10.2f}{one.active_bytes_per_stream / 1e6:10.2f}"
        f"{one.resident_bytes_per_stream / 1e6:10.2f}"
        for one in report.streams
    ]
    lines += ["", f"carried in real time (p95 at most {MS_PER_TOKEN} ms): {_most(report)}", ROOFLINE]
    return "\n".join(lines)


def _most(report: Report) -> str:
    tried = ", ".join(str(one.n) for one in report.streams)
    return f"{report.most_streams} streams, of {tried} that were tried"


def _row(name: str, value: str) -> str:
    return f"{name:28}{value:>12}"


def timed_load(load_model: Callable[[], Transcriber]) -> tuple[Transcriber, float]:
    """A model, and the seconds that loading it took."""
    started_at = time.perf_counter()
    transcriber = load_model()
    return transcriber, time.perf_counter() - started_at
