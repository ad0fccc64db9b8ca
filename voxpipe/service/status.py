"""A status as lines for people: of a daemon that was asked, or of this process when a signal asks for it."""

import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

JOINERS = "\u200c\u200d"  # formatting characters without which words of some languages are not the same


def printable(text: str) -> str:
    """Text without what a terminal would obey instead of showing: names and words come from whoever pipes audio in."""
    return "".join(
        one if one in JOINERS or unicodedata.category(one)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def heading(facts: Mapping[str, Any]) -> str:
    """`voxpipe 0.1.0, process 4711, up 2:03:04; model tiny, …` in one line."""
    n_streams, most = len(facts["streams"]), facts.get("max_streams")
    parts = [
        f"voxpipe {facts['version']}, process {facts['pid']}, up {clock(facts['uptime_s'])}",
        f"model {facts['model']}, delay {facts['delay_ms']} ms, {facts['backend']}",
        f"{mebibytes(facts['resident_bytes'])} resident, {mebibytes(facts['mlx_bytes'])} of them MLX's",
        f"{n_streams} stream{'s' * (n_streams != 1)}" if most is None else f"{n_streams} of {most} streams",
    ]
    if "turn_ms" in facts:
        parts.append(f"a turn {facts['turn_ms']:.1f} ms, 95 % {facts['turn_p95_ms']:.1f} ms")
    if "rtf" in facts:
        parts.append(f"rtf {facts['rtf']:.3f}")
    return "; ".join(parts)


def as_text(facts: Mapping[str, Any]) -> str:
    """The heading and a line for each stream."""
    lines = [printable(heading(facts))]
    streams = facts["streams"]
    if streams:
        width = max(20, *(len(one["stream"]) + 2 for one in streams))
        lines.append(f"{'stream':{width}}{'audio':>10}{'behind':>10}{'delay':>9}  source")
        lines += [
            f"{printable(one['stream']):{width}}{clock(one['audio_s']):>10}{one['lag_ms']:7d} ms{one['delay_ms']:6d} ms"
            f"  {printable(one['source'])}"
            for one in streams
        ]
    lines += [
        f"{printable(one['folder'])}: {one['waiting']} wait, {one['in_work']} in work, {one['done']} done, {one['failed']} failed"
        for one in facts.get("folders", ())
    ]
    return "\n".join(lines)


def print_status(facts: Mapping[str, Any]) -> None:
    """Write it to stderr."""
    print(as_text(facts), file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """`0:07`, `12:34` or `1:02:03`."""
    whole = int(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes:0>5}"


def mebibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"
