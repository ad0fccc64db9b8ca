"""What differs between file systems: which report changes, and under which path.

Those that other machines can write to report only what this one does.
"""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

# of other machines, of a virtual machine's host, of clusters
SILENT = re.compile(
    "nfs4?|cifs|smb3|smbfs|smb|afpfs|afs|9p|webdav|davfs2?|ftp|ncpfs|coda|autofs|"
    "virtio-?fs|applevirtiofs|vboxsf|prl_fs2?|vmhgfs|drvfs|osxfs|grpcfuse|macfuse|osxfuse|fuse|"
    "acfs|ceph|glusterfs|lustre|beegfs|gpfs|ocfs2|gfs2|orangefs|pvfs2"
)
LOCAL_FUSE = frozenset(
    ("fuseblk", "fuse.ntfs-3g", "fuse.exfat", "fuse.mergerfs", "fuse.unionfs", "fuse.encfs", "fuse.gocryptfs")
)
MACOS_MOUNT = re.compile(r"^.* on (?P<point>/.*) \((?P<kind>[^,)]+)")


def real_path(path: str) -> str:
    """The path under which changes are reported: without links and, on macOS, spelled as it is on the disc."""
    real = os.path.realpath(path)
    if not hasattr(fcntl, "F_GETPATH"):
        return real
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
    except FileNotFoundError:
        head, tail = os.path.split(real)
        return os.path.join(real_path(head), tail)
    except OSError:
        return real
    try:
        spelled = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
    except OSError:
        return real
    finally:
        os.close(descriptor)
    return os.fsdecode(spelled.split(b"\0")[0])


def silent_kind(path: str) -> str | None:
    """The kind of the file system that `path` lies on if it does not report all changes; None if it does, or is unknown."""
    kind = kind_of(os.path.realpath(path), _mounts())
    is_silent = bool(SILENT.fullmatch(kind)) or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
    return kind if is_silent else None


def kind_of(path: str, mounts: list[tuple[str, str]]) -> str:
    """The kind of the innermost of (mount point, kind), in the order in which they were mounted, that holds `path`."""
    found, kind = "", ""
    for point, one in mounts:
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # a later one on the same point lies above
            found, kind = point, one
    return kind


def parse_mountinfo(text: str) -> list[tuple[str, str]]:
    """Of Linux' /proc/self/mountinfo."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) > 4:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])  # of spaces and the like
            mounts.append((point, after.split(" ")[0]))
    return mounts


def parse_mount(text: str) -> list[tuple[str, str]]:
    """Of macOS' `mount`."""
    return [(match["point"], match["kind"]) for match in map(MACOS_MOUNT.match, text.splitlines()) if match]


def _mounts() -> list[tuple[str, str]]:
    try:
        if sys.platform == "darwin":
            return parse_mount(subprocess.check_output(["/sbin/mount"], text=True, errors="replace", timeout=10))
        return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except (OSError, subprocess.SubprocessError):
        return []
