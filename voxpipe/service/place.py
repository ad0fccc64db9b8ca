"""Where a user's daemon listens unless told otherwise, and whether that place is the user's own.

Without a runtime folder of the user it lies below /tmp, where anybody could be the first to make it: who did would hear
what our clients send.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

REMEDY = "export VOXPIPE_SOCKET=$HOME/.voxpipe.sock"


def default_socket() -> Path:
    """Where a user's daemon listens unless told otherwise."""
    if "VOXPIPE_SOCKET" in os.environ:
        return Path(os.environ["VOXPIPE_SOCKET"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "voxpipe" / "voxpipe.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/voxpipe-{os.getuid()}"
    return Path(runtime) / "voxpipe" / "voxpipe.sock"


def foreign_folder(path: Path) -> Path | None:
    """Which of the two folders around the default socket is another user's, if one is; a path that was named is trusted."""
    if "VOXPIPE_SOCKET" in os.environ or path != default_socket():
        return None
    for folder in (path.parent.parent, path.parent):
        with suppress(OSError):  # it is not there
            if folder.lstat().st_uid not in (os.getuid(), 0):
                return folder
    return None
