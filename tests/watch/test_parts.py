"""The parts of a watched folder by themselves: file systems, headers, the settle time, claims, the backlog."""

import fcntl
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cli.clips import BEACH
from tests.cli.process import PATIENCE_S, wait_until
from tests.watch.bench import once, short
from voxpipe import Transcriber
from voxpipe.errors import UnavailableError
from voxpipe.watch.backlog import MAX_HOLD_S, MAX_RETRY_S, Backlog, retry_in_s
from voxpipe.watch.claims import LEASE_S, Claim, owner, started_at, started_by_ps
from voxpipe.watch.completeness import missing
from voxpipe.watch.filesystems import SILENT, kind_of, parse_mount, parse_mountinfo, real_path, silent_kind
from voxpipe.watch.folder import Folder, WatchOptions
from voxpipe.watch.lookout import Lookout
from voxpipe.watch.observer import Observer
from voxpipe.watch.reports import Reports
from voxpipe.watch.settling import Settling, Verdict, read_key
from voxpipe.watch.watcher import FolderWatcher
from voxpipe.watch.work import FolderWork

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /srv rw shared:2 - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /srv/local rw - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/my\040share rw - cifs //nas/share rw
33 22 0:42 / /mnt/disc rw - fuseblk /dev/sdc1 rw
34 22 0:43 / /home/me/remote rw - fuse.sshfs me@host: rw
35 22 0:44 / /mnt/disc rw - tmpfs tmpfs rw
"""
MOUNT = """
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse)
//me@nas._smb._tcp.local/talks on /Volumes/talks (smbfs, nodev, nosuid, mounted by me)
server:/export on /Volumes/ex (port) (nfs, nodev)
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/talks", "ext4"),
        ("/srv/talks", "nfs4"),
        ("/srv/local/talks", "xfs"),
        ("/srvlocal", "ext4"),
        ("/mnt/my share/x", "cifs"),
        ("/home/me/remote", "fuse.sshfs"),
        ("/mnt/disc/x", "tmpfs"),  # mounted over the other
    ],
)
def test_the_kind_of_a_file_system_on_linux(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert kind_of(path, mounts) == kind
    monkeypatch.setattr("voxpipe.watch.filesystems._mounts", lambda: mounts)
    assert (silent_kind(path) is not None) == (kind in ("nfs4", "cifs", "fuse.sshfs"))


def test_the_kind_of_a_file_system_on_macos() -> None:
    mounts = parse_mount(MOUNT)
    assert kind_of("/Users/me", mounts) == "apfs"
    assert kind_of("/Volumes/talks/x", mounts) == "smbfs"
    assert kind_of("/Volumes/ex (port)/x", mounts) == "nfs"


def test_this_file_system_reports(tmp_path: Path) -> None:
    assert silent_kind(str(tmp_path)) is None


def test_what_virtual_machines_share_is_silent() -> None:
    assert all(map(SILENT.fullmatch, ("virtiofs", "virtio-fs", "applevirtiofs", "acfs", "smbfs", "fuse")))
    assert not any(map(SILENT.fullmatch, ("ext4", "xfs", "btrfs", "apfs", "hfs", "exfat", "msdos", "tmpfs")))


def test_a_path_without_links(tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    (tmp_path / "link").symlink_to("talks")
    assert real_path(str(tmp_path / "link/new/deep")) == str(tmp_path / "talks/new/deep")
    os.mkfifo(tmp_path / "pipe")
    assert real_path(str(tmp_path / "pipe")) == str(tmp_path / "pipe")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="plays a system that knows the spelling")
def test_a_path_as_it_is_spelled_on_the_disc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talks").mkdir()

    def spelled(descriptor: int, *_: object) -> bytes:
        return os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}").replace("/talks", "/Talks")) + bytes(9)

    monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", spelled)
    assert real_path(str(tmp_path / "talks")) == str(tmp_path / "Talks")
    assert real_path(str(tmp_path / "talks/new/deep")) == str(tmp_path / "Talks/new/deep")


def box(name: bytes, n_bytes: int) -> bytes:
    return struct.pack(">I4s", 8 + n_bytes, name) + bytes(n_bytes)


FTYP = box(b"ftyp", 12)
WAV = BEACH.read_bytes()
OPEN_WAV = WAV[:40] + b"\xff\xff\xff\xff" + WAV[44:]
NO_SIZE = "its header does not say how long it is"


@pytest.mark.parametrize(
    ("data", "lack"),
    [
        (b"", "it is empty"),
        (WAV, None),
        (WAV[:1000], f"its header declares {len(WAV) - 44} bytes of sound, and 956 are there"),
        (WAV[:20], "its header is not complete"),
        (OPEN_WAV, NO_SIZE),
        (WAV[:40] + bytes(4) + WAV[44:], NO_SIZE),
        (FTYP + box(b"mdat", 100) + box(b"moov", 50), None),
        (FTYP + box(b"moov", 50) + box(b"mdat", 100), None),
        (FTYP + box(b"mdat", 100), "its index (moov) is not there"),
        (FTYP + box(b"moov", 50) + box(b"mdat", 100)[:60], "its box 'mdat' ends at byte 186, and 138 are there"),
        (
            FTYP + box(b"moov", 50) + struct.pack(">I4sQ", 1, b"mdat", 200),
            "its box 'mdat' ends at byte 278, and 94 are there",
        ),
        (FTYP + box(b"moov", 50) + struct.pack(">I4s", 0, b"mdat") + bytes(9), None),
        (b"FORM" + struct.pack(">I", 100) + b"AIFF", "its header declares 108 bytes, and 12 are there"),
        (b"fLaC" + bytes(100), None),
        (b"no sound", None),
    ],
)
def test_what_a_header_says_is_missing(tmp_path: Path, data: bytes, lack: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert missing(str(path)) == lack


class Clock:
    def __init__(self, path: Path, settle_s: float) -> None:
        self.path = str(path)
        self.settling = Settling(settle_s)
        self.now = 100.0

    def touch(self, *, is_event: bool) -> None:
        key = read_key(self.path)
        assert key is not None
        self.settling.touch(self.path, key, self.now, is_event=is_event)

    def after(self, seconds: float) -> list[Verdict]:
        self.now += seconds
        return list(self.settling.look(self.now))


def test_every_change_starts_the_settle_time_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC")
    clock = Clock(path, 5.0)
    clock.touch(is_event=False)
    for _ in range(100):
        assert clock.after(4.9) == []
        clock.touch(is_event=True)  # an event, though nothing looks changed
    assert clock.after(4.9) == []
    path.write_bytes(b"fLaC and more")  # a change that was not reported
    assert clock.after(0.2) == []
    assert clock.after(4.7) == []
    assert clock.after(0.4) == [Verdict(str(path), is_settled=True)]
    assert len(clock.settling) == 0


def test_patience_with_a_header_begins_anew_too(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WAV[:1000])
    clock = Clock(path, 5.0)
    clock.touch(is_event=False)
    ((verdict),) = clock.after(5.1)
    assert not verdict.is_settled
    assert clock.after(50.0) == []  # said once
    path.write_bytes(WAV[:2000])
    clock.touch(is_event=True)
    (verdict,) = clock.after(5.1)
    assert not verdict.is_settled
    assert clock.after(54.0) == []
    (verdict,) = clock.after(1.0)
    assert verdict.is_settled
    assert verdict.lack is not None
    path.unlink()
    path.write_bytes(WAV)
    clock.touch(is_event=True)
    path.unlink()
    assert clock.after(5.1) == [Verdict(str(path), is_gone=True)]


def claim_by(path: Path, **facts: object) -> None:
    path.write_text(json.dumps({**owner(os.getpid()), **facts}))


def test_claims(tmp_path: Path) -> None:
    path = tmp_path / "key.claim"
    mine = Claim(str(path))
    assert mine.take()
    assert mine.is_ours()
    assert not Claim(str(path)).take()
    mine.release()
    assert os.listdir(tmp_path) == []
    # of a process that has ended, of another that has its number, of one that has ended and waits to be noticed
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        wait_until(lambda: started_at(process.pid) == "")
        claim_by(path, pid=process.pid, start="1")
        assert mine.take()
        process.wait(PATIENCE_S)
    for facts in ({"pid": process.pid}, {"start": "1"}):
        claim_by(path, **facts)
        assert mine.take()
    # of another machine: as long as it is renewed
    claim_by(path, host="elsewhere", pid=1)
    assert not mine.take()
    assert not mine.is_ours()
    os.utime(path, (time.time() - LEASE_S - 1,) * 2)
    assert mine.take()
    assert mine.is_ours()
    # of nobody, for a moment
    path.write_text("")
    assert not mine.take()
    os.utime(path, (time.time() - 11,) * 2)
    assert mine.take()


@pytest.mark.skipif(not os.path.exists("/bin/ps"), reason="ps is not installed")
def test_when_a_process_began_by_ps_whatever_the_language_and_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    for zone in ("Asia/Tokyo", "America/Lima"):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        told.add(started_by_ps(os.getpid()))
    (began,) = told
    assert began is not None
    time.strptime(began, "%a %b %d %H:%M:%S %Y")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        wait_until(lambda: started_by_ps(process.pid) == "")  # it waits to be noticed
        process.wait(PATIENCE_S)
    assert started_by_ps(process.pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of somebody else")
def test_a_claim_of_another_user_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "key.claim"
    with subprocess.Popen(["sleep", "100"], user=65534) as process:
        claim_by(path, pid=process.pid, start=started_at(process.pid))
        assert not Claim(str(path)).take()
        process.kill()
    assert Claim(str(path)).take()


def test_the_backlog_waits_longer_every_time() -> None:
    backlog = Backlog()
    assert [retry_in_s(n) for n in (1, 2, 3, 4)] == [2, 4, 8, 16]
    assert retry_in_s(1000) == MAX_RETRY_S
    key = (1, 2, 3)
    backlog.add("a", key)
    assert [backlog.hold(0.0) for _ in range(6)] == [2, 4, 8, 16, MAX_HOLD_S, MAX_HOLD_S]
    assert not backlog.may_begin(29.0, 0)
    assert backlog.may_begin(31.0, 0)
    assert not backlog.may_begin(31.0, 1)  # one at a time, until it is known that there is room
    backlog.release()
    assert backlog.may_begin(0.0, 1)
    assert backlog.take() == ("a", key)
    backlog.put_off("a", key, until=5.0)
    assert backlog.holds("a", key)
    assert (backlog.due(4.0), backlog.due_in_s(4.0)) == ([], 1.0)
    assert backlog.due(5.0) == [("a", key)]
    assert len(backlog) == 0


def test_more_folders_than_the_system_can_watch(
    tiny: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voxpipe.watch.lookout._max_watches", lambda: 3)
    short(tmp_path / "x/y/a.wav")
    watched = once(tiny, tmp_path)
    assert len(watched.of("done")) == 1
    assert "sysctl fs.inotify.max_user_watches=" in caplog.text
    assert "polling" in watched.of("watching")[-1]


@pytest.mark.parametrize("error", [RuntimeError("no stream"), SystemError("no stream"), OSError(5, "no stream")])
def test_a_system_that_does_not_report(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("voxpipe.watch.observer._make_observer", fail)
    observer = Observer(lambda path, is_whole: None, lambda path: None, lambda: None)
    with pytest.raises(UnavailableError, match="no stream"):
        observer.start([str(tmp_path)], recursive=True)


@pytest.mark.parametrize("name", ["watchdog.observers.inotify", "fsevents"])
def test_a_warning_of_watchdog_means_that_reports_were_lost(name: str, tmp_path: Path) -> None:
    lost: list[bool] = []
    observer = Observer(lambda path, is_whole: None, lambda path: None, lambda: lost.append(True))
    observer.start([str(tmp_path)], recursive=True)
    logging.getLogger(name).warning("some are lost")
    observer.stop()
    logging.getLogger(name).warning("nobody listens")
    assert lost == [True]


def test_what_is_asked_for_during_a_look_is_not_forgotten(tmp_path: Path) -> None:
    options = WatchOptions(str(tmp_path))
    folder = Folder(options)
    lookout = Lookout(
        folder,
        options,
        Reports(),
        on_change=lambda path, is_whole: None,
        on_folder=lambda path: None,
        on_loss=lambda: None,
    )
    assert lookout.begin(100.0) is True
    lookout.ask_for_new()
    list(lookout.look())
    assert lookout.is_looking
    assert lookout.begin(101.0) is False
    list(lookout.look())
    assert not lookout.is_looking
    lookout.ask()
    assert lookout.begin(102.0) is True


def test_an_output_folder_that_is_not_there_yet(tiny: Transcriber, tmp_path: Path) -> None:
    short(tmp_path / "in/a.wav")
    watched = once(tiny, tmp_path / "in", output_dir=f"{tmp_path}/out/texts")
    assert [event.get("polling") for event in watched.of("watching")] == [None]
    assert (tmp_path / "out/texts/a.txt").exists()


def test_a_dead_disc_holds_up_nobody_but_its_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = threading.Event()

    def wait(path: str) -> str:
        dead.wait(PATIENCE_S)
        return path

    monkeypatch.setattr("voxpipe.watch.folder.real_path", wait)
    work = FolderWork(jobs=1, tell=lambda: None)
    began = time.monotonic()
    watcher = FolderWatcher(WatchOptions(str(tmp_path)), Reports(), model="none", delay_ms=480, tell=lambda: None)
    work.add(watcher)
    (facts,) = work.status()
    assert (facts["folder"], facts["polling"]) == (str(tmp_path), False)
    work.remove(watcher)
    assert time.monotonic() - began < 2.0
    assert watcher.is_alive()
    dead.set()
    work.stop()  # which waits for it
    assert not watcher.is_alive()
