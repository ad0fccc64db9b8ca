"""Raw bytes: every encoding, every chunking, damaged floats, impossible formats."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.audio.pcm import (
    ENCODINGS,
    MAX_CHANNELS,
    MAX_MAGNITUDE,
    PcmDecoder,
    PcmFormat,
    RawDecoder,
)
from voxpipe.audio.resample import Samples
from voxpipe.errors import UsageError


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut `data` into pieces of `sizes`, used in turn."""
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def decode(data: bytes, pcm_format: PcmFormat) -> Samples:
    return PcmDecoder(pcm_format).push(data)


@pytest.mark.parametrize(
    ("encoding", "layout", "values", "expected"),
    [
        ("s16le", "<3h", (-32768, 1, 32767), (-1.0, 1 / 32768, 32767 / 32768)),
        ("s16be", ">3h", (-32768, 1, 32767), (-1.0, 1 / 32768, 32767 / 32768)),
        ("s32le", "<3i", (-(2**31), 2**8, 2**30), (-1.0, 2**-23, 0.5)),
        ("s32be", ">3i", (-(2**31), 2**8, 2**30), (-1.0, 2**-23, 0.5)),
        ("f32le", "<3f", (-1.0, 0.25, 1.5), (-1.0, 0.25, 1.5)),
        ("f32be", ">3f", (-1.0, 0.25, 1.5), (-1.0, 0.25, 1.5)),
        ("f64le", "<3d", (-1.0, 0.25, 1.5), (-1.0, 0.25, 1.5)),
        ("f64be", ">3d", (-1.0, 0.25, 1.5), (-1.0, 0.25, 1.5)),
        ("u8", "3B", (0, 128, 192), (-1.0, 0.0, 0.5)),
    ],
)
def test_encodings(encoding: str, layout: str, values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    samples = decode(struct.pack(layout, *values), PcmFormat(encoding))
    assert samples.dtype == np.float32
    assert samples.tolist() == list(expected)


@pytest.mark.parametrize(("encoding", "order"), [("s24le", "little"), ("s24be", "big")])
def test_24_bits(encoding: str, order: str) -> None:
    values = (-(2**23), -1, 0, 1, 2**22, 2**23 - 1)
    data = b"".join(value.to_bytes(3, order, signed=True) for value in values)  # type: ignore[arg-type]
    expected = [value / 2**23 for value in values]
    assert decode(data, PcmFormat(encoding)).tolist() == expected


@pytest.mark.parametrize(("encoding", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_telephone_encodings_as_libsndfile_decodes_them(encoding: str, subtype: str) -> None:
    data = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(data),
        format="RAW",
        subtype=subtype,
        samplerate=8000,
        channels=1,
        dtype="float32",
    )
    assert np.array_equal(decode(data, PcmFormat(encoding)), expected)


def test_channels_are_averaged() -> None:
    data = struct.pack("<6h", 16384, 0, -16384, -16384, 32767, -32767)
    assert decode(data, PcmFormat(channels=2)).tolist() == [0.25, -0.5, 0.0]
    assert decode(data, PcmFormat(channels=3)).tolist() == [0.0, pytest.approx(-1 / 6, abs=1e-6)]


@given(
    data=st.binary(max_size=400),
    encoding=st.sampled_from(ENCODINGS),
    channels=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_any_chunking_equals_the_whole(data: bytes, encoding: str, channels: int, sizes: list[int]) -> None:
    pcm_format = PcmFormat(encoding, channels=channels)
    whole, chunked = PcmDecoder(pcm_format), PcmDecoder(pcm_format)
    expected = whole.push(data)
    pieces = [chunked.push(piece) for piece in cut(data, sizes)]
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *pieces]), expected)
    assert len(expected) == len(data) // pcm_format.n_frame_bytes
    assert chunked.n_leftover_bytes == len(data) % pcm_format.n_frame_bytes
    assert np.isfinite(expected).all()
    assert np.abs(expected).max(initial=0.0) <= MAX_MAGNITUDE


@pytest.mark.parametrize(("encoding", "layout"), [("f32le", "<6f"), ("f64be", ">6d")])
def test_floats_that_are_no_sound(encoding: str, layout: str) -> None:
    big = 1e30
    data = struct.pack(layout, float("nan"), float("inf"), float("-inf"), big, -big, 3.0)
    expected = [0.0, 0.0, 0.0, MAX_MAGNITUDE, -MAX_MAGNITUDE, 3.0]
    assert decode(data, PcmFormat(encoding)).tolist() == expected


def test_f64_beyond_the_range_of_f32() -> None:
    assert decode(struct.pack("<d", 1e300), PcmFormat("f64le")).tolist() == [MAX_MAGNITUDE]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_input_is_copied(kind: type) -> None:
    data = bytearray(struct.pack("<3h", 1, 2, 3))
    samples = decode(kind(data), PcmFormat())
    data[:] = bytes(len(data))
    samples[0] += 1.0  # writable, and the caller's
    assert samples.tolist() == [1.0 + 1 / 32768, 2 / 32768, 3 / 32768]


def test_raw_decoder_resamples() -> None:
    decoder = RawDecoder(PcmFormat("s16le", 48000, 2))
    data = bytes(4 * 48000 + 3)
    pieces = [decoder.push(piece) for piece in cut(data, [4001])]
    assert sum(map(len, pieces)) < 16000
    assert sum(map(len, [*pieces, decoder.finish()])) == 16000
    assert decoder.n_leftover_bytes == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("s16",),
            "unknown sample format 's16': use one of s16le, s16be, s24le, s24be, s32le, s32be, "
            "f32le, f32be, f64le, f64be, u8, mulaw, alaw",
        ),
        (
            ("s16le", 16),
            "a sampling rate of 16 Hz is not possible: give it in Hz, from 1000 to 768000",
        ),
        (
            ("s16le", 768001),
            "a sampling rate of 768001 Hz is not possible: give it in Hz, from 1000 to 768000",
        ),
        (("s16le", 16000, 0), "0 channels are not possible: use 1 to 64"),
        (("s16le", 16000, MAX_CHANNELS + 1), "65 channels are not possible: use 1 to 64"),
    ],
)
def test_impossible_formats(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        PcmFormat(*arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
