"""`voxpipe service`: the daemon under systemd or launchd."""

import shlex
import sys
from pathlib import Path

import click

from voxpipe.errors import ConfigError
from voxpipe.service.install import Plan, Request, check_visible, make_plan, own_program, show_status
from voxpipe.service.install import install as install_plan
from voxpipe.service.install import uninstall as uninstall_plan

for_system = click.option("--system", is_flag=True, help="For the whole machine instead of you alone; needs root.")
dry = click.option("--dry-run", is_flag=True, help="Print the files and the commands, and do nothing.")


@click.group(short_help="Have systemd or launchd keep `voxpipe serve` running.")
def service() -> None:
    """Have `voxpipe serve` kept running by systemd (Linux) or launchd (macOS)."""


@service.command(short_help="Write the service's files and start it.")
@for_system
@dry
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The daemon's settings. [default: voxpipe.toml in ~/.config/voxpipe or (/usr/local)/etc/voxpipe, made if need be]",
)
@click.option("--gpu", is_flag=True, help="With --system on Linux: let it use an NVIDIA GPU.")
@click.option("--fifo", is_flag=True, help="On Linux: also a named pipe in.pcm beside the socket, which starts it.")
def install(system: bool, dry_run: bool, config: Path | None, gpu: bool, fifo: bool) -> None:
    """Write the service's files and start it, now and at every login or boot."""
    if config is not None:
        from voxpipe.service.settings import read_settings

        config = config.absolute()
        read_settings(config)  # rather now than in the log
    if (gpu and not (system and _is_linux())) or (fifo and not _is_linux()):
        raise click.UsageError("--gpu goes with --system, and both it and --fifo with systemd")
    request = Request(system=system, program=own_program(), config=config, gpu=gpu, fifo=fifo, home=Path.home())
    check_visible(request, sys.platform)
    plan = make_plan(request, sys.platform)
    if dry_run:
        _show(plan)
        return
    install_plan(plan)
    for file in plan.files:
        click.echo(file.path)


@service.command(short_help="Stop the service and remove its files.")
@for_system
@dry
def uninstall(system: bool, dry_run: bool) -> None:
    """Stop the service and remove the files that `install` wrote; settings that you changed stay."""
    plan = _whole_plan(system)
    if dry_run:
        for command in plan.disable:
            click.echo(f"$ {shlex.join(command)}")
        for file in plan.files:
            if file.path.exists():
                click.echo(f"- {file.path}")
        for command in plan.forget:
            click.echo(f"$ {shlex.join(command)}")
        return
    removed = uninstall_plan(plan)
    if not removed:
        raise ConfigError("the service is not installed; install it with: voxpipe service install")
    for path in removed:
        click.echo(path)


@service.command()
@for_system
def status(system: bool) -> int:
    """Show what the service manager knows; ends with its status."""
    return show_status(_whole_plan(system))


def _is_linux() -> bool:
    return sys.platform.startswith("linux")


def _whole_plan(system: bool) -> Plan:
    """With all that `install` may ever have written."""
    request = Request(
        system=system, program=("/usr/bin/voxpipe",), gpu=system and _is_linux(), fifo=_is_linux(), home=Path.home()
    )
    return make_plan(request, sys.platform)


def _show(plan: Plan) -> None:
    for command in plan.disable if plan.is_installed else ():
        click.echo(f"$ {shlex.join(command)}")
    for file in plan.files:
        state = " (is there already and stays as it is)" if file.is_settings and file.path.exists() else ""
        click.echo(f"+ {file.path}{state}")
        if not state:
            click.echo("".join(f"    {line}" for line in file.text.splitlines(keepends=True)), nl=False)
    for path, mode, owner in plan.folders:
        click.echo(f"+ {path}/ (mode {mode:04o}{f', of {owner}' if owner else ''})")
    for command in plan.enable:
        click.echo(f"$ {shlex.join(command)}")
