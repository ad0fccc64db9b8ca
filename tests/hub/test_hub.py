"""Choosing and fetching models: the real huggingface_hub client against a hub on this machine."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.cli.process import COMMAND, PATIENCE_S, Result, environment, parse, run, wait_until
from tests.hub.loopback import COMMIT, Hub, serve
from tests.random_checkpoints import LAYOUTS, Sizes, write_checkpoint
from tests.service.processes import small_disk
from voxpipe.checkpoints import hub as hub_module
from voxpipe.checkpoints.hub import FILES, REPOSITORIES, TINY, Choice, find_cached, resolve
from voxpipe.cli import main
from voxpipe.errors import EX_CONFIG, EX_OK, EX_UNAVAILABLE, EX_USAGE, ModelError

Files = dict[str, bytes]
PLAIN = "owner/plain"
BOTH = "owner/both"
SHARDED = "owner/sharded"
FOUR_BIT = REPOSITORIES["4bit"]
NEEDED = ("config.json", "model.safetensors", "tekken.json")


def read(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def tensors(folder: Path, *names: str) -> bytes:
    """A safetensors file with small tensors of these names."""
    mx.save_safetensors(str(folder / "some.safetensors"), {name: mx.zeros(3) for name in names})
    return (folder / "some.safetensors").read_bytes()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    folder = tmp_path_factory.mktemp("repositories")
    plain = read(write_checkpoint(folder / "plain"))
    others = {"README.md": b"# A model\n", ".gitattributes": b"", "pytorch_model.bin": b"\x80\x04pickle", "run.py": b""}
    mistral = read(write_checkpoint(folder / "mistral", "mistral"))
    hugging_face = read(write_checkpoint(folder / "hugging-face", "hugging-face"))
    return {
        PLAIN: {**plain, **others},
        BOTH: {**hugging_face, **mistral, **others},
        SHARDED: {**read(write_checkpoint(folder / "sharded", n_shards=3)), **others},
        FOUR_BIT: {**plain, **others},
        "owner/other": {"config.json": b"{}", "model.safetensors": b""},
        "owner/whisper": {**plain, "model.safetensors": tensors(folder, "model.encoder.conv1.weight")},
        "owner/small": {**plain, "model.safetensors": tensors(folder, "decoder.norm.weight")},
        "owner/page": {**plain, "model.safetensors": b"<!DOCTYPE html><html></html>"},
        "owner/config": {**plain, "config.json": b'{"model_type": "whisper"}'},
    }


@pytest.fixture
def hub(repositories: dict[str, Files]) -> Iterator[Hub]:
    with serve(repositories) as served:
        yield served


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def online(hub: Hub, home: Path, **changes: str | None) -> dict[str, str]:
    """The environment of a process whose only network is the hub."""
    variables: dict[str, Any] = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": None}
    variables.update(HF_HUB_CACHE=None, HF_TOKEN=None, VOXPIPE_MODEL=None, HF_HUB_DISABLE_TELEMETRY="1", **changes)
    return environment(**variables)


def snapshot(home: Path, repository: str) -> Path:
    return home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT


def put(home: Path, repository: str, files: Files) -> Path:
    """Lay a snapshot into the cache as a download does."""
    directory = snapshot(home, repository)
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    refs = directory.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return directory


@pytest.fixture
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this process, which reads its place when huggingface_hub is imported."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    return home


def refused(result: Result) -> tuple[str, int]:
    """The one line and the status of a failure."""
    assert result.stdout == b""
    assert result.stderr.startswith("voxpipe: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("voxpipe: ").removesuffix("\n"), result.status


# --- pull -------------------------------------------------------------------------------------------------------------


def test_pull_fetches_once_and_the_model_is_found_without_a_network(hub: Hub, home: Path, cache: Path) -> None:
    first = run("pull", PLAIN, env=online(hub, home))
    assert (first.status, first.stdout.decode()) == (EX_OK, f"{snapshot(home, PLAIN)}\n")
    assert hub.fetched() == {"config.json", "model.safetensors", "tekken.json"}  # no pickle, no script
    assert "Fetching" in first.stderr  # progress, which the lines on stdout above did not show
    hub.asked.clear()
    again = run("pull", PLAIN, env=online(hub, home))
    assert (again.status, again.stdout) == (EX_OK, first.stdout)
    assert hub.fetched() == set()
    assert find_cached(PLAIN) == snapshot(home, PLAIN)
    assert resolve(PLAIN, fetch=False) == Choice(PLAIN, snapshot(home, PLAIN))
    for nowhere in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "VOXPIPE_MODEL": PLAIN}):
        model = [] if "VOXPIPE_MODEL" in nowhere else ["--model", PLAIN]
        heard = run(*model, stdin=bytes(3_200), env={**online(hub, home), **nowhere})
        assert (heard.status, heard.stderr) == (EX_OK, "")
        assert heard.events[0]["model"] == PLAIN


def test_an_explicit_repository_is_fetched_on_the_way(hub: Hub, home: Path) -> None:
    result = run("--model", SHARDED, stdin=bytes(3_200), env=online(hub, home))
    assert result.status == EX_OK
    assert parse(result.stdout)[0]["model"] == SHARDED
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == {
        f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)
    }


def test_of_two_layouts_one_is_fetched(hub: Hub, home: Path, cache: Path) -> None:
    assert run("pull", BOTH, env=online(hub, home)).status == EX_OK
    assert hub.fetched() == {"consolidated.safetensors", "params.json", "tekken.json"}
    assert find_cached(BOTH) == snapshot(home, BOTH)


def test_a_broken_download_is_not_a_model_and_goes_on_where_it_broke(hub: Hub, home: Path, cache: Path) -> None:
    n_bytes = len(hub.repositories[PLAIN]["model.safetensors"])
    hub.break_after["model.safetensors"] = n_bytes // 2
    result = run("pull", PLAIN, env=online(hub, home))  # the client itself tries again
    assert result.status == EX_OK
    assert (snapshot(home, PLAIN) / "model.safetensors").read_bytes() == hub.repositories[PLAIN]["model.safetensors"]
    assert sum(name == "model.safetensors" for method, name, _ in hub.asked if method == "GET") == 2
    assert find_cached(PLAIN) is not None


def test_a_revision(hub: Hub, home: Path, cache: Path) -> None:
    result = run("pull", PLAIN, "--revision", "v1", env=online(hub, home))
    assert result.status == EX_OK
    assert result.stderr.endswith(f"voxpipe: use it with: --model {PLAIN}@v1\n")
    for name in (f"{PLAIN}@v1", f"{PLAIN}@{COMMIT}"):
        assert resolve(name, fetch=False) == Choice(name, snapshot(home, PLAIN))
    with pytest.raises(ModelError, match=f"^the model '{PLAIN}' is not in the local cache"):  # main was not asked for
        resolve(PLAIN, fetch=False)
    assert main.run(["pull", f"{PLAIN}@v1", "--revision", "v1"]) == EX_USAGE
    line, status = refused(run("pull", PLAIN, "--revision", "v9", env=online(hub, home)))
    assert (line, status) == (f"{PLAIN} has no revision 'v9'", EX_CONFIG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/other", "owner/other has no tekken.json: it is not a Voxtral Realtime model"),
        (
            "owner/whisper",
            "owner/whisper has the tensor model.encoder.conv1.weight unknown to Voxtral Realtime in the ",
        ),
        (
            "owner/small",
            re.compile(r"owner/small lacks \d+ tensors decoder.layers.0.ada_rms_norm_t_cond.*; fetch the "),
        ),
        ("owner/page", "owner/page has a model.safetensors that is no safetensors file"),
        ("owner/config", "this is not the configuration of a Voxtral Realtime model: it has none of the keys "),
        ("owner/nonesuch", "the hub has no repository 'owner/nonesuch' that you may read"),
        ("bf16", f"the hub has no repository '{REPOSITORIES['bf16']}' that you may read"),
        ("a/b/c", None),
        ("no such", None),
    ],
)
def test_what_is_no_model(hub: Hub, home: Path, name: str, message: str | None) -> None:
    line, status = refused(run("pull", name, env=online(hub, home)))
    assert status == EX_CONFIG
    if isinstance(message, re.Pattern):
        assert message.match(line)
    else:
        assert line.startswith(message or f"{name!r} is not the name of a repository: ")
    assert hub.fetched() <= {"config.json"}  # nothing that takes long


def test_a_pull_that_was_killed_goes_on_where_it_was(hub: Hub, home: Path, tmp_path: Path) -> None:
    big = Sizes(decoder_hidden=20_000, decoder_layers=2)  # 27 MB: the client writes ten at a time
    hub.repositories["owner/big"] = read(write_checkpoint(tmp_path / "big", sizes=big))
    whole = hub.repositories["owner/big"]["model.safetensors"]
    assert len(whole) > 25_000_000
    # 1. the hub falls silent in the middle, and somebody loses patience
    hub.stall_after["model.safetensors"] = 21_000_000
    with subprocess.Popen([*COMMAND, "pull", "owner/big"], stderr=subprocess.DEVNULL, env=online(hub, home)) as process:
        assert hub.stalled.wait(PATIENCE_S)
        blobs = home / "hub/models--owner--big/blobs"
        wait_until(lambda: sum(path.stat().st_size for path in blobs.glob("*partial")) >= 20_000_000)
        process.kill()
    assert find_in(home, "owner/big") is None
    listed = json.loads(run("list", "--json", env=online(hub, home)).stdout)
    assert listed[1]["problem"] == "incomplete; go on with: voxpipe pull owner/big"
    # 2. the next one asks for the rest alone
    hub.asked.clear()
    result = run("pull", "owner/big", env=online(hub, home))
    assert result.status == EX_OK, result.stderr
    (first,) = [first for method, name, first in hub.asked if (method, name) == ("GET", "model.safetensors")]
    assert first == 20_971_520  # two pieces of ten
    assert "100%" in result.stderr
    assert (snapshot(home, "owner/big") / "model.safetensors").read_bytes() == whole


def find_in(home: Path, repository: str) -> Path | None:
    path = snapshot(home, repository) / "model.safetensors"
    return path if path.exists() else None


def test_what_came_damaged_is_thrown_away(hub: Hub, home: Path) -> None:
    hub.damaged.add("model.safetensors")
    line, status = refused_after_progress(run("pull", PLAIN, env=online(hub, home)))
    assert (line, status) == (
        f"model.safetensors of {PLAIN} came damaged and was thrown away; try again",
        EX_UNAVAILABLE,
    )
    assert find_in(home, PLAIN) is None
    hub.damaged.clear()
    assert run("pull", PLAIN, env=online(hub, home)).status == EX_OK


def refused_after_progress(result: Result) -> tuple[str, int]:
    last = re.split(r"[\r\n]+", result.stderr.strip())[-1]
    return last.rpartition("voxpipe: ")[2], result.status


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_a_disk_without_room(hub: Hub, home: Path, tells_sizes: bool, tmp_path: Path) -> None:
    hub.tells_sizes = tells_sizes
    with small_disk(home, 64) as disk:
        line, status = refused_after_progress(run("pull", PLAIN, env=online(hub, home)))
        assert status == EX_UNAVAILABLE
        if tells_sizes:  # it is known beforehand
            assert re.fullmatch(
                rf"cannot store {PLAIN}: it takes 0\.00 GB more, and {disk} has 0\.00; make room, or set HF_HOME .*",
                line,
            )
            assert hub.asked == []
        else:
            assert line == f"cannot store {PLAIN}: No space left on device"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run("pull", PLAIN, env=online(hub, home)).status == EX_OK


# --- list, info, remove -----------------------------------------------------------------------------------------------


@pytest.fixture
def here(cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process, which has its libraries loaded already."""
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run_here(*arguments: str) -> Result:
        capfd.readouterr()
        status = main.run(arguments)
        stdout, stderr = capfd.readouterr()
        return Result(status, stdout.encode(), stderr)

    return run_here


def test_what_is_here_is_listed_and_removed(hub: Hub, home: Path, here: Callable[..., Result]) -> None:
    env = online(hub, home)
    # 1. at first there is the embedded model alone
    (tiny,) = json.loads(here("list", "--json").stdout)
    assert (tiny["name"], tiny["layout"], tiny["bits"]) == ("tiny", "mlx-audio", 6)
    # 2. two are pulled, one of them at a tag, beside somebody else's model
    assert run("pull", FOUR_BIT, env=env).status == EX_OK
    assert run("pull", f"{BOTH}@v1", env=env).status == EX_OK
    (home / "hub/models--other--bert/snapshots/1").mkdir(parents=True)
    _, four_bit, both = json.loads(here("list", "--json").stdout)
    assert (four_bit["name"], four_bit["repository"], four_bit["revisions"]) == ("4bit", FOUR_BIT, ["main"])
    assert (both["name"], both["commit"], both["layout"]) == (f"{BOTH}@v1", COMMIT, "Mistral")
    assert four_bit["bytes"] == sum(len(hub.repositories[FOUR_BIT][name]) for name in NEEDED)
    table = here("list").stdout.decode().splitlines()
    assert [line.split()[0] for line in table] == ["model", "tiny", "4bit", f"{BOTH}@v1"]
    # 3. and what is listed can be used by that name
    assert run("--model", f"{BOTH}@v1", stdin=bytes(3_200), env={**env, "HF_HUB_OFFLINE": "1"}).status == EX_OK
    # 4. nothing is removed without a word, nor what is not ours
    line, status = refused(here("remove", "4bit"))
    assert status == EX_USAGE
    assert line.endswith("; say so with --yes")
    for name, code in (("tiny", EX_USAGE), ("other/bert", EX_CONFIG), (f"{BOTH}@v2", EX_CONFIG)):
        assert refused(here("remove", name, "--yes"))[1] == code
    # 5. then it is gone, and nothing else
    for name, left in (("4bit", ["tiny", f"{BOTH}@v1"]), (f"{BOTH}@v1", ["tiny"])):
        assert here("remove", name, "--yes").status == EX_OK
        assert [one["name"] for one in json.loads(here("list", "--json").stdout)] == left
    assert sorted(path.name for path in (home / "hub").glob("models--*")) == ["models--other--bert"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_a_person_is_asked(hub: Hub, home: Path) -> None:
    put(home, PLAIN, {name: data for name, data in hub.repositories[PLAIN].items() if name in NEEDED})
    for answer, is_there in (("n", True), ("y", False)):
        ours, theirs = os.openpty()
        try:
            process = subprocess.Popen(
                [*COMMAND, "remove", PLAIN], stdin=theirs, stderr=subprocess.PIPE, env=online(hub, home)
            )
            os.write(ours, answer.encode() + b"\n")
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            os.close(ours)
            os.close(theirs)
        assert b"Delete " in stderr
        assert snapshot(home, PLAIN).exists() == is_there
        assert (process.returncode == EX_OK) != is_there


def test_info_sees_what_is_in_the_files_and_what_is_wrong_with_them(
    hub: Hub, home: Path, here: Callable[..., Result]
) -> None:
    assert run("pull", PLAIN, env=online(hub, home)).status == EX_OK
    facts = json.loads(here("info", PLAIN, "--json").stdout)
    assert (facts["layout"], facts["delay_ms"], facts["hashes"], facts["damaged"]) == ("mlx-audio", 480, 3, [])
    assert "bits" not in facts  # it is not quantized
    stored = snapshot(home, PLAIN) / "model.safetensors"
    (listed,) = [one for one in json.loads(here("list", "--json").stdout) if one["name"] == PLAIN]
    assert facts["file_bytes"] == listed["bytes"] > stored.stat().st_size
    n_values = sum(tensor.size for tensor in mx.load(str(stored)).values())
    assert facts["n_parameters"] == n_values
    # one bit flips on the disk
    data = bytearray(stored.read_bytes())
    data[-5] ^= 1
    stored.resolve().write_bytes(data)
    damaged = here("info", PLAIN)
    assert damaged.status == EX_CONFIG
    assert f"model.safetensors damaged; mend it with: voxpipe pull {PLAIN}" in damaged.stdout.decode()
    # and its end is lost
    stored.resolve().write_bytes(data[:-9])
    line, status = refused(here("info", PLAIN))
    assert status == EX_CONFIG
    assert f"{stored} is truncated or damaged" in line
    # which the command mends
    assert run("pull", PLAIN, env=online(hub, home)).status == EX_OK
    assert here("info", PLAIN).status == EX_OK


def test_info_of_the_embedded_model_and_of_none(tmp_path: Path, here: Callable[..., Result]) -> None:
    said = here("info", "tiny").stdout.decode()
    for line in (
        "6 to 8 bits in groups of 64; the rest float16",
        "18.3 million",
        "1,024",
        "480 ms unless asked otherwise",
        "15.8 MB",
        "12.2 MB for each long stream",
    ):
        assert line in said
    assert refused(here("info", str(tmp_path)))[1] == EX_CONFIG
    assert refused(here("info", "owner/none"))[1] == EX_CONFIG


def test_no_network(hub: Hub, home: Path) -> None:
    for endpoint in ("http://127.0.0.1:9", "http://nowhere.invalid"):
        for arguments in (["pull", PLAIN], ["--model", PLAIN]):
            line, status = refused(run(*arguments, env=online(hub, home, HF_ENDPOINT=endpoint)))
            assert status == EX_UNAVAILABLE
            assert line.startswith(f"cannot fetch {PLAIN}: no connection to {endpoint} (")
            assert line.endswith("; what came so far is kept, try again when there is a network")
    line, status = refused(run("pull", PLAIN, env=online(hub, home, HF_HUB_OFFLINE="1")))
    assert (line, status) == (f"cannot fetch {PLAIN}: HF_HUB_OFFLINE is set", EX_UNAVAILABLE)


def test_a_hub_in_trouble(hub: Hub, home: Path) -> None:
    hub.status = 500
    line, status = refused(run("pull", PLAIN, env=online(hub, home)))
    assert status == EX_UNAVAILABLE
    assert line.startswith(f"cannot fetch {PLAIN}: ")
    assert "500" in line


def test_a_cache_that_cannot_be_written(hub: Hub, home: Path) -> None:
    home.write_text("a file where the cache should be")
    line, status = refused(run("pull", PLAIN, env=online(hub, home)))
    assert (line, status) == (f"cannot store {PLAIN}: Not a directory", EX_UNAVAILABLE)


def test_tiny_needs_no_fetching(hub: Hub, home: Path) -> None:
    result = run("pull", "tiny", env=online(hub, home))
    assert (result.status, result.stdout.decode()) == (EX_OK, f"{TINY}\n")
    assert hub.asked == []


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_auto_is_the_4_bit_model_once_it_was_pulled(hub: Hub, home: Path) -> None:
    before = run(stdin=bytes(3_200), env=online(hub, home))
    assert before.events[0]["model"] == "tiny"
    assert before.stderr == "voxpipe: using the small embedded English model; for the full one: voxpipe pull 4bit\n"
    assert hub.asked == []  # nothing downloads unless asked
    assert run("pull", "4bit", env=online(hub, home)).status == EX_OK
    after = run(stdin=bytes(3_200), env=online(hub, home, HF_HUB_OFFLINE="1"))
    assert (after.events[0]["model"], after.stderr) == ("4bit", "")


def test_auto_tells_what_it_took(cache: Path, caplog: pytest.LogCaptureFixture, repositories: dict[str, Files]) -> None:
    assert resolve("auto") == Choice("tiny", TINY)
    assert len(caplog.records) == 1
    caplog.clear()
    directory = put(cache, FOUR_BIT, repositories[FOUR_BIT])
    assert resolve("auto") == Choice("4bit", directory)
    assert caplog.records == []


@pytest.mark.parametrize("layout", [PLAIN, BOTH, SHARDED])
def test_a_partial_snapshot_is_not_a_model(cache: Path, repositories: dict[str, Files], layout: str) -> None:
    """Whichever file a broken download did not bring."""
    consolidated = layout == BOTH
    needed = {
        name: data
        for name, data in repositories[layout].items()
        if any(Path(name).match(pattern) for pattern in FILES)
        and not (consolidated and name in ("config.json", "model.safetensors"))
    }
    for missing in needed:
        repository = f"{layout}-without-{missing.replace('.', '-')}"
        put(cache, repository, {name: data for name, data in needed.items() if name != missing})
        expected_whole = missing.endswith(".index.json")  # all shards are there, which is enough
        assert (find_cached(repository) is not None) == expected_whole, missing
    for first in (name for name in needed if "-of-" in name):
        put(cache, f"{layout}-only-{first[6:11]}", {first: needed[first], "tekken.json": b"", "config.json": b""})
        assert find_cached(f"{layout}-only-{first[6:11]}") is None
    put(cache, layout, needed)
    assert find_cached(layout) is not None


def test_names(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("tiny") == Choice("tiny", TINY)
    directory = write_checkpoint(tmp_path / "some model", LAYOUTS[1])
    assert resolve(directory) == Choice("some model", directory)
    monkeypatch.chdir(tmp_path)
    assert resolve("some model").directory == Path("some model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/some model").directory == directory
    with pytest.raises(
        ModelError, match=r"^the model '4bit' is not in the local cache; fetch it with: voxpipe pull 4bit$"
    ):
        resolve("4bit", fetch=False)
    known = "name one of tiny, 4bit, fp16, bf16, a directory, or OWNER/NAME on the hub"
    for wrong in ("nonesuch", "./owner/name", "/no/such", "~/none", "a/b/c", "./x", ""):
        with pytest.raises(ModelError) as error:
            resolve(wrong)
        assert str(error.value) == f"there is no model {wrong!r}: {known}"
    with pytest.raises(ModelError, match=r"^'own er/name' is not the name of a repository: "):
        resolve("own er/name")


def test_an_explicit_name_is_fetched_and_only_then(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pull(repository: str, *, revision: str | None = None) -> Path:
        asked.append(repository)
        return Path("/fetched")

    monkeypatch.setattr(hub_module, "pull", pull)
    assert resolve("4bit") == Choice("4bit", Path("/fetched"))
    assert resolve("owner/name") == Choice("owner/name", Path("/fetched"))
    assert resolve("auto") == Choice("tiny", TINY)
    assert asked == [FOUR_BIT, "owner/name"]
