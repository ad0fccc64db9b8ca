"""`voxpipe pull` and `voxpipe convert`: models onto the disk and into another precision."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit of the repository.")
def pull(name: str, revision: str | None) -> None:
    """Fetch the model NAME (4bit, fp16, bf16, or OWNER/NAME on the hub) and print its directory."""
    from voxpipe.checkpoints import hub

    if name == "tiny":
        click.echo(hub.TINY)
        return
    click.echo(hub.pull(hub.REPOSITORIES.get(name, name), revision=revision))


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--bits", type=click.Choice(["4", "6", "8"]), help="Quantize the weights to so many bits.")
@click.option(
    "--group-size", type=click.Choice(["32", "64", "128"]), default="64", show_default=True, help="Weights per scale."
)
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "f32"]), help="Of what is not quantized. [default: as in SRC]"
)
def convert(source: str, target: Path, bits: str | None, group_size: str, dtype: str | None) -> None:
    """Write the model SRC (a name or a directory, in any layout) to the new directory DST in the mlx-audio layout."""
    from voxpipe.checkpoints.convert import convert as convert_checkpoint
    from voxpipe.checkpoints.hub import resolve
    from voxpipe.checkpoints.load import DTYPES

    convert_checkpoint(
        resolve(source).directory,
        target,
        bits=None if bits is None else int(bits),
        group_size=int(group_size),
        dtype=None if dtype is None else DTYPES[dtype],
    )
    click.echo(target)
