"""`voxpipe doctor`: a table of findings, or the same as JSON."""

import json
import os

import click

from voxpipe.errors import EX_OK, EX_UNAVAILABLE


@click.command(short_help="Check what voxpipe needs here; say what mends each problem.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--model", metavar="NAME|DIR|REPO", help="Look at this model. [default: the one that would be used]")
def doctor(as_json: bool, model: str | None) -> int:
    """Check what voxpipe needs: backend, BLAS, memory, model files, folders, daemon, ffmpeg, and its speed here.

    For each problem it prints the command that mends it; the exit status is then 69.
    """
    from voxpipe.doctor import examine

    findings = []
    for finding in examine(model or os.environ.get("VOXPIPE_MODEL") or "auto"):
        findings.append(finding)
        if not as_json:
            click.echo(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:9}{finding.value}")
            if not finding.ok:
                click.echo(f"{'':14}mend: {finding.remedy}")
    ok = all(finding.ok for finding in findings)
    if as_json:
        checks = [{"name": one.name, "ok": one.ok, "value": one.value, "remedy": one.remedy} for one in findings]
        click.echo(json.dumps({"v": 1, "ok": ok, "checks": checks}, indent=2))
    return EX_OK if ok else EX_UNAVAILABLE
