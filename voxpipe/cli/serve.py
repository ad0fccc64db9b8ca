"""`voxpipe serve` and `voxpipe status`: the resident model, and a look at it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxpipe.cli.options import load_model
from voxpipe.output.events import JsonLines
from voxpipe.service.attach import ask_status
from voxpipe.service.protocol import default_socket

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber
    from voxpipe.service.settings import Settings


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Settings, TOML. [default: a socket, model auto]")
def serve(config: Path | None) -> int:
    """Keep a model loaded and serve every pipe of this machine: a Unix socket, and named pipes.

    `… | voxpipe` finds the socket by itself. SIGHUP reads the settings again, SIGUSR1 writes out pending words.
    """
    from voxpipe.service.daemon import Daemon
    from voxpipe.service.settings import Settings, read_settings

    daemon = Daemon(Settings if config is None else lambda: read_settings(config), JsonLines(sys.stdout.buffer))
    return daemon.run(_load)


def _load(settings: "Settings") -> "Transcriber":
    return load_model(settings.model, settings.dtype)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def status(as_json: bool) -> None:
    """Show what a running `voxpipe serve` is doing."""
    facts = ask_status(default_socket())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    streams = facts.pop("streams")
    click.echo(
        f"voxpipe {facts['version']}, process {facts['pid']}, up {facts['uptime_s']:.0f} s; "
        f"model {facts['model']}, delay {facts['delay_ms']} ms, {facts['backend']}; "
        f"{facts['mlx_bytes'] / 2**20:.0f} MiB; {len(streams)} of {facts['max_streams']} streams"
    )
    if streams:
        click.echo(f"{'stream':24}{'audio':>10}{'behind':>10}{'delay':>9}  source")
    for one in streams:
        click.echo(
            f"{one['stream']:24}{one['audio_s']:8.1f} s{one['lag_ms']:7d} ms{one['delay_ms']:6d} ms  {one['source']}"
        )
