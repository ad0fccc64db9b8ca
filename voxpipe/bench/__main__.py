"""`python -m voxpipe.bench`: the measurements that are not about one user's machine."""

import sys

import click

from voxpipe.bench.checkpoint import random_model
from voxpipe.bench.clients import clients
from voxpipe.bench.long import long
from voxpipe.bench.peers import peers
from voxpipe.bench.wer import wer
from voxpipe.errors import VoxpipeError


@click.group()
def bench() -> None:
    """Measure voxpipe against others, against the truth, and over hours."""


bench.add_command(peers)
bench.add_command(long)
bench.add_command(clients)
bench.add_command(wer)
bench.add_command(random_model)

if __name__ == "__main__":
    try:
        bench(prog_name="python -m voxpipe.bench")
    except VoxpipeError as exc:
        click.echo(f"voxpipe: {exc}", err=True)
        sys.exit(exc.status)
