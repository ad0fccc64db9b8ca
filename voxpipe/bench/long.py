"""`python -m voxpipe.bench long`: hours of audio, as fast as it runs: time and memory per step must not grow, and no text
may be missed.

A small random network makes days feasible: it has several heads of both kinds, and windows so short that its rings turn
over hundreds of times an hour. Its text is nonsense, but there is some in every part of a stream, and as many tokens as there are
80 ms. With --model tiny and a clip of speech, words can be counted.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from voxpipe.config import MS_PER_TOKEN, SAMPLE_RATE, SAMPLES_PER_TOKEN, DecoderConfig, EncoderConfig, ModelConfig
from voxpipe.errors import UsageError
from voxpipe.runtime.frontend import right_pad_tokens

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber

CLIP_S = 607.0  # of noise, repeated; a prime number, so that no period of the network meets it
N_SPECIAL = 40
TOKENS_BEHIND = right_pad_tokens(0)  # a stream gives so many tokens more than it has 80 ms
# windows of 1 s and of 4.8 s
SMALL = ModelConfig(
    encoder=EncoderConfig(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, hidden_dim=24, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=50, n_mels=32,
    ),
    decoder=DecoderConfig(
        dim=24, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=6, hidden_dim=36, norm_eps=1e-5, rope_theta=1e6,
        sliding_window=60, vocab_size=N_SPECIAL + 256 + 64,
    ),
)  # fmt: skip
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """A stretch of the run, of all streams together.

    Attributes:
        end_h: hours of audio that each stream has heard at its end.
        step_ms_p50, step_ms_p95: of one step of all streams, by `step_s` of audio each.
        cpu_ms: processor time of a step on the average, all cores.
        n_characters: of text, in the stream that has least.
        n_ids: different tokens, in the stream that has fewest.
    """

    end_h: float
    step_ms_p50: float
    step_ms_p95: float
    cpu_ms: float
    resident_mb: float
    active_mb: float
    n_tokens: int
    n_characters: int
    n_ids: int


@dataclass(frozen=True)
class Verdict:
    """The end beside the beginning.

    Attributes:
        step_ratio, cpu_ratio: median step and processor time of the last part by those of the first; where only the
            former has grown, other programs ran.
        resident_growth_mb, active_growth_mb: of the last part over the first.
        tokens_missed: over all streams; negative where there are more than there is audio.
        least_text_share: characters of the part that has least, by the median part.
        n_guarded: tokens at which the guard against ruts of blanks acted.
    """

    step_ratio: float
    cpu_ratio: float
    resident_growth_mb: float
    active_growth_mb: float
    tokens_missed: int
    least_text_share: float
    n_guarded: int


@click.command("long")
@click.argument("audio", required=False, type=click.Path(path_type=str))
@click.option("--hours", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Audio of each stream.")
@click.option("--streams", "n_streams", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--model", default="small", show_default=True, help="small (random weights), or as in `voxpipe bench`.")
@click.option(
    "--step-ms",
    type=click.IntRange(min=MS_PER_TOKEN),
    default=MS_PER_TOKEN,
    show_default=True,
    help="Audio that each stream gets at a time, a multiple of 80 ms.",
)
@click.option(
    "--parts", "n_parts", type=click.IntRange(min=2), default=12, show_default=True, help="Lines of the table."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def long(
    audio: str | None, hours: float, n_streams: int, model: str, step_ms: int, n_parts: int, as_json: bool
) -> None:
    """Feed hours of AUDIO, or of modulated noise, to streams, and print step time, memory and text over time."""
    from voxpipe.bench.machine import machine_name
    from voxpipe.bench.sound import noise_bursts, read_clip
    from voxpipe.runtime.transcriber import load

    if step_ms % MS_PER_TOKEN:
        raise UsageError(f"--step-ms must be a multiple of {MS_PER_TOKEN}, not {step_ms}")
    transcriber = small_model() if model == "small" else load(model)
    clip = noise_bursts(min(CLIP_S, 3600 * hours)) if audio is None else read_clip(audio)
    parts: list[Part] = []
    if not as_json:
        click.echo(
            f"{machine_name()}; {transcriber.name}; {hours:g} h of audio through {n_streams} "
            f"stream{'s' if n_streams > 1 else ''}, {step_ms} ms at a time, as fast as it runs"
        )
        click.echo(
            f"{'until h':>8}{'step p50 ms':>13}{'p95 ms':>9}{'CPU ms':>9}{'RSS MB':>9}{'MLX MB':>9}{'tokens':>10}"
            f"{'characters':>12}{'ids':>5}"
        )
    run = LongRun(transcriber, clip, n_streams=n_streams, n_step_samples=step_ms * SAMPLE_RATE // 1000)
    started_at = time.perf_counter()
    for part in run.parts(hours, n_parts):
        parts.append(part)
        if not as_json:
            click.echo(
                f"{part.end_h:8.2f}{part.step_ms_p50:13.3f}{part.step_ms_p95:9.3f}{part.cpu_ms:9.3f}"
                f"{part.resident_mb:9.1f}{part.active_mb:9.2f}{part.n_tokens:10}{part.n_characters:12}{part.n_ids:5}"
            )
    wall_s = time.perf_counter() - started_at
    verdict = judge(parts, run)
    if as_json:
        raw = {"hours": hours, "streams": n_streams, "step_ms": step_ms, "wall_s": wall_s}
        click.echo(json.dumps({**raw, "parts": [asdict(part) for part in parts], **asdict(verdict)}, indent=2))
        return
    missed = "no token missed" if verdict.tokens_missed == 0 else f"{verdict.tokens_missed} tokens missed"
    click.echo(
        f"end beside beginning: step x {verdict.step_ratio:.3f} (processor time x {verdict.cpu_ratio:.3f}), "
        f"RSS {verdict.resident_growth_mb:+.1f} MB, MLX {verdict.active_growth_mb:+.2f} MB; {missed}; least text of a part: "
        f"{verdict.least_text_share:.0%} of the median; blank-rut guard: {verdict.n_guarded} tokens; "
        f"{hours * n_streams * 3600 / wall_s:.0f} times real time"
    )


class LongRun:
    """Streams in lock-step over hours.

    Args:
        clip: (n_samples,) that is repeated; each stream begins at another point of it.
        n_step_samples: of each stream's audio at a time, a multiple of 1280.

    Attributes:
        tokens_missed, n_guarded: as in `Verdict`, known at the end.
    """

    def __init__(self, transcriber: "Transcriber", clip: Floats, *, n_streams: int, n_step_samples: int) -> None:
        self._clip = np.concatenate([clip, np.resize(clip, n_step_samples)])  # a step may run over its end
        self._n_clip = len(clip)
        self._n_step_samples = n_step_samples
        self._engine = transcriber.create_engine(n_expected=n_streams)
        self._sessions = [transcriber.create_streaming_session(keep_tokens=True) for _ in range(n_streams)]
        for session in self._sessions:
            self._engine.add(session)
        self._n_characters = dict.fromkeys(self._sessions, 0)
        self._n_fed = 0
        self._n_tokens = 0
        self.tokens_missed = 0
        self.n_guarded = 0

    def parts(self, hours: float, n_parts: int) -> Iterator[Part]:
        """Run, and tell of each of `n_parts` equal parts when it is done; the last one closes the streams."""
        n_steps = round(hours * 3600 * SAMPLE_RATE / self._n_step_samples)
        bounds = [n_steps * i // n_parts for i in range(n_parts + 1)]
        for first, stop in pairwise(bounds):
            yield self._part(stop - first, is_last=stop == n_steps)
        expected = self._n_fed // SAMPLES_PER_TOKEN + TOKENS_BEHIND
        self.tokens_missed = len(self._sessions) * expected - self._n_tokens
        self.n_guarded = sum(session.n_guarded for session in self._sessions)

    def _part(self, n_steps: int, *, is_last: bool) -> Part:
        import mlx.core as mx

        from voxpipe.service.process import resident_bytes

        steps_ms = np.zeros(n_steps)
        cpu_started_at = time.process_time()
        for index in range(n_steps):
            started_at = time.perf_counter()
            self._feed()
            self._turn()
            steps_ms[index] = 1000 * (time.perf_counter() - started_at)
        cpu_ms = 1000 * (time.process_time() - cpu_started_at) / n_steps
        active_mb, resident_mb = mx.get_active_memory() / 1e6, resident_bytes() / 1e6
        if is_last:
            for session in self._sessions:
                session.close()
            self._turn()
        n_tokens = sum(len(session.tokens) for session in self._sessions)
        self._n_tokens += n_tokens
        part = Part(
            end_h=self._n_fed / SAMPLE_RATE / 3600,
            step_ms_p50=float(np.percentile(steps_ms, 50)),
            step_ms_p95=float(np.percentile(steps_ms, 95)),
            cpu_ms=cpu_ms,
            resident_mb=resident_mb,
            active_mb=active_mb,
            n_tokens=n_tokens,
            n_characters=min(self._n_characters.values()),
            n_ids=min(len(set(session.tokens)) for session in self._sessions),
        )
        for session in self._sessions:
            session.tokens.clear()
            self._n_characters[session] = 0
        return part

    def _feed(self) -> None:
        n, n_clip = self._n_step_samples, self._n_clip
        for index, session in enumerate(self._sessions):  # each stream is elsewhere in the clip
            first = (self._n_fed + n_clip * index // len(self._sessions)) % n_clip
            session.feed(self._clip[first : first + n])
        self._n_fed += n

    def _turn(self) -> None:
        while results := self._engine.turn():
            for session, deltas in results:
                self._n_characters[session] += sum(map(len, deltas))


def judge(parts: list[Part], run: LongRun) -> Verdict:
    """Compare the parts of a run that has ended."""
    characters = [part.n_characters for part in parts]
    return Verdict(
        step_ratio=parts[-1].step_ms_p50 / parts[0].step_ms_p50,
        cpu_ratio=parts[-1].cpu_ms / parts[0].cpu_ms,
        resident_growth_mb=parts[-1].resident_mb - parts[0].resident_mb,
        active_growth_mb=parts[-1].active_mb - parts[0].active_mb,
        tokens_missed=run.tokens_missed,
        least_text_share=min(characters) / max(1.0, float(np.median(characters))),
        n_guarded=run.n_guarded,
    )


def small_model() -> "Transcriber":
    """The small network, loaded as any other."""
    from voxpipe.bench.checkpoint import write_random
    from voxpipe.checkpoints.hub import Choice
    from voxpipe.runtime.transcriber import load_choice

    with tempfile.TemporaryDirectory() as directory:
        write_random(SMALL, Path(directory), n_special=N_SPECIAL)
        return load_choice(Choice("small random network", Path(directory)))
