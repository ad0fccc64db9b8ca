"""`voxpipe pull`, `list`, `info`, `remove` and `convert`: models onto the disk, what is there, and into another precision."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxpipe.errors import EX_CONFIG, EX_OK, UsageError

if TYPE_CHECKING:
    from voxpipe.checkpoints.store import Stored


@click.command(short_help="Fetch a model and print its directory.")
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit of the repository; the same as NAME@REVISION.")
def pull(name: str, revision: str | None) -> None:
    """Fetch the model NAME (4bit, fp16, bf16, or OWNER/NAME on the hub) and print its directory.

    What was fetched before is not fetched again, and a download that broke off goes on where it did.
    """
    from voxpipe.checkpoints import hub

    if name == "tiny":
        click.echo(hub.TINY)
        return
    name, in_name = hub.split_revision(name)
    if revision is not None and in_name is not None:
        raise UsageError(f"the revision is named twice: @{in_name} and --revision {revision}")
    revision = revision or in_name
    directory = hub.pull(hub.REPOSITORIES.get(name, name), revision=revision)
    if revision is not None:
        click.echo(f"voxpipe: use it with: --model {name}@{revision}", err=True)
    click.echo(directory)


@click.command("list", short_help="Show the models on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_models(as_json: bool) -> None:
    """Show the models on this machine: the embedded one, and those in the local cache."""
    from voxpipe.checkpoints.store import stored_models

    models = stored_models()
    if as_json:
        click.echo(json.dumps([_as_json(model) for model in models], indent=2))
        return
    rows = [("model", "revision", "size", "layout", "bits", ""), *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, revision, size, layout, bits, problem in rows:
        cells = (f"{name:{widths[0]}}", f"{revision:{widths[1]}}", f"{size:>{widths[2]}}", f"{layout:{widths[3]}}")
        click.echo("  ".join((*cells, f"{bits:>{widths[4]}}", problem)).rstrip())


def _row(model: "Stored") -> tuple[str, ...]:
    commit = (model.commit or "")[:8]
    revision = "embedded" if model.commit is None else " ".join((*model.revisions, commit))
    facts = model.facts
    bits = "" if facts is None else str(facts.bits or facts.dtype)
    return model.name, revision, _size(model.file_bytes), facts.layout if facts else "", bits, model.problem or ""


def _as_json(model: "Stored") -> dict[str, object]:
    row = {
        "name": model.name,
        "repository": model.repository,
        "revisions": list(model.revisions),
        "commit": model.commit,
        "directory": str(model.directory),
        "bytes": model.file_bytes,
        "layout": model.facts and model.facts.layout,
        "bits": model.facts and model.facts.bits,
        "dtype": model.facts and model.facts.dtype,
        "problem": model.problem,
    }
    return {key: value for key, value in row.items() if value is not None}


@click.command(short_help="Say what a model is, whether it is whole, what it takes.")
@click.argument("model", default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: str, as_json: bool) -> int:
    """Look into MODEL (as for --model, but never fetched): what it is, whether it is whole, what it will take.

    Every tensor is put into its place without being read; then all files are read once for their hashes.
    """
    from voxpipe.checkpoints.hub import resolve
    from voxpipe.checkpoints.probe import check_hashes, probe

    choice = resolve(model, fetch=False)
    facts = probe(choice.directory)
    n_hashes, damaged = check_hashes(choice.directory)
    if as_json:
        checked = {"hashes": n_hashes, "damaged": [path.name for path in damaged]}
        click.echo(json.dumps({"name": choice.name, **facts.as_json(), **checked}, indent=2))
        return EX_CONFIG if damaged else EX_OK
    bits = f"{facts.bits}" if facts.bits == facts.most_bits else f"{facts.bits} to {facts.most_bits}"
    quantized = f"{bits} bits in groups of {facts.group_size}; the rest " if facts.bits else ""
    hashes = f"those of {n_hashes} files agree" if n_hashes else "none was published with it"
    if damaged:
        hashes = f"{', '.join(path.name for path in damaged)} damaged; mend it with: voxpipe pull {choice.name}"
    lines = {
        "model": choice.name,
        "directory": str(choice.directory),
        "layout": facts.layout,
        "weights": f"{quantized}{facts.dtype}",
        "parameters": f"{facts.n_parameters / 1e6:,.1f} million",
        "encoder": facts.encoder,
        "decoder": facts.decoder,
        "vocabulary": f"{facts.vocabulary:,}",
        "delay": f"{facts.delay_ms} ms unless asked otherwise",
        "on the disk": _size(facts.file_bytes),
        "in memory": f"{_size(facts.memory_bytes)}, and {_size(facts.stream_bytes)} for each long stream",
        "hashes": hashes,
    }
    for key, value in lines.items():
        click.echo(f"{key:13}{value}")
    return EX_CONFIG if damaged else EX_OK


@click.command(short_help="Delete a model from the local cache.")
@click.argument("model", metavar="NAME|REPO")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(model: str, yes: bool) -> None:
    """Delete a model from the local cache: all revisions of it, or REPO@REVISION alone."""
    from voxpipe.checkpoints import store

    found = store.find_stored(model)
    n_bytes = sum(one.file_bytes for one in found)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(f"this would delete {_size(n_bytes)} of {model}; say so with --yes")
        for one in found:
            click.echo(f"{one.name}, {' '.join((*one.revisions, (one.commit or '')[:8]))}, {one.directory}", err=True)
        click.confirm(f"Delete {_size(n_bytes)}?", abort=True, err=True)
    store.remove(found)
    click.echo(f"voxpipe: {_size(n_bytes)} freed", err=True)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


@click.command(short_help="Write a model to a directory in the mlx-audio layout.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--bits", type=click.Choice(["4", "6", "8"]), help="Quantize the weights to so many bits.")
@click.option("--mixed", is_flag=True, help="8 bits for the embedding, the adapter and the decoder's attention.")
@click.option(
    "--group-size", type=click.Choice(["32", "64", "128"]), default="64", show_default=True, help="Weights per scale."
)
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "f32"]), help="Of what is not quantized. [default: as in SRC]"
)
def convert(source: str, target: Path, bits: str | None, mixed: bool, group_size: str, dtype: str | None) -> None:
    """Write the model SRC (a name or a directory, in any layout) to the new directory DST in the mlx-audio layout."""
    from voxpipe.checkpoints.convert import convert as convert_checkpoint
    from voxpipe.checkpoints.hub import resolve
    from voxpipe.checkpoints.load import DTYPES

    convert_checkpoint(
        resolve(source).directory,
        target,
        bits=None if bits is None else int(bits),
        group_size=int(group_size),
        mixed=mixed,
        dtype=None if dtype is None else DTYPES[dtype],
    )
    click.echo(target)
