"""Which names in a watched folder are recordings."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

AUDIO = "wav wave flac ogg oga opus mp3 m4a aac aif aiff aifc au caf w64 rf64 wma amr ac3 mka wv ape spx gsm"
VIDEO = "mp4 m4v mov mkv webm avi mpg mpeg mts ts flv wmv 3gp ogv"
RECORDINGS = tuple(f"*.{suffix}" for suffix in f"{AUDIO} {VIDEO}".split())

# what programs call a file that they have not finished
UNFINISHED = (
    "*.part",
    "*.partial",
    "*.filepart",
    "*.tmp",
    "*.temp",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.!??",
)
NOT_RECORDINGS = ("~$*", "desktop.ini", "thumbs.db", "*.error.json", *UNFINISHED)
FOREIGN_FOLDERS = ("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx")
# folders that a Mac shows as one file: what is in them belongs to a program
PACKAGES = (".band", ".logicx", ".fcpbundle", ".imovielibrary", ".photoslibrary")


class Selection:
    """Chooses by name; case makes no difference.

    Args:
        patterns: of recordings; one with a `/` is held against the path below the folder, others against the name alone.
        ignore: of those that are none after all, and of folders not to be entered.
    """

    def __init__(self, patterns: Sequence[str] = RECORDINGS, ignore: Sequence[str] = ()) -> None:
        self._patterns = tuple(pattern.lower() for pattern in patterns)
        self._ignore = tuple(pattern.lower() for pattern in ignore)

    def takes(self, path: str) -> bool:
        """Whether a file, named by its path below the folder, is a recording; its folders are not looked at."""
        name = path.rpartition("/")[2]
        if name.startswith(".") or any(fnmatchcase(name.lower(), pattern) for pattern in NOT_RECORDINGS):
            return False
        return _matches(path, self._patterns) and not _matches(path, self._ignore)

    def enters(self, path: str) -> bool:
        """Whether a folder in it is looked into."""
        name = path.rpartition("/")[2].lower()
        if name.startswith(".") or name in FOREIGN_FOLDERS or name.endswith(PACKAGES):
            return False
        return not _matches(path, self._ignore)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    path = path.lower()
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns)
