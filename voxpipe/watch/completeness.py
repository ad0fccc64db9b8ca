"""What a recording's own header says is still to come, while its writer may be at work."""

import os
import struct
from typing import BinaryIO

from voxpipe.audio.wav import MAX_HEADER_BYTES, MIN_OPEN_SIZE

N_BOXES = 1024  # of an MP4 file, or chunks of a WAV file, that are looked at


def missing(path: str) -> str | None:
    """Say what is missing, or None: the file is complete, or of a kind that cannot say.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return "it is empty"
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RIFX") and head[8:] == b"WAVE":
            return _missing_of_wav(file, size, "<" if head[:4] == b"RIFF" else ">")
        if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
            declared = 8 + int.from_bytes(head[4:8], "big")
            return f"its header declares {declared} bytes, and {size} are there" if declared > size else None
        if head[4:8] == b"ftyp":
            return _missing_of_mp4(file, size)
    return None


def _missing_of_wav(file: BinaryIO, size: int, order: str) -> str | None:
    position = 12
    for _ in range(N_BOXES):
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8 or position > MAX_HEADER_BYTES:
            return "its header is not complete" if position >= size else None
        name, n_bytes = struct.unpack(f"{order}4sI", chunk)
        position += 8
        if name == b"data":
            if n_bytes >= MIN_OPEN_SIZE and position + n_bytes > size:
                return "its header does not say how long it is"
            if n_bytes == 0 and size > position:
                return "its header does not say how long it is"
            if position + n_bytes > size:
                return f"its header declares {n_bytes} bytes of sound, and {size - position} are there"
            return None
        position += n_bytes + n_bytes % 2
    return None


def _missing_of_mp4(file: BinaryIO, size: int) -> str | None:
    position, has_index = 0, False
    for _ in range(N_BOXES):
        if position >= size:
            break
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return "its last box is cut off"
        n_bytes, name = struct.unpack(">I4s", head[:8])
        if n_bytes == 1 and len(head) == 16:
            n_bytes = int.from_bytes(head[8:], "big")
        elif n_bytes == 0:  # to the end of the file
            n_bytes = size - position
        if n_bytes < 8:
            return None  # damaged, which is not for us to say
        has_index = has_index or name == b"moov"
        position += n_bytes
        if position > size:
            return f"its box {name.decode('ascii', 'replace')!r} ends at byte {position}, and {size} are there"
    return None if has_index else "its index (moov) is not there"
