"""Write voxpipe/man/: a page for `voxpipe` and one for each command, from what `--help` says.

python -m tests.services.make_man
"""

from importlib.metadata import version
from pathlib import Path

from click_man.core import write_man_pages

from voxpipe.cli.main import cli

MAN = Path(__file__).parents[2] / "voxpipe" / "man"

if __name__ == "__main__":
    for page in MAN.glob("*.1"):
        page.unlink()
    write_man_pages("voxpipe", cli, version=version("voxpipe"), target_dir=str(MAN), date="")
