"""Options of the commands that can leave their files to a cluster."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from voxpipe.errors import UsageError

if TYPE_CHECKING:
    from voxpipe.cluster.client import Cluster

Command = Callable[..., Any]


def cluster_options(command: Command) -> Command:
    """Add --cluster and --send."""
    command = click.option(
        "--send", is_flag=True, help="Send every file to the cluster, also if a worker would see it."
    )(command)
    return click.option(
        "--cluster",
        metavar="ADDRESS|FILE",
        help="Leave the work to a Dask cluster: tcp://HOST:8786, or a scheduler file. Its workers read the files that they "
        "see under the same path; others are sent to them.",
    )(command)


def check_send(cluster: str | None, *, send: bool) -> None:
    """Raise UsageError if files are to be sent to no cluster."""
    if send and cluster is None:
        raise UsageError("--send says how files get to a cluster, and there is none; name it with --cluster")


def connect(address: str, model: str | None, dtype: str | None) -> "Cluster":
    """Connect to a cluster whose workers load what --model names, or $VOXPIPE_MODEL, or "auto" as it is here."""
    from voxpipe.cluster.client import Cluster
    from voxpipe.cluster.model import ModelChoice

    return Cluster(address, ModelChoice(_model_name(model), dtype))


def _model_name(model: str | None) -> str:
    """What workers are told: "auto" might be another model on each of them, and a relative path leads elsewhere there."""
    from voxpipe.checkpoints.hub import resolve

    name = model or os.environ.get("VOXPIPE_MODEL") or "auto"
    if name == "auto":
        return resolve(name).name
    return os.path.abspath(name) if os.path.isdir(name) else name
