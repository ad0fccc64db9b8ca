"""Containers and text are known by their first bytes; sound is never taken for either."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.audio.sniff import MAX_HEAD_BYTES, RAW, TEXT, WAV, sniff

MP3_FRAME = b"\xff\xfb\x90\x44" + bytes(413)  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz
MP3_FRAME_MPEG2 = b"\xff\xf3\x44\xc4" + bytes(92)  # MPEG 2 layer III, 32 kbit/s, 24 kHz
ADTS_FRAME = b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9)  # 16 bytes
LONGEST_ADTS_HEADER = b"\xff\xf1\x50\x83\xff\xff\xfc"  # 8191 bytes

HEADS = [
    (b"RIFF\xff\xff\xff\xffWAVEfmt ", WAV),
    (b"RIFX\xff\xff\xff\xffWAVEfmt ", WAV),
    (b"RF64\xff\xff\xff\xffWAVEds64", WAV),
    (b"BW64\xff\xff\xff\xffWAVEds64", WAV),
    (b"RIFF\x00\x10\x00\x00AVI LIST", "AVI"),
    (b"fLaC\x00\x00\x00\x22", "FLAC"),
    (b"OggS\x00\x02", "Ogg"),
    (b"ID3\x04\x00\x00\x00\x00\x00\x23", "MP3"),
    (b"\x00\x00\x00\x1cftypM4A ", "MP4/M4A"),
    (b"\x1a\x45\xdf\xa3\x01\x00", "Matroska/WebM"),
    (b"FORM\x00\x00\x10\x00AIFFCOMM", "AIFF"),
    (b"FORM\x00\x00\x10\x00AIFCFVER", "AIFF"),
    (b".snd\x00\x00\x00\x20", "AU"),
    (b"caff\x00\x01\x00\x00", "CAF"),
    (b"riff\x2e\x91\xcf\x11\xa5\xd6", "Wave64"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "WMA/ASF"),
    (b"#!AMR\n", "AMR"),
    (b"FLV\x01\x05", "FLV"),
    (b"wvpk\x00\x10", "WavPack"),
    (3 * MP3_FRAME, "MP3"),
    (3 * ADTS_FRAME, "AAC"),
]


@pytest.mark.parametrize(("head", "name"), HEADS)
def test_containers(head: bytes, name: str) -> None:
    assert sniff(head) == name
    for n_bytes in range(len(head)):
        assert sniff(head[:n_bytes]) in (None, name)


@pytest.mark.parametrize("frame", [MP3_FRAME, MP3_FRAME_MPEG2, ADTS_FRAME], ids=["mp3", "mp3, MPEG 2", "adts"])
def test_frames_need_company(frame: bytes) -> None:
    name = "AAC" if frame is ADTS_FRAME else "MP3"
    assert sniff(frame) is None
    assert sniff(frame, at_end=True) == RAW
    assert sniff(2 * frame, at_end=True) == name
    assert sniff(3 * frame) == name
    assert sniff(frame + b"\xff\xfb\x91\x44" + frame) == RAW
    assert sniff(frame + bytes(1000)) == RAW


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world.\n" * 40,
        "été à la plage, 世界 and no ASCII\n" * 40,
        "<!DOCTYPE html>\n<html>\n  <head>" + "<p>x</p>\r\n" * 60,
        "\x1b[31mcoloured\x1b[0m\n" * 50,
        "世" * 200,
    ],
)
def test_text(text: str) -> None:
    data = text.encode()
    assert sniff(data) == TEXT
    assert sniff(data[:512]) == TEXT
    assert sniff(data[:511]) is None
    assert sniff(data[:511], at_end=True) == TEXT


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", RAW),
        (b"hello\n", TEXT),
        (b"hello", RAW),  # five bytes may be two samples
        (b"hello" * 7, TEXT),
        (b"hi\n", RAW),
        (b"RIFF", RAW),
    ],
)
def test_short_streams_at_their_end(data: bytes, kind: str) -> None:
    assert sniff(data, at_end=True) == kind
    assert sniff(data) is None


@pytest.mark.parametrize("amplitude", [0, 1, 3, 30, 1000, 10_000, 32_767])
def test_noise_is_raw_at_once(amplitude: int) -> None:
    rng = np.random.default_rng(amplitude)
    for _ in range(200):
        samples = rng.integers(-amplitude, amplitude + 1, MAX_HEAD_BYTES // 2)
        assert sniff(samples.astype("<i2").tobytes()[:64]) == RAW
        # the other way round, quiet noise is full of sync words, and may be held back for long
        assert sniff(samples.astype(">i2").tobytes()) == RAW


@given(
    kind=st.sampled_from(["<i2", ">i2", "<f4"]),
    rate=st.sampled_from([8000, 16000, 48000]),
    pitch_hz=st.floats(60, 3000),
    level=st.floats(1e-4, 1.0),
    noise=st.floats(0, 0.1),
    phase=st.floats(0, 6.3),
    channels=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=500, deadline=None)
def test_voiced_sound_is_raw(
    kind: str,
    rate: int,
    pitch_hz: float,
    level: float,
    noise: float,
    phase: float,
    channels: int,
    seed: int,
) -> None:
    """Harmonics with noise, clipped as loud speech is, from any point of the wave."""
    t = np.arange(rate // 5) / rate
    wave = sum(np.sin(2 * np.pi * n * pitch_hz * t + n * phase) / n for n in (1, 2, 3))
    wave = level * wave + noise * np.random.default_rng(seed).standard_normal(len(t))
    wave = np.clip(np.repeat(wave, channels), -1, 1)
    data = (wave * 32767).astype(kind) if kind.endswith("i2") else wave.astype(kind)
    assert sniff(data.tobytes(), at_end=True) == RAW


@given(data=st.binary(max_size=600))
@settings(max_examples=500, deadline=None)
def test_a_verdict_once_given_stays(data: bytes) -> None:
    verdicts = [sniff(data[:n_bytes]) for n_bytes in range(len(data) + 1)]
    given_ones = [verdict for verdict in verdicts if verdict is not None]
    assert len(set(given_ones)) <= 1
    if given_ones:
        assert verdicts[-1] == given_ones[0] == sniff(data, at_end=True)
    else:
        assert sniff(data, at_end=True) is not None


@given(
    start=st.sampled_from([head for head, _ in HEADS] + [MP3_FRAME, b"\xff\xf1\x50\x83\xff\xff\xfc"]),
    n_bytes=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_enough_bytes_always_decide(start: bytes, n_bytes: int, seed: int) -> None:
    rest = np.random.default_rng(seed).bytes(MAX_HEAD_BYTES)
    assert sniff((start[:n_bytes] + rest)[:MAX_HEAD_BYTES]) is not None
    assert sniff((start + start[:4] * MAX_HEAD_BYTES)[:MAX_HEAD_BYTES]) is not None
