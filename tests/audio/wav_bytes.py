"""WAV headers byte by byte, as different writers leave them."""

import struct

GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, body: bytes, *, size: int | None = None, order: str = "<") -> bytes:
    """Make a chunk, padded to an even length; `size` overrides the one it claims."""
    head = name + struct.pack(f"{order}I", len(body) if size is None else size)
    return head + body + b"\0" * (len(body) % 2)


def fmt(
    tag: int = 1,
    *,
    bits: int = 16,
    rate: int = 16000,
    channels: int = 1,
    extensible: bool = False,
    order: str = "<",
) -> bytes:
    """Make a `fmt ` chunk."""
    n_frame_bytes = (bits + 7) // 8 * channels
    outer_tag = 0xFFFE if extensible else tag
    body = struct.pack(f"{order}HHIIHH", outer_tag, channels, rate, rate * n_frame_bytes, n_frame_bytes, bits)
    if extensible:
        body += struct.pack(f"{order}HHIH", 22, bits, 0, tag) + GUID_TAIL
    return chunk(b"fmt ", body, order=order)


def wav(
    data: bytes,
    *,
    header: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
    size: int | None = None,
    riff_size: int | None = None,
    name: bytes = b"RIFF",
) -> bytes:
    """Make a whole WAV; `size` and `riff_size` override what the two size fields claim."""
    order = ">" if name == b"RIFX" else "<"
    body = (
        b"WAVE"
        + before
        + (fmt(order=order) if header is None else header)
        + chunk(b"data", data, size=size, order=order)
        + after
    )
    return name + struct.pack(f"{order}I", len(body) if riff_size is None else riff_size) + body
