"""What comes into a watched folder, and what becomes of it: real files, the embedded model."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, HALL, TEXT, said, samples, words
from tests.watch.bench import ANY_BYTES, SETTLE_S, files, left_over, once, put, short, speech, watching
from voxpipe import Transcriber
from voxpipe.errors import EX_SOFTWARE
from voxpipe.service.process import resident_bytes
from voxpipe.watch import settling

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def words_of(path: Path) -> list[str]:
    return words(path.read_text())


def failure(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


# what is done, and when it is done again


def test_what_is_there_and_what_comes(tiny: Transcriber, folder: Path) -> None:
    shutil.copy(BEACH, folder / "first.wav")
    with watching(tiny, folder, formats=("txt", "srt", "json")) as watched:
        watched.until_event("done")
        shutil.copy(HALL, folder / "second.flac")
        watched.until_event("done", n=2)
    assert words_of(folder / "first.txt") == said(BEACH)
    assert words_of(folder / "second.txt") == said(HALL)
    assert json.loads((folder / "second.json").read_text())["audio"]["path"] == str(folder / "second.flac")
    for name in ("first.wav", "second.flac"):
        told = [event for event in watched.events if event.get("file") == str(folder / name)]
        assert [event["type"] for event in told] == ["queued", "started", "done"]
        assert told[-1]["outputs"] == [
            str(folder / name.partition(".")[0]) + f".{one}" for one in ("txt", "srt", "json")
        ]
        assert told[-1]["audio_s"] > 3
    assert left_over(folder) == []


def test_nothing_is_done_twice_and_what_is_deleted_is_made_again(tiny: Transcriber, folder: Path) -> None:
    short(folder / "a.wav")
    short(folder / "b.wav")
    assert len(once(tiny, folder, formats=("txt", "srt")).of("done")) == 2
    before = (folder / "a.srt").stat()
    assert once(tiny, folder, formats=("txt", "srt")).of("queued") == []
    (folder / "b.txt").unlink()
    again = once(tiny, folder, formats=("txt", "srt"))
    assert [event["file"] for event in again.of("done")] == [str(folder / "b.wav")]
    assert (folder / "a.srt").stat().st_mtime_ns == before.st_mtime_ns
    with watching(tiny, folder, formats=("txt", "srt")) as watched:
        watched.until_event("watching")
        (folder / "a.txt").unlink()
        watched.until_event("done", folder / "a.wav")
    assert files(folder) == ["a.srt", "a.txt", "a.wav", "b.srt", "b.txt", "b.wav"]


def test_another_delay_or_format_or_recording_is_other_work(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    path = speech(folder / "a.wav")
    out = tmp_path / "out"
    assert len(once(tiny, folder, output_dir=str(out)).of("done")) == 1
    assert len(once(tiny, folder, output_dir=str(out), delay_ms=240).of("done")) == 1
    assert len(once(tiny, folder, output_dir=str(out), delay_ms=240, formats=("txt", "srt")).of("done")) == 1
    assert once(tiny, folder, output_dir=str(out), delay_ms=240, formats=("srt",)).of("done") == []
    shutil.copy(BEACH, path)
    assert len(once(tiny, folder, output_dir=str(out), delay_ms=240, formats=("txt",)).of("done")) == 1
    assert words_of(out / "a.txt") == said(BEACH)
    assert files(out) == ["a.txt"]  # the captions were of what is there no more
    assert len(once(tiny, folder, output_dir=str(out), channels="split").of("done")) == 1
    assert files(out) == ["a.ch1.txt"]


def test_a_tree_may_be_moved(tiny: Transcriber, tmp_path: Path) -> None:
    short(tmp_path / "here/in/x/a.wav")
    once(tiny, tmp_path / "here/in", output_dir=str(tmp_path / "here/out"))
    (tmp_path / "here").rename(tmp_path / "there")
    again = once(tiny, tmp_path / "there/in", output_dir=str(tmp_path / "there/out"))
    assert again.of("queued") == []
    assert files(tmp_path / "there/out") == ["x/a.txt"]


# growing, renamed, replaced, vanished


def grow(path: Path, data: bytes, *, n_bursts: int, pause_s: float) -> threading.Thread:
    """Write a file in bursts, from a thread, as a recorder or a slow copy does."""

    def write() -> None:
        size = -(-len(data) // n_bursts)
        with open(path, "wb", buffering=0) as file:
            for first in range(0, len(data), size):
                file.write(data[first : first + size])
                time.sleep(pause_s)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("poll", [False, True])
def test_a_file_that_grows_in_bursts_longer_than_the_settle_time(
    tiny: Transcriber, folder: Path, poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own header says that there is more to come."""
    monkeypatch.setattr("voxpipe.watch.lookout.POLL_S", 0.1)
    with watching(tiny, folder, poll=poll) as watched:
        watched.until_event("watching")
        writer = grow(folder / "a.wav", BEACH.read_bytes(), n_bursts=4, pause_s=3 * SETTLE_S)
        watched.until_event("waiting")
        assert "bytes of sound, and" in watched.of("waiting")[0]["message"]
        watched.until_event("done")
        writer.join()
    assert words_of(folder / "a.txt") == said(BEACH)
    assert len(watched.of("started")) == len(watched.of("done")) == 1
    assert files(folder) == ["a.txt", "a.wav"]


def test_a_growing_file_of_a_kind_that_cannot_say_how_long_it_will_be(tiny: Transcriber, folder: Path) -> None:
    """It may be taken for complete too early, but what is there in the end is the whole."""
    with watching(tiny, folder) as watched:
        watched.until_event("watching")
        writer = grow(folder / "a.flac", HALL.read_bytes(), n_bursts=3, pause_s=4 * SETTLE_S)
        watched.until(lambda: not writer.is_alive() and words_or_none(folder / "a.txt") == said(HALL))
        watched.until(lambda: not watched.work.status()[0]["in_work"])
    assert files(folder) == ["a.flac", "a.txt"]  # an error.json of a half went when the whole was done


def words_or_none(path: Path) -> list[str] | None:
    return words_of(path) if path.exists() else None


def test_what_stops_growing_is_taken_as_it_is(
    tiny: Transcriber, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settling, "LEAST_PATIENCE_S", 1.0)
    data = BEACH.read_bytes()
    (folder / "cut.wav").write_bytes(data[: len(data) // 2])
    (folder / "empty.wav").touch()
    with watching(tiny, folder, settle_s=0.05) as watched:
        watched.until_event("done", folder / "cut.wav")
        watched.until_event("failed", folder / "empty.wav")
    assert words_of(folder / "cut.txt") == said(BEACH)[: len(words_of(folder / "cut.txt"))] != []
    assert failure(folder / "empty.wav.error.json")["message"] == "is empty (0 bytes)"
    assert "are there, and nothing came for 1 s: taken as it is" in "\n".join(caplog.messages)


def test_a_file_that_is_renamed_into_place_is_complete_at_once(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    outside = folder if sys.platform == "darwin" else tmp_path  # there, what comes from outside looks like a first byte
    with watching(tiny, folder, settle_s=3600.0) as watched:
        watched.until_event("watching")
        time.sleep(0.1)
        short(outside / "outside.part").rename(folder / "moved.wav")
        (folder / "renamed.wav.part").write_bytes(BEACH.read_bytes())
        (folder / "renamed.wav.part").rename(folder / "renamed.wav")
        watched.until_event("done", n=2)
    assert words_of(folder / "renamed.txt") == said(BEACH)
    assert (folder / "moved.txt").exists()


def test_a_file_that_is_replaced_while_it_is_transcribed(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    path = speech(folder / "a.wav", repeats=40)
    with watching(tiny, folder) as watched:
        watched.until_event("started")
        shutil.copy(BEACH, tmp_path / "other.wav")
        (tmp_path / "other.wav").rename(path)
        watched.until_event("done")
    assert [event["message"] for event in watched.of("discarded")] == ["has changed while it was being read"]
    assert len(watched.of("done")) == 1
    assert watched.of("done")[0]["audio_s"] < 10
    assert words_of(folder / "a.txt") == said(BEACH)


def test_a_replacement_that_nobody_reports_is_seen_before_anything_is_published(
    tiny: Transcriber, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxpipe.watch.lookout.POLL_S", 3600.0)
    path = speech(folder / "a.wav", repeats=4)
    shutil.copy(BEACH, tmp_path / "other.wav")
    with watching(tiny, folder, poll=True, rescan_s=3600.0) as watched:
        watched.until_event("started")
        (tmp_path / "other.wav").rename(path)
        watched.until_event("discarded")
        assert files(folder) == ["a.wav"]
        watched.until_event("done")
    assert words_of(folder / "a.txt") == said(BEACH)


def test_files_that_vanish(tiny: Transcriber, folder: Path) -> None:
    with watching(tiny, folder, settle_s=0.5) as watched:
        watched.until_event("watching")
        (folder / "early.wav").write_bytes(BEACH.read_bytes())
        watched.until(lambda: watched.work.status()[0]["waiting"])
        (folder / "early.wav").unlink()
        watched.until_event("discarded", folder / "early.wav")
        late = speech(folder / "late.wav", repeats=4)
        watched.until_event("started", late)
        late.unlink()
        watched.until_event("done", late)  # it was complete, and somebody may just have put it away
    assert files(folder) == ["late.txt"]
    assert words_of(folder / "late.txt") == said(FUTURE) * 4


# which files, and where to


def test_names_of_all_kinds(tiny: Transcriber, folder: Path) -> None:
    odd = [b"-dash.wav", b"a b.wav", b"new\nline.wav", b"[x]*.wav", b"n" * 251 + b".wav", b"UP.WAV"]
    odd += [b"\xff.wav"] * ANY_BYTES
    for name in odd:
        short(folder / os.fsdecode(name))
    watched = once(tiny, folder, formats=("txt",))
    assert len(watched.of("done")) == len(odd)
    written = {os.fsencode(name) for name in os.listdir(folder)} - {b".voxpipe"}
    assert written == {*odd, *(name[:-4] + b".txt" for name in odd)}
    told = {event["file"] for event in watched.of("done")}
    assert f"{folder}/new\nline.wav" in told
    assert (f"{folder}/\\xff.wav" in told) == ANY_BYTES
    assert once(tiny, folder).of("queued") == []


def test_what_is_no_recording_is_left_alone(tiny: Transcriber, folder: Path) -> None:
    ignored = [
        ".hidden.wav",
        "~$a.wav",
        "a.wav.part",
        "a.tmp",
        "a.crdownload",
        ".DS_Store",
        "@eaDir/a.wav",
        "Song.logicx/Media/a.wav",
        ".git/a.wav",
    ]
    ignored += ["notes.md", "a.jpg", "sub/a.wav.filepart", "drafts/a.wav", "old-a.wav"]
    for name in ignored:
        short(folder / name)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    short(folder / "sub/take.wav")
    watched = once(tiny, folder, ignore=("drafts", "old-*"))
    assert [event["file"] for event in watched.of("queued")] == [str(folder / "sub/take.wav")]
    assert once(tiny, folder, recursive=False, ignore=("old-*",)).of("queued") == []
    assert len(once(tiny, folder, pattern=("drafts/*.wav",)).of("done")) == 1


def test_own_outputs_in_the_watched_folder(tiny: Transcriber, folder: Path) -> None:
    short(folder / "a.wav")
    (folder / "broken.wav").write_bytes(TEXT.encode() * 20)
    for _ in range(2):
        watched = once(tiny, folder, pattern=("*",), formats=("txt", "srt", "vtt", "json", "jsonl"))
    assert watched.of("queued") == []
    outputs = [f"a.{one}" for one in ("json", "jsonl", "srt", "txt", "vtt", "wav")]
    assert files(folder) == [*outputs, "broken.wav", "broken.wav.error.json"]


def test_sub_folders_are_mirrored_and_the_output_folder_may_lie_inside(tiny: Transcriber, folder: Path) -> None:
    for name in ("a.wav", "x/a.wav", "x/y/a.wav"):
        short(folder / name)
    out, done = folder / "out", folder / "done"
    watched = once(tiny, folder, output_dir=str(out), on_done=f"move:{done}")
    assert files(out) == ["a.txt", "x/a.txt", "x/y/a.txt"]
    assert files(done) == ["a.wav", "x/a.wav", "x/y/a.wav"]
    assert len(watched.of("moved")) == 3
    assert once(tiny, folder, output_dir=str(out), on_done=f"move:{done}").of("queued") == []


def test_links_are_not_followed_out_of_the_folder(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    outside = short(tmp_path / "elsewhere/secret.wav")
    (folder / "link.wav").symlink_to(outside)
    (folder / "folder").symlink_to(outside.parent)
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    (folder / "loop").symlink_to(folder)
    short(folder / "sub/own.wav")
    (folder / "inside.wav").symlink_to(folder / "sub/own.wav")
    with watching(tiny, folder) as watched:
        watched.until_event("done", n=2)
        (folder / "later.wav").symlink_to(outside)
        short(folder / "last.wav")
        watched.until_event("done", folder / "last.wav")
    assert {Path(event["file"]).name for event in watched.of("queued")} == {"inside.wav", "own.wav", "last.wav"}


def test_names_that_clash_are_stable(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    speech(folder / "both.wav")
    speech(folder / "both.flac")
    speech(folder / "one.wav")
    once(tiny, folder, output_dir=str(out))
    assert files(out) == ["both.flac.txt", "both.wav.txt", "one.txt"]
    speech(folder / "one.flac")
    shutil.copy(BEACH, folder / "one.flac.wav")  # whose own name would be that of one.flac, by then
    for _ in range(2):
        watched = once(tiny, folder, output_dir=str(out))
    assert watched.of("queued") == []
    assert files(out) == ["both.flac.txt", "both.wav.txt", "one.flac.txt", "one.flac.wav.txt", "one.txt"]
    texts = [words_of(out / name) for name in ("one.flac.txt", "one.flac.wav.txt")]
    assert sorted(texts) == sorted([said(FUTURE), said(BEACH)])


def test_two_folders_may_share_an_output_folder(tiny: Transcriber, tmp_path: Path) -> None:
    out = tmp_path / "out"
    speech(tmp_path / "one/a.wav")
    (tmp_path / "two").mkdir()
    shutil.copy(BEACH, tmp_path / "two/a.wav")
    for _ in range(2):
        last = [once(tiny, tmp_path / name, output_dir=str(out)).of("queued") for name in ("one", "two")]
    assert last == [[], []]
    assert (words_of(out / "a.txt"), words_of(out / "a.wav.txt")) == (said(FUTURE), said(BEACH))


def test_a_recording_that_is_put_away_makes_room_for_another(tiny: Transcriber, folder: Path, tmp_path: Path) -> None:
    out, done = tmp_path / "out", tmp_path / "done"
    options = {"output_dir": str(out), "on_done": f"move:{done}"}
    for clip in (BEACH, HALL, FUTURE):
        put(folder / "rec.wav", lambda part, clip=clip: soundfile.write(part, samples(clip), 16_000, format="WAV"))
        once(tiny, folder, **options)
    assert files(folder) == []
    assert files(done) == ["rec.2.wav", "rec.3.wav", "rec.wav"]
    texts = [words_of(out / name) for name in ("rec.txt", "rec.wav.txt", "rec.wav.2.txt")]
    assert texts == [said(BEACH), said(HALL), said(FUTURE)]


# how much is looked at


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """What a function of a module is called with, from now on."""
    module, _, function = name.rpartition(".")
    real, calls = getattr(sys.modules[module], function), []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, *options.values()))
        return real(*arguments, **options)

    monkeypatch.setattr(f"{module}.{function}", call)
    return calls


def test_our_own_folders_are_no_reason_to_look_at_everything(
    tiny: Transcriber, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = counted(monkeypatch, "os.scandir")
    for number in range(10):
        short(folder / f"{number}/a.wav")
    (folder / "texts").mkdir()
    with watching(tiny, folder, output_dir=f"{folder}/texts", on_done=f"move:{folder}/away") as watched:
        watched.until_event("moved", n=10)
        short(folder / "last.wav")
        watched.until_event("moved", n=11)
    assert [one for one in files(folder) if not one.startswith(("texts", "away"))] == []
    assert [path for (path,) in listed].count(f"{folder}/") == 1


def test_a_new_folder_is_looked_into_and_nothing_is_verified_again(
    tiny: Transcriber, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        short(folder / f"{number}.wav")
    once(tiny, folder)
    read = counted(monkeypatch, "voxpipe.watch.records.read_record")
    with watching(tiny, folder) as watched:
        watched.until_event("watching")
        watched.until(lambda: len(read) >= 20)  # once to be sure that it is done, once to see whether it is wanted
        n_read = len(read)
        short(tmp_path / "new/deep/a.wav")
        (tmp_path / "new").rename(folder / "new")
        (folder / "other").mkdir()
        os.link(folder / "new/deep/a.wav", folder / "other/a.wav")
        watched.until_event("done", n=2)
    assert not any("/0.json" in path for (path,) in read[n_read:])


def test_polling_does_not_open_every_record(tiny: Transcriber, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxpipe.watch.lookout.POLL_S", 0.02)
    short(folder / "a.wav")
    once(tiny, folder)
    read = counted(monkeypatch, "voxpipe.watch.records.read_record")
    scanned = counted(monkeypatch, "os.scandir")
    with watching(tiny, folder, poll=True) as watched:
        watched.until(lambda: len(scanned) > 20)
    assert len(read) < 5


# what is not ours


def test_a_file_of_the_users_is_never_replaced(tiny: Transcriber, folder: Path) -> None:
    short(folder / "talk.wav")
    (folder / "talk.txt").write_text("my notes\n")
    with watching(tiny, folder, formats=("srt", "txt"), rescan_s=0.5) as watched:
        watched.until_event("failed")
        noted = failure(folder / "talk.wav.error.json")
        message = f"{folder}/talk.txt is there already and is not as voxpipe made it; move it away"
        assert (noted["code"], noted["message"]) == ("output", message)
        assert files(folder) == ["talk.txt", "talk.wav", "talk.wav.error.json"]
        assert (folder / "talk.txt").read_text() == "my notes\n"
        assert watched.of("started") == []  # it was known before any work
        (folder / "talk.txt").rename(folder / "notes.md")
        watched.until_event("done")
    assert files(folder) == ["notes.md", "talk.srt", "talk.txt", "talk.wav"]


def test_an_output_that_was_improved_by_hand_is_kept(tiny: Transcriber, folder: Path) -> None:
    short(folder / "talk.wav")
    once(tiny, folder)
    (folder / "talk.txt").write_text("Corrected.\n")
    assert once(tiny, folder).of("queued") == []
    shutil.copy(BEACH, folder / "talk.wav")
    assert len(once(tiny, folder).of("failed")) == 1
    assert (folder / "talk.txt").read_text() == "Corrected.\n"


# what cannot be transcribed


def test_recordings_of_all_kinds(
    tiny: Transcriber, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "LEAST_PATIENCE_S", 0.5)
    speech(folder / "deep.wav", 48_000, channels=6, subtype="PCM_24")
    speech(folder / "low.wav", 8_000)
    speech(folder / "high.flac", 192_000, subtype="PCM_24")
    ten_hours = bytearray(speech(folder / "hours.wav").read_bytes())
    ten_hours[40:44] = (36_000 * 32_000).to_bytes(4, "little")
    (folder / "hours.wav").write_bytes(ten_hours)
    (folder / "cut.flac").write_bytes(FUTURE.read_bytes()[:25_000])
    (folder / "text.wav").write_bytes(TEXT.encode() * 20)
    soundfile.write(folder / "silent.wav", np.zeros(0, np.float32), 16_000)
    (folder / "noindex.mp4").write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isom" + b"\0\0\4\0mdat" + bytes(1016))
    out = tmp_path / "out"
    watched = once(tiny, folder, output_dir=str(out), settle_s=0.02, rescan_s=1e6)
    for name in ("deep", "high", "hours"):
        assert words_of(out / f"{name}.txt") == said(FUTURE)
    assert len(watched.of("done")) == 4
    errors = {name.removesuffix(".error.json"): failure(out / name) for name in files(out) if ".error." in name}
    assert sorted(errors) == ["cut.flac", "noindex.mp4", "silent.wav", "text.wav"]
    assert {error["code"] for error in errors.values()} <= {"audio", "unavailable"}
    assert errors["text.wav"]["message"] == "is text, not audio"
    assert errors["cut.flac"]["message"].startswith("damaged or cut off at 1.")
    assert watched.reports.status in (65, 69)
    lasting = [name for name, error in errors.items() if error["code"] == "audio"]
    again = once(tiny, folder, output_dir=str(out), settle_s=0.02)
    assert not {Path(event["file"]).name for event in again.of("queued")} & set(lasting)
    (out / "text.wav.error.json").unlink()  # deleted, so it is tried once more
    assert "text.wav" in {Path(event["file"]).name for event in once(tiny, folder, output_dir=str(out)).of("failed")}


def test_a_broken_recording_is_tried_again_when_it_changes(tiny: Transcriber, folder: Path) -> None:
    path = folder / "a.flac"
    path.write_bytes(HALL.read_bytes()[:40_000])
    with watching(tiny, folder) as watched:
        watched.until_event("failed")
        assert files(folder) == ["a.flac", "a.flac.error.json"]
        path.write_bytes(HALL.read_bytes())
        watched.until_event("done")
    assert files(folder) == ["a.flac", "a.txt"]
    assert words_of(folder / "a.txt") == said(HALL)


@needs_root
def test_a_full_disk_that_gets_room(
    tiny: Transcriber, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxpipe.watch.backlog.FIRST_RETRY_S", 0.3)
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", out], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        n_bytes = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
        (out / "filler").write_bytes(bytes(n_bytes - 8192))  # enough for a record, not for outputs
        for name in ("a", "b", "c"):
            shutil.copy(HALL, folder / f"{name}.flac")
        with watching(tiny, folder, output_dir=str(out), formats=("json", "txt", "srt", "vtt"), jobs=2) as watched:
            watched.until_event("failed", n=2)
            assert "No space left on device" in watched.of("failed")[0]["message"]
            assert watched.of("failed")[0]["retry_s"] > 0
            assert [name for name in files(out) if "error" not in name] == ["filler"]
            (out / "filler").unlink()
            watched.until_event("done", n=3)
        assert left_over(out) == []
        assert files(out) == [f"{stem}.{one}" for stem in "abc" for one in ("json", "srt", "txt", "vtt")]
        assert all(words_of(out / f"{stem}.txt") == said(HALL) for stem in "abc")
    finally:
        subprocess.run(["umount", out], check=True)


def test_a_hung_reader_holds_up_itself_alone(tiny: Transcriber, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    program = put(
        tmp_path / "bin/ffmpeg",
        lambda part: part.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 1000\n"),
    )
    program.chmod(0o755)
    shutil.copy(program, program.parent / "ffprobe")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in ("a.m4a", "b.m4a"):
        (folder / name).write_bytes(b"\0\0\0\x14ftypM4A \0\0\2\0M4A \0\0\0\x08moov")
    with watching(tiny, folder, jobs=1) as watched:
        watched.until_event("started", n=2)
        speech(folder / "c.wav")
        watched.until_event("done", folder / "c.wav")
        assert len(watched.of("done")) == 1
    assert words_of(folder / "c.txt") == said(FUTURE)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert left_over(folder) == []


def test_a_defect_ends_one_folder_and_is_told(
    tiny: Transcriber, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voxpipe.watch.folder.Folder.scan", lambda self, *, tidy: 1 // 0)
    with watching(tiny, folder) as watched:
        watched.until(lambda: watched.work.exit_status == EX_SOFTWARE)
        assert watched.work.status() == []
    assert "is not watched any more" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_tried_again(tiny: Transcriber, folder: Path) -> None:
    path = short(folder / "a.wav")
    path.chmod(0)
    with watching(tiny, folder) as watched:
        (failed,) = watched.until_event("failed")
        assert failed["code"] == "input"
        path.chmod(0o600)
        watched.until_event("done")
    assert files(folder) == ["a.txt", "a.wav"]


def test_many_files_take_little_memory(tiny: Transcriber, folder: Path) -> None:
    """They wait by name alone; none is open, claimed or read before its turn."""
    first = short(folder / "0.wav")
    for number in range(1, 5_000):
        os.link(first, folder / f"{number}.wav")
    before = resident_bytes()
    with watching(tiny, folder, settle_s=0.5) as watched:
        watched.until_event("done")
        assert watched.work.status()[0]["in_work"] <= 5
        assert len(os.listdir("/dev/fd")) < 200
        while len(watched.of("queued")) < 5_000:
            time.sleep(0.05)
        assert len(left_over(folder)) < 40
        assert resident_bytes() - before < 100e6


def test_every_event_is_documented() -> None:
    root = Path(__file__).parents[2]
    section = (root / "README.md").read_text("utf-8").split("## Watched folders")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M))
    source = (root / "voxpipe/watch/reports.py").read_text("utf-8")
    assert set(documented) == {"ready", *re.findall(r'_(?:tell|write)\(\s*"(\w+)"', source)}
    keys = {key for row in documented.values() for key in re.findall(r"`(\w+)`", row)}
    written = {"v", "model", "delay_ms", "file", *re.findall(r"(\w+)=", source), *re.findall(r'"(\w+_s)"', source)}
    assert keys <= written
