"""`[[watch]]` of `voxpipe serve`: folders beside live streams, that come and go with the settings."""

import shutil
import signal
from pathlib import Path

from tests.cli.clips import BEACH, FUTURE, s16le, said, words
from tests.cli.process import live, run, text_of, wait_until
from tests.service.test_daemon import serve
from tests.watch.bench import files, left_over, short, speech
from voxpipe.errors import EX_OK


def table(folder: Path, **keys: str) -> str:
    lines = [f'path = "{folder}"', "settle_s = 0.1", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n[[watch]]\n" + "\n".join(lines) + "\n"


def test_folders_beside_live_streams(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    speech(one / "long.wav", repeats=30)
    with serve(tmp_path, table(one)) as daemon:
        # 1. a live stream has its text while a folder is worked at
        wait_until(lambda: daemon.status()["folders"][0]["in_work"])
        assert words(text_of(daemon.ask(s16le(BEACH)))) == said(BEACH)
        wait_until(lambda: "socket" not in [stream["source"] for stream in daemon.status()["streams"]])
        assert daemon.status()["streams"] == []  # a recording is none
        # 2. another folder is named, which is not there yet, and the first one no more
        config = daemon.config.read_text()
        daemon.config.write_text(config.replace(table(one), table(two, output_dir=f'"{tmp_path}/out"', poll="true")))
        daemon.process.signal(signal.SIGHUP)
        wait_until(lambda: [folder["folder"] for folder in daemon.status()["folders"]] == [str(two)])
        wait_until(lambda: left_over(one) == [])  # given up, with nothing left of it
        assert files(one) == ["long.wav"]
        wait_until(lambda: "No such file or directory; it is looked for again" in daemon.process.stderr)
        shutil.copytree(BEACH.parent, tmp_path / "arriving")
        (tmp_path / "arriving").rename(two)
        # 3. what was in it when it came is transcribed
        wait_until(
            lambda: daemon.status()["folders"][0]["done"] == len(list(two.glob("*.wav")) + list(two.glob("*.flac")))
        )
        assert words((tmp_path / "out/future.txt").read_text()) == said(FUTURE)
        assert f"{two}: 0 wait, 0 in work, 4 done, 0 failed" in run("status", env=daemon.env).stdout.decode()
        # 4. the end leaves nothing half-written
        speech(two / "long.wav", repeats=60)
        wait_until(lambda: daemon.status()["folders"][0]["in_work"])
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.end() == EX_OK
    assert left_over(tmp_path / "out") == []
    assert not (tmp_path / "out/long.txt").exists()
    assert [event["type"] for event in daemon.process.events] == ["ready"]


def test_as_many_live_streams_as_without_folders(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(4):
        speech(folder / f"{number}.wav", repeats=40)
    with serve(tmp_path, "max_streams = 1\n" + table(folder)) as daemon:
        wait_until(lambda: daemon.status()["folders"][0]["in_work"] >= 4)
        with live("--daemon", "require", env=daemon.env) as client:
            client.write(s16le(FUTURE))
            client.end_input()
            client.wait_for("done")
        assert words(client.text()) == said(FUTURE)


def test_a_folder_that_cannot_be_written_in_does_not_end_the_daemon(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    short(folder / "a.wav")
    (tmp_path / "out").touch()
    with serve(tmp_path, table(folder, output_dir=f'"{tmp_path}/out"')) as daemon:
        wait_until(lambda: daemon.status()["folders"][0]["failed"])
        wait_until(lambda: "cannot write in" in daemon.process.stderr)
        assert words(text_of(daemon.ask(s16le(FUTURE)))) == said(FUTURE)
