"""What a stream of bytes is, by its first bytes.

Raw PCM has no mark of its own: it is what nothing else explains. So every rule here is strict
enough not to fire on sound, and gives its answer as early as it can, since live audio waits for it:
silence and quiet rooms are told from text by their first two bytes, and only a stream that goes on
looking like text or like MP3 frames is held back longer, never beyond MAX_HEAD_BYTES. This module
decodes nothing and raises nothing.
"""

import codecs
from collections.abc import Callable

RAW = "raw"
WAV = "WAV"
TEXT = "text"

N_TEXT_BYTES = 512  # this much printable text, without one control byte, is no sound: 16 ms
N_SHORT_TEXT_BYTES = 32  # a stream that ends so soon is text even without a final newline
N_FRAME_HEADER_BYTES = 6  # as much of an MP3 or ADTS header as is looked at
MAX_HEAD_BYTES = 2 * 8191 + N_FRAME_HEADER_BYTES  # two of the longest ADTS frames, one header

# name -> ((offset, bytes), ...), all of which must match
_SIGNATURES: tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...] = (
    (WAV, ((0, b"RIFF"), (8, b"WAVE"))),
    (WAV, ((0, b"RIFX"), (8, b"WAVE"))),
    (WAV, ((0, b"RF64"), (8, b"WAVE"))),
    (WAV, ((0, b"BW64"), (8, b"WAVE"))),
    ("AVI", ((0, b"RIFF"), (8, b"AVI "))),
    ("FLAC", ((0, b"fLaC"),)),
    ("Ogg", ((0, b"OggS"),)),
    ("MP3", ((0, b"ID3\x02"),)),
    ("MP3", ((0, b"ID3\x03"),)),
    ("MP3", ((0, b"ID3\x04"),)),
    ("MP4/M4A", ((4, b"ftyp"),)),
    ("Matroska/WebM", ((0, b"\x1aE\xdf\xa3"),)),
    ("AIFF", ((0, b"FORM"), (8, b"AIF"))),
    ("AU", ((0, b".snd"),)),
    ("CAF", ((0, b"caff\x00\x01"),)),
    ("Wave64", ((0, b"riff\x2e\x91\xcf\x11"),)),
    ("WMA/ASF", ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    ("AMR", ((0, b"#!AMR"),)),
    ("FLV", ((0, b"FLV\x01"),)),
    ("WavPack", ((0, b"wvpk"),)),
)

_PRINTABLE_ASCII = bytes(range(0x20, 0x7F)) + b"\t\n\r\f\x1b"  # escape: coloured output
_MP3_KBPS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

_FrameReader = Callable[[bytes], tuple[bytes, int]]


def sniff(head: bytes, *, at_end: bool = False) -> str | None:
    """Name what begins with `head`.

    Args:
        head: every byte of the stream so far.
        at_end: no more will come, so decide.

    Returns:
        RAW, WAV, TEXT or the name of another container; None when more bytes are needed, which
        never happens with `at_end` nor with MAX_HEAD_BYTES bytes.
    """
    undecided = False
    for name, parts in _SIGNATURES:
        found = _matches(head, parts)
        if found:
            return name
        undecided |= found is None
    for name, found in (
        ("MP3", _is_frame_chain(head, _mp3_frame, at_end=at_end)),
        ("AAC", _is_frame_chain(head, _adts_frame, at_end=at_end)),
        (TEXT, _is_text(head, at_end=at_end)),
    ):
        if found:
            return name
        undecided |= found is None
    return None if undecided and not at_end else RAW


def _matches(head: bytes, parts: tuple[tuple[int, bytes], ...]) -> bool | None:
    """Whether all `parts` are in `head`; None while the bytes that are there agree."""
    for offset, expected in parts:
        there = head[offset : offset + len(expected)]
        if there != expected:
            return None if expected.startswith(there) else False
    return True


def _is_text(head: bytes, *, at_end: bool) -> bool | None:
    """Whether `head` is lines of UTF-8; None while it is, but too short to be sure."""
    head = head[:N_TEXT_BYTES]
    if any(byte < 0x80 for byte in head.translate(None, _PRINTABLE_ASCII)):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    if len(head) == N_TEXT_BYTES:
        return True
    if not at_end:
        return None
    return len(head) >= N_SHORT_TEXT_BYTES or (len(head) >= 4 and head.endswith(b"\n"))


def _is_frame_chain(head: bytes, read_frame: _FrameReader, *, at_end: bool) -> bool | None:
    """Whether three frames of one kind follow each other (two, when the stream ends there).

    One sync word is an everyday sample (MP3's FF FB is -1025); three in their places are not.
    """
    position = n_frames = 0
    first_kind = b""
    while n_frames < 3:
        header = head[position : position + N_FRAME_HEADER_BYTES]
        if not header.startswith(b"\xff"[: len(header)]) or (header[1:2] and header[1] < 0xE0):
            return False
        if len(header) < N_FRAME_HEADER_BYTES:
            return n_frames >= 2 if at_end else None
        kind, n_frame_bytes = read_frame(header)
        if not n_frame_bytes or (n_frames and kind != first_kind):
            return False
        first_kind = kind
        position += n_frame_bytes
        n_frames += 1
    return True


def _mp3_frame(header: bytes) -> tuple[bytes, int]:
    """Return what all frames of a layer III stream share, and this one's length; 0 is no frame."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    rate_index, rate_code, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    kind = bytes((header[1], rate_code))
    if version == 1 or layer != 1 or rate_index in (0, 15) or rate_code == 3:
        return kind, 0
    is_mpeg1 = version == 3
    bits_per_second = 1000 * _MP3_KBPS[is_mpeg1][rate_index - 1]
    n_samples = 1152 if is_mpeg1 else 576
    return kind, n_samples // 8 * bits_per_second // _MP3_RATES[version][rate_code] + padding


def _adts_frame(header: bytes) -> tuple[bytes, int]:
    """Return what all ADTS frames of an AAC stream share, and this one's length; 0 is no frame."""
    kind = bytes((header[1], header[2], header[3] & 0xC0))
    n_frame_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if header[1] & 0xF6 != 0xF0 or header[2] >> 2 & 15 > 12 or n_frame_bytes <= 7:
        return kind, 0
    return kind, n_frame_bytes
