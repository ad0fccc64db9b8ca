"""The one decoder of stdin, FIFOs and sockets: what it takes, refuses, holds back and counts."""

import shutil
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.audio.pcm import PcmFormat
from voxpipe.audio.resample import Samples
from voxpipe.errors import AudioError, UsageError

from .wav_bytes import fmt, wav

NOISE = np.random.default_rng(3).integers(-3000, 3000, 4000).astype("<i2")
DECODE_FIRST = "pipe it through `ffmpeg -i - -f s16le -ar 16000 -ac 1 -`, or give the file to `voxpipe transcribe`"


def decode(decoder: AudioDecoder, data: bytes, *, size: int = 1 << 30) -> Samples:
    pieces = [decoder.push(data[i : i + size]) for i in range(0, len(data), size)]
    return np.concatenate([*pieces, decoder.finish()])


@pytest.mark.parametrize("size", [1, 3, 1000, 8000])
def test_raw_by_default(size: int) -> None:
    decoder = AudioDecoder.from_options()
    assert decoder.format is None
    samples = decode(decoder, NOISE.tobytes() + b"\1", size=size)
    assert np.array_equal(samples, NOISE / np.float32(32768))
    assert decoder.format == PcmFormat()
    assert decoder.n_leftover_bytes == 1
    assert decoder.n_ignored_bytes == 0


def test_a_wav_header_overrides_what_was_declared() -> None:
    decoder = AudioDecoder.from_options(rate=44100, channels=2)
    data = wav(NOISE.tobytes(), header=fmt(rate=8000), size=0xFFFFFFFF)
    assert len(decode(decoder, data, size=5)) == 8000
    assert decoder.format == PcmFormat(rate=8000)


def test_declared_rate_and_channels_count_for_raw_bytes() -> None:
    decoder = AudioDecoder.from_options(rate=32000, channels=2)
    assert len(decode(decoder, NOISE.tobytes())) == 1000
    assert decoder.format == PcmFormat("s16le", 32000, 2)


def test_a_named_encoding_is_obeyed_to_the_byte() -> None:
    decoder = AudioDecoder.from_options("s16be")
    assert decoder.format == PcmFormat("s16be")
    data = wav(bytes(20))
    samples = decode(decoder, data)
    assert np.array_equal(samples, np.frombuffer(data, ">i2") / np.float32(32768))
    text = b"this is u8, whatever it looks like\n" * 20
    assert len(decode(AudioDecoder.from_options("u8"), text)) == len(text)


def test_silence_is_not_held_back() -> None:
    decoder = AudioDecoder()
    assert len(decoder.push(bytes(2))) + len(decoder.push(bytes(8))) == 5


@pytest.mark.parametrize("data", [b"", b"\0", b"RI", b"RIFF\0\0\0\0WAV"])
def test_streams_that_end_at_once(data: bytes) -> None:
    decoder = AudioDecoder()
    assert len(decode(decoder, data)) == len(data) // 2
    assert decoder.n_leftover_bytes == len(data) % 2
    assert len(decoder.finish()) == 0


@given(
    data=st.one_of(
        st.binary(max_size=700),
        st.binary(max_size=100).map(lambda body: wav(body)),
        st.binary(max_size=100).map(lambda body: wav(body, header=fmt(rate=44100, channels=2))),
        st.text(max_size=200).map(str.encode),
    ),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_any_chunking_equals_the_whole(data: bytes, sizes: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[float], str]:
        decoder = AudioDecoder()
        heard: list[float] = []
        try:
            for piece in pieces:
                heard += decoder.push(piece).tolist()
            heard += decoder.finish().tolist()
        except AudioError as error:
            return heard, str(error)
        return heard, ""

    rest = data
    pieces: list[bytes] = []
    while rest:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(rest[:size])
        rest = rest[size:]
    assert outcome(pieces) == outcome([data])


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"fLaC\0\0\0\x22", "FLAC"),
        (b"OggS\0\2", "Ogg"),
        (b"ID3\3\0\0\0\0\0\0", "MP3"),
        (b"\0\0\0\x20ftypisom", "MP4/M4A"),
        (b"\x1a\x45\xdf\xa3", "Matroska/WebM"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_other_containers_are_refused(head: bytes, name: str, size: int) -> None:
    with pytest.raises(AudioError) as caught:
        decode(AudioDecoder(), head + bytes(100), size=size)
    assert str(caught.value) == (f"the input looks like {name}, not raw PCM or WAV; {DECODE_FIRST}")


@pytest.mark.parametrize(
    ("data", "quoted"),
    [
        (b"hello\n", "'hello\\n'"),
        (b"<!DOCTYPE html>\n<html><head><title>404" * 20, "'<!DOCTYPE html>\\n<html><head><tit'"),
        ("ü".encode() * 300, f"'{'ü' * 16}'"),
    ],
)
def test_text_is_refused(data: bytes, quoted: str) -> None:
    with pytest.raises(AudioError) as caught:
        decode(AudioDecoder(), data)
    assert str(caught.value) == (
        f"the input looks like text ({quoted}), not audio; pipe raw PCM or WAV, "
        "for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`"
    )


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown sample format 'wav'"):
        AudioDecoder.from_options("wav")
    with pytest.raises(UsageError, match="a sampling rate of 44 Hz is not possible"):
        AudioDecoder.from_options(rate=44)


def test_samples_before_a_second_header_that_is_damaged() -> None:
    decoder = AudioDecoder()
    data = wav(struct.pack("<2h", 1, 2)) + wav(b"", header=b"")
    assert len(decoder.push(data)) == 2
    with pytest.raises(AudioError, match="it has samples but no format"):
        decoder.finish()


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ("-c:a flac -f flac", "FLAC"),
        ("-c:a libvorbis -f ogg", "Ogg"),
        ("-c:a libopus -f webm", "Matroska/WebM"),
        ("-c:a libmp3lame -f mp3", "MP3"),
        ("-c:a libmp3lame -id3v2_version 0 -write_xing 0 -f mp3", "MP3"),
        ("-c:a aac -f adts", "AAC"),
        ("-c:a aac -movflags empty_moov -f mp4", "MP4/M4A"),
        ("-c:a pcm_s16be -f aiff", "AIFF"),
        ("-c:a pcm_s16be -f au", "AU"),
        ("-c:a wmav2 -f asf", "WMA/ASF"),
    ],
)
def test_what_ffmpeg_writes_is_recognised(rest: str, name: str) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    command = f"ffmpeg -nostdin -v error -f lavfi -i anoisesrc=d=0.3:r=24000 {rest} -".split()
    data = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=20).stdout
    with pytest.raises(AudioError, match=f"the input looks like {name}, not raw"):
        decode(AudioDecoder(), data, size=100)
