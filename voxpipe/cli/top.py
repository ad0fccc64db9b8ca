"""`voxpipe top`: all streams of a running daemon, as they go on."""

import os
import select
import signal
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from voxpipe.errors import UnavailableError
from voxpipe.service.attach import ask_status
from voxpipe.service.place import default_socket
from voxpipe.service.status import clock, heading, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

RATE_WINDOW = 10  # readings over which a stream's rate is taken
BEHIND_MS = 400  # more than a turn or two explain: shown in another colour


@click.command(short_help="Watch the streams of a running `voxpipe serve`.")
@click.option("--once", is_flag=True, help="Print one table and end; so it is, too, where the output is no terminal.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=3600),
    default=0.5,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
def top(once: bool, interval_s: float) -> None:
    """Watch the streams of a running `voxpipe serve`: how long, how far behind, how fast, and what was said last.

    The rate is seconds of audio per second: 1.0 is live. q or Ctrl-C ends it.
    """
    from rich.console import Console
    from rich.live import Live

    path = default_socket()
    console = Console()
    rates = Rates()
    facts = ask_status(path)
    if once or not console.is_terminal:
        console.print(_screen(facts, rates, height=None))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is put in order first
    try:
        with _keys() as wait_for_key, Live(console=console, screen=True, auto_refresh=False) as live:
            note = ""
            while True:
                live.update(_screen(facts, rates, height=console.height, note=note), refresh=True)
                if wait_for_key(interval_s) in ("q", "Q"):
                    return
                try:
                    facts, note = ask_status(path), ""
                except UnavailableError:
                    facts, note = {**facts, "streams": []}, "the daemon does not answer; waiting for it"
    except KeyboardInterrupt:
        return


class Rates:
    """Seconds of audio per second of each stream, over the last readings."""

    def __init__(self) -> None:
        self._readings: dict[tuple[int, int], deque[tuple[float, float]]] = {}

    def update(self, facts: dict[str, Any]) -> dict[int, float]:
        """Take a status and return the rates of its streams by their `id`."""
        rates = {}
        readings = {}
        for one in facts["streams"]:
            key = (facts["pid"], one["id"])
            readings[key] = self._readings.get(key, deque([(0.0, 0.0)], maxlen=RATE_WINDOW))
            readings[key].append((one["wall_s"], one["audio_s"]))
            (first_wall_s, first_audio_s), (wall_s, audio_s) = readings[key][0], readings[key][-1]
            rates[one["id"]] = (audio_s - first_audio_s) / max(wall_s - first_wall_s, 0.01)
        self._readings = readings
        return rates


def _screen(facts: dict[str, Any], rates: Rates, *, height: int | None, note: str = "") -> "RenderableType":
    """The heading and a line for each stream, as many as `height` lines hold."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    table.add_column("stream", max_width=24, no_wrap=True)
    table.add_column("source", max_width=24, no_wrap=True)
    for title in ("audio", "behind", "rate"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("last words", ratio=1, no_wrap=True, min_width=16)
    streams = facts["streams"]
    now = rates.update(facts)
    n_shown = len(streams) if height is None else max(1, height - 6)
    for one in streams[:n_shown]:
        table.add_row(
            Text(printable(one["stream"])),
            Text(printable(one["source"])),
            clock(one["audio_s"]),
            Text(f"{one['lag_ms']} ms", style="yellow" if one["lag_ms"] > BEHIND_MS else ""),
            f"{now[one['id']]:.1f} x",
            _Tail(printable(one["words"])),
        )
    lines: list[RenderableType] = [Text(printable(heading(facts)), style="cyan"), Text(note, style="red"), table]
    if not streams:
        lines.append(Text("no streams; pipe audio into `voxpipe`", style="dim"))
    if len(streams) > n_shown:
        lines.append(Text(f"and {len(streams) - n_shown} more", style="dim"))
    return Group(*lines)


class _Tail:
    """The end of a line of text, as much of it as there is room for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.cells import cell_len
        from rich.text import Text

        text = self._text.strip()
        while cell_len(text) > options.max_width:
            text = text[1:]
        yield Text(text, no_wrap=True)


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for a key and returns it, or nothing."""
    if not sys.stdin or not sys.stdin.isatty():
        yield lambda timeout_s: select.select([], [], [], timeout_s) and ""
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def wait(timeout_s: float) -> str:
        readable, _, _ = select.select([descriptor], [], [], timeout_s)
        return (os.read(descriptor, 1).decode("ascii", "replace") or "q") if readable else ""  # or it was hung up

    tty.setcbreak(descriptor)
    try:
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
