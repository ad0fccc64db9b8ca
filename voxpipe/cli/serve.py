"""`voxpipe serve` and `voxpipe status`: the resident model, and a look at it."""

import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxpipe.cli.options import load_model
from voxpipe.errors import EX_OK, ConfigError, ModelError, UsageError
from voxpipe.service.attach import ask_status
from voxpipe.service.place import default_socket
from voxpipe.service.status import as_text

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber
    from voxpipe.service.settings import Settings

SWITCH_S = 0.001  # the model's thread lets others in sooner than after Python's 5 ms: clients wait for those
MAX_DESCRIPTORS = 1024  # macOS begins with 256; no descriptor above can be waited for with `select`


@click.command(short_help="Keep a model loaded and serve every pipe of this machine.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings, TOML. [default: a socket, model auto]")
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    envvar="VOXPIPE_EVENTS",
    metavar="FILE",
    help="Append the events of pipes to FILE, which may be rotated at any time. [default: $VOXPIPE_EVENTS, else stdout]",
)
def serve(config: Path | None, events: Path | None) -> int:
    """Keep a model loaded and serve every pipe of this machine: a Unix socket, and named pipes.

    `… | voxpipe` finds the socket by itself. SIGHUP reads the settings again, SIGUSR1 writes out pending words,
    SIGUSR2 prints the status.
    """
    from voxpipe.service.daemon import Daemon
    from voxpipe.service.eventfile import EventFile
    from voxpipe.service.settings import Settings, read_settings

    _allow_descriptors()
    sys.setswitchinterval(SWITCH_S)
    try:
        daemon = Daemon(Settings if config is None else lambda: read_settings(config), EventFile(events))
        return daemon.run(_load)
    except (ConfigError, ModelError, UsageError) as exc:
        if "VOXPIPE_LAUNCHD" not in os.environ:
            raise
        click.echo(f"voxpipe: {exc}", err=True)
        return EX_OK  # launchd starts again whatever fails, and this would fail again


def _load(settings: "Settings") -> "Transcriber":
    return load_model(settings.model, settings.dtype, fetch=False)


def _allow_descriptors() -> None:
    """Let every client have one, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def status(as_json: bool) -> None:
    """Show what a running `voxpipe serve` is doing."""
    facts = ask_status(default_socket())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(as_text(facts))
