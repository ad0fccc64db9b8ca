"""Write voxpipe/man/: a page for `voxpipe` and one for each command, from what `--help` and the README's tables say, and
one for the daemon's settings.

python -m tests.services.make_man
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import click
from click_man.core import generate_man_page

from voxpipe.cli.main import EXAMPLES, cli
from voxpipe.service import settings

ROOT = Path(__file__).parents[2]
MAN = ROOT / "voxpipe" / "man"
NO_DATE = "-"  # click-man would take today's, and every page would change every day

Rows = Iterable[tuple[str, str]]

MORE_STATUSES = {
    "70": "a defect of voxpipe; what it printed tells where",
    "130, 143": "ended at once by SIGINT or SIGTERM",
}
ENVIRONMENT = (
    ("VOXPIPE_MODEL", "Stands in for `--model`; it is never fetched."),
    ("VOXPIPE_SOCKET", "The socket of the daemon, for it and for its clients."),
    ("VOXPIPE_EVENTS", "Stands in for `--events` of `voxpipe serve`."),
    ("VOXPIPE_LAUNCHD", "Set by the property lists for launchd: what only the user can mend ends with 0."),
    ("XDG_RUNTIME_DIR, XDG_CONFIG_HOME, XDG_STATE_HOME", "On Linux, where the files below lie instead."),
    ("HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN", "As Hugging Face's hub knows them."),
)
FILES = (
    ("~/.config/voxpipe/voxpipe.toml", "Settings of a user's service; see `voxpipe.toml`(5)."),
    ("/etc/voxpipe/voxpipe.toml", "Those of the system's; on macOS `/usr/local/etc/voxpipe/voxpipe.toml`."),
    (
        "$XDG_RUNTIME_DIR/voxpipe/voxpipe.sock",
        "The daemon's socket; on macOS `~/Library/Caches/voxpipe/voxpipe.sock`; of the system's service "
        "`/run/voxpipe/voxpipe.sock`, on macOS `/usr/local/var/run/voxpipe/voxpipe.sock`.",
    ),
    (
        "~/.local/state/voxpipe/events.jsonl",
        "The events of a service's pipes; on macOS `~/Library/Logs/voxpipe/events.jsonl`; of the system's service "
        "`/var/lib/voxpipe/events.jsonl`, on macOS `/usr/local/var/log/voxpipe/events.jsonl`.",
    ),
    (
        "~/.local/state/voxpipe/captions-token",
        "The secret in the address of `voxpipe captions`; on macOS in `~/Library/Application Support/voxpipe`.",
    ),
    ("~/.cache/huggingface/hub", "Models that were pulled."),
    (".voxpipe", "Beside the outputs of `voxpipe watch`: its records of them."),
)


def pages() -> dict[str, str]:
    """All pages by their names, such as `voxpipe-serve.1`."""
    for command in _tree(cli):
        command.short_help = _first_sentence(command.help or "")  # or click-man would cut it at 45 characters
    written = {f"{name}.1": page for name, page in _commands(cli, "voxpipe", None)}
    readme = (ROOT / "README.md").read_text("utf-8")
    statuses = {**MORE_STATUSES, **dict(_table(readme, "exit status"))}
    written["voxpipe.1"] += "".join(
        [
            _section("EXIT STATUS", _list(sorted(statuses.items(), key=_first_number))),
            _section("SIGNALS", _list(_table(readme, "signal"))),
            _section("ENVIRONMENT", _list(ENVIRONMENT)),
            _section("FILES", _list(FILES)),
            _section("EXAMPLES", _verbatim(inspect.cleandoc(EXAMPLES.partition("Examples:\n")[2]))),
            _section("SEE ALSO", _line("`voxpipe.toml`(5)")),
        ]
    )
    written["voxpipe.toml.5"] = _settings_page()
    return written


def _tree(command: click.Command) -> Iterator[click.Command]:
    yield command
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _tree(child)


def _commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name, parent=parent)
    page = generate_man_page(context, version=version("voxpipe"), date=NO_DATE)
    yield context.command_path.replace(" ", "-"), page.replace(f'"1" "{NO_DATE}"', '"1" ""', 1)
    for word, child in command.commands.items() if isinstance(command, click.Group) else ():
        yield from _commands(child, word, context)


def _settings_page() -> str:
    example = (settings.__doc__ or "").partition("\n\n")[2].strip()
    about = (
        "`voxpipe serve --config FILE` reads its settings from a TOML file, and again on SIGHUP. It is checked whole before "
        "anything is opened; a mistake is named with its line. All keys but `path` may be absent."
    )
    return "".join(
        [
            f'.TH "VOXPIPE.TOML" "5" "" "{version("voxpipe")}" "voxpipe Manual"\n',
            _section("NAME", "voxpipe.toml \\- settings of voxpipe serve\n"),
            _section("DESCRIPTION", _line(about)),
            _section("KEYS", _verbatim(example)),
            _section("SEE ALSO", _line("`voxpipe`(1), `voxpipe-serve`(1), `voxpipe-watch`(1)")),
        ]
    )


def _first_sentence(text: str) -> str:
    return " ".join(re.split(r"\.\s|\.$|\n\n", inspect.cleandoc(text), maxsplit=1)[0].split())


def _table(readme: str, heading: str) -> list[tuple[str, str]]:
    """The rows of the README's table with this first heading."""
    (rows,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", readme, re.M)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
    return [(key, meaning) for key, meaning in cells]


def _first_number(row: tuple[str, str]) -> int:
    return int(row[0].partition(",")[0])


def _section(name: str, text: str) -> str:
    return f".SH {name}\n{text}"


def _list(rows: Rows) -> str:
    return "".join(f".TP\n\\fB{_escape(key)}\\fP\n{_line(meaning)}" for key, meaning in rows)


def _line(text: str) -> str:
    """A line of text, in which `words` are bold."""
    return re.sub(r"`(.*?)`", r"\\fB\1\\fP", _escape(text)) + "\n"


def _verbatim(text: str) -> str:
    return f".nf\n{_escape(text)}\n.fi\n"


def _escape(text: str) -> str:
    for plain, roff in (("\\", "\\e"), ("-", "\\-"), ("'", "\\(aq"), ("~", "\\(ti"), ("^", "\\(ha")):
        text = text.replace(plain, roff)
    return re.sub(r"^\.", r"\\&.", text, flags=re.M)


if __name__ == "__main__":
    for page in MAN.glob("man?/*"):
        page.unlink()
    for name, text in pages().items():
        path = MAN / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
