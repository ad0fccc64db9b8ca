"""The README says what is so: its snippets run, its options, events and statuses exist, and none is left out."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from voxpipe import StreamingAudioSource, errors
from voxpipe.audio.files import read_blocks
from voxpipe.cli.main import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BEACH = ROOT / "tests/data/speech/beach.wav"
BEACH_TEXT = "but i was still on the same beach and i saw them distinctly now as soon as i stopped"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M)


def test_begins_with_two_commands() -> None:
    main_job, tests = blocks("sh")[:2]
    for block in (main_job, tests):
        assert block.count("\n") == 1
        assert "python3 -m venv" in block
    assert main_job.rstrip().endswith("| .venv/bin/voxpipe")
    assert tests.rstrip().endswith("-m pytest -n 2")


def test_main_job_prints_what_is_shown() -> None:
    clip = ROOT / shlex.split(blocks("sh")[0].split("&&")[-1].split("|")[0])[1]
    command = [sys.executable, "-m", "voxpipe", "--model", "tiny"]
    done = subprocess.run(command, input=clip.read_bytes(), stdout=subprocess.PIPE, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    shown = [json.loads(line) for line in blocks("json")[0].splitlines()]
    assert [without_times(event) for event in events[: len(shown)]] == [without_times(event) for event in shown]
    text = "".join(event["text"] for event in events if event["type"] == "delta")
    assert text.strip() == BEACH_TEXT
    assert {event["type"] for event in events} <= set(event_table())


def without_times(event: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in event.items() if key not in ("start", "end")}


def event_table() -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", events_section().split("| warning |")[0], re.M))


def events_section() -> str:
    return README.split("## Events")[1].split("\n## ")[0]


def test_documents_every_warning() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "voxpipe").rglob("*.py"))
    codes = set(re.findall(r"""(?:Complaint|\.warning)\(\s*"([a-z-]+)\"""", source))
    assert {"lag", "gap", "silent-input", "odd-bytes", "ignored-bytes", "stall-recovered"} == codes
    assert all(f"`{code}`" in events_section() for code in codes)


def test_documents_every_event_and_status() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "voxpipe/output").glob("*.py"))
    written = set(re.findall(r'write\(\s*"(\w+)"', source))
    assert written == set(event_table())
    statuses = {value for name, value in vars(errors).items() if name.startswith("EX_")}
    documented = {int(number) for row in re.findall(r"^\| (\d[\d, ]*) \|", README, re.M) for number in row.split(",")}
    assert statuses == documented


def test_documents_commands_and_options_that_exist() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            for words in map(shlex.split, re.split(r"\||&&|<", line)):
                if words[:1] == ["voxpipe"]:
                    check_command(words[1:])
    assert set(cli.commands) <= set(re.findall(r"voxpipe (\w+)", README))


def check_command(words: list[str]) -> None:
    context = click.Context(cli, info_name="voxpipe")
    name, command, rest = cli.resolve_command(context, cli_arguments(words))
    assert command is not None, words
    command.make_context(name, list(rest), parent=context, resilient_parsing=False).close()


def cli_arguments(words: list[str]) -> list[str]:
    return words if words and words[0] in cli.commands else ["listen", *words]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_python_snippets_run(snippet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def record_into(source: StreamingAudioSource) -> None:
        for samples in read_blocks(BEACH, block_s=0.5):
            source.append(samples)
        source.close()

    monkeypatch.chdir(ROOT)
    exec(snippet, {"record_into": record_into, "np": np})
    assert BEACH_TEXT in capsys.readouterr().out
