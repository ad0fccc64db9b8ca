"""Choosing and fetching models: the real huggingface_hub client against a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Result, environment, parse, run
from tests.hub.loopback import COMMIT, Hub, serve
from tests.random_checkpoints import LAYOUTS, write_checkpoint
from voxpipe.checkpoints import hub as hub_module
from voxpipe.checkpoints.hub import FILES, REPOSITORIES, TINY, Choice, find_cached, resolve
from voxpipe.errors import EX_CONFIG, EX_OK, EX_UNAVAILABLE, ModelError

Files = dict[str, bytes]
PLAIN = "owner/plain"
BOTH = "owner/both"
SHARDED = "owner/sharded"
FOUR_BIT = REPOSITORIES["4bit"]


def read(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


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


def test_a_revision(hub: Hub, home: Path) -> None:
    assert run("pull", PLAIN, "--revision", "v1", env=online(hub, home)).status == EX_OK
    line, status = refused(run("pull", PLAIN, "--revision", "v9", env=online(hub, home)))
    assert (line, status) == (f"{PLAIN} has no revision 'v9'", EX_CONFIG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/other", "owner/other has no tekken.json: it is not a Voxtral Realtime model"),
        ("owner/nonesuch", "the hub has no repository 'owner/nonesuch' that you may read"),
        ("bf16", f"the hub has no repository '{REPOSITORIES['bf16']}' that you may read"),
        ("a/b/c", None),
        ("no such", None),
    ],
)
def test_what_is_no_model(hub: Hub, home: Path, name: str, message: str | None) -> None:
    line, status = refused(run("pull", name, env=online(hub, home)))
    assert status == EX_CONFIG
    assert line == message or line.startswith(f"{name!r} is not the name of a repository: ")
    assert hub.fetched() == set()


def test_no_network(hub: Hub, home: Path) -> None:
    for arguments in (["pull", PLAIN], ["--model", PLAIN]):
        line, status = refused(run(*arguments, env=online(hub, home, HF_ENDPOINT="http://127.0.0.1:9")))
        assert status == EX_UNAVAILABLE
        assert line.startswith(f"cannot fetch {PLAIN}: ")
        assert line.endswith("Connection refused; what came so far is kept, try again")
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

    def pull(repository: str) -> Path:
        asked.append(repository)
        return Path("/fetched")

    monkeypatch.setattr(hub_module, "pull", pull)
    assert resolve("4bit") == Choice("4bit", Path("/fetched"))
    assert resolve("owner/name") == Choice("owner/name", Path("/fetched"))
    assert resolve("auto") == Choice("tiny", TINY)
    assert asked == [FOUR_BIT, "owner/name"]
