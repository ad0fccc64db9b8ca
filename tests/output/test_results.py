"""Result files: each whole or not there, under names that do not clash."""

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from voxpipe.errors import OutputError, UsageError
from voxpipe.output import results
from voxpipe.output.formats import AudioFacts, Heading
from voxpipe.output.results import ResultFiles, Source, check_directory, give_name, output_paths, output_stems, size_of
from voxpipe.output.transcript import Delta

HEADING = Heading("talk.wav", "tiny", 480)
DELTA = Delta(" word", start=0.0, end=0.5, tokens=(1,), logprob=0.0)


def paths(tmp_path: Path, *formats: str) -> dict[str, str]:
    return output_paths(str(tmp_path / "out" / "talk"), formats)


def commit(results: ResultFiles) -> None:
    results.finish(AudioFacts(1.0))
    results.publish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_outputs_get_their_names_when_all_are_complete(tmp_path: Path) -> None:
    results = ResultFiles(paths(tmp_path, "txt", "json"), HEADING)
    results.add([DELTA])
    assert all(name.startswith(".") and name.endswith(".part") for name in names(tmp_path / "out"))
    commit(results)
    assert names(tmp_path / "out") == ["talk.json", "talk.txt"]
    assert (tmp_path / "out/talk.txt").read_text() == "word\n"
    assert json.loads((tmp_path / "out/talk.json").read_text())["text"] == "word"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out/talk.txt").stat().st_mode & 0o777 == 0o666 & ~umask
    results.discard()
    assert names(tmp_path / "out") == ["talk.json", "talk.txt"]


def test_nothing_is_left_of_what_was_given_up(tmp_path: Path) -> None:
    results = ResultFiles(paths(tmp_path, "txt", "srt", "vtt", "json", "jsonl"), HEADING)
    results.add([DELTA])
    assert len(names(tmp_path / "out")) == 5
    results.discard()
    assert names(tmp_path / "out") == []


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/talk.srt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        ResultFiles(paths(tmp_path, "txt", "srt"), HEADING)
    assert str(caught.value) == (
        f"{tmp_path}/out/talk.srt is there already; --force replaces it, --skip-existing leaves it"
    )
    assert names(tmp_path / "out") == ["talk.srt"]
    results = ResultFiles(paths(tmp_path, "txt", "srt"), HEADING, replace=True)
    results.add([DELTA])
    assert (tmp_path / "out/talk.srt").read_text() == "mine"
    commit(results)
    assert "word" in (tmp_path / "out/talk.srt").read_text()


def test_what_came_in_the_meantime_is_kept_too(tmp_path: Path) -> None:
    results = ResultFiles(paths(tmp_path, "txt"), HEADING)
    (tmp_path / "out/talk.txt").write_text("theirs")
    with pytest.raises(OutputError, match="is there already"):
        commit(results)
    assert names(tmp_path / "out") == ["talk.txt"]
    assert (tmp_path / "out/talk.txt").read_text() == "theirs"


@pytest.mark.parametrize("number", ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EINVAL"])
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setattr(os, "link", lambda *_: refuse(getattr(errno, number)))
    results = ResultFiles(paths(tmp_path, "txt"), HEADING)
    commit(results)
    assert names(tmp_path / "out") == ["talk.txt"]
    results = ResultFiles(paths(tmp_path, "srt"), HEADING)
    (tmp_path / "out/talk.srt").write_text("theirs")
    with pytest.raises(OutputError, match="is there already"):
        commit(results)
    assert (tmp_path / "out/talk.srt").read_text() == "theirs"


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_one_name_is_given_once_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_slowly(path: str, *, replace: bool, check: Any = results.check_free) -> None:
        check(path, replace=replace)
        time.sleep(0.05)

    monkeypatch.setattr(os, "link", lambda *_: refuse(errno.ENOTSUP))
    monkeypatch.setattr(results, "check_free", check_slowly)
    refused = []

    def give(part: Path) -> None:
        part.touch()
        try:
            give_name(str(part), str(tmp_path / "talk.txt"), replace=False)
        except OutputError:
            refused.append(part.name)

    threads = [threading.Thread(target=give, args=(tmp_path / f"{number}.part",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == sorted([*refused, "talk.txt"])
    assert len(refused) == 2


def test_sizes_for_the_estimate(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(7))
    assert [size_of(path) for path in (str(tmp_path / "a.wav"), str(tmp_path / "gone"), "nul\0")] == [7, 0, 0]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError) as caught:
        ResultFiles(paths(tmp_path, "txt"), HEADING)
    assert str(caught.value).startswith(f"cannot write {tmp_path}/out/talk.txt: ")
    (tmp_path / "out").unlink()
    (tmp_path / "out/talk.txt").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a folder"):
        ResultFiles(paths(tmp_path, "txt"), HEADING, replace=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultFiles(paths(tmp_path, "txt"), HEADING)
    (part,) = (tmp_path / "out").iterdir()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    (opened,) = [int(name) for name in os.listdir("/dev/fd") if _leads_to(name, part)]
    os.dup2(descriptor, opened)
    os.close(descriptor)
    results.add([DELTA])
    with pytest.raises(OutputError, match=r"cannot write .*/talk\.txt: No space left on device"):
        commit(results)
    assert names(tmp_path / "out") == []


def _leads_to(descriptor: str, path: Path) -> bool:
    try:
        return os.path.samefile(f"/dev/fd/{descriptor}", path)
    except OSError:
        return False


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    stem = str(tmp_path / ("n" * 251))
    results = ResultFiles(output_paths(stem, ["txt"]), HEADING)
    commit(results)
    assert names(tmp_path) == ["n" * 251 + ".txt"]
    with pytest.raises(OutputError, match="File name too long"):  # before any work, not after it
        ResultFiles(output_paths(stem, ["json"]), HEADING)


def test_stems() -> None:
    sources = [Source("in/a.wav", "a.wav"), Source("in/b.wav", "b.wav"), Source("in/b.mp3", "b.mp3")]
    assert output_stems(sources, "out") == ["out/a", "out/b.wav", "out/b.mp3"]
    deep = [Source("in/x/a.wav", "x/a.wav"), Source("in/y/a.wav", "y/a.wav"), Source("in/y.d/a", "y.d/a")]
    assert output_stems(deep, "out") == ["out/x/a", "out/y/a", "out/y.d/a"]
    cases = [Source("A.wav", "A.wav"), Source("a.mp3", "a.mp3")]
    assert output_stems(cases, "o") == ["o/A.wav", "o/a.mp3"]
    assert output_stems([Source.alone("-x:y\n.wav"), Source.alone(".hidden")], "o") == ["o/-x:y\n", "o/.hidden"]
    with pytest.raises(UsageError, match=r"'x/a\.wav' and 'y/a\.wav' would both be written to 'out/a\.wav'"):
        output_stems([Source.alone("x/a.wav"), Source.alone("y/a.wav")], "out")


def test_channels_have_names_of_their_own() -> None:
    assert output_paths("out/a", ["txt", "srt"], channel=2) == {"txt": "out/a.ch2.txt", "srt": "out/a.ch2.srt"}


def test_what_can_be_an_output_folder(tmp_path: Path) -> None:
    check_directory(str(tmp_path))
    check_directory(str(tmp_path / "new"))
    (tmp_path / "file").touch()
    for path in (str(tmp_path / "file"), "talk.srt"):
        with pytest.raises(UsageError, match=r"-o takes a folder, and .* is a file's name; for one file write"):
            check_directory(path)
