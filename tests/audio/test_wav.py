"""WAV through a pipe: every writer's header, damaged ones, and what follows the samples."""

import shutil
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.audio.pcm import PcmFormat
from voxpipe.audio.resample import Samples
from voxpipe.audio.wav import MAX_HEADER_BYTES, WavDecoder
from voxpipe.errors import AudioError

from .wav_bytes import chunk, fmt, wav

VALUES = (1, -2, 300, -32768, 32767, 77)
PCM = struct.pack("<6h", *VALUES)
EXPECTED = [value / 32768 for value in VALUES]
LIST = chunk(b"LIST", b"INFOISFT\x0e\x00\x00\x00Lavf59.27.100\x00")
OPEN_SIZES = [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFEFFC, 0x7FFFFF00, 0x80000000]


def decode(data: bytes, *, size: int = 1 << 30) -> tuple[WavDecoder, Samples]:
    """Decode `data`, pushed in pieces of `size` bytes."""
    decoder = WavDecoder()
    pieces = [decoder.push(data[i : i + size]) for i in range(0, len(data), size)]
    return decoder, np.concatenate([*pieces, decoder.finish()])


def error_of(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("open_size", OPEN_SIZES)
@pytest.mark.parametrize("before", [b"", LIST, chunk(b"bext", b"odd") + chunk(b"JUNK", bytes(28))])
def test_sizes_of_pipes_last_until_the_end(open_size: int, before: bytes, size: int) -> None:
    riff_size = (open_size + 36) & 0xFFFFFFFF
    data = wav(PCM, header=before + fmt() + before, size=open_size, riff_size=riff_size)
    decoder, samples = decode(data, size=size)
    assert samples.tolist() == EXPECTED
    assert decoder.format == PcmFormat("s16le", 16000, 1)
    assert decoder.n_leftover_bytes == decoder.n_ignored_bytes == 0


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_true_size_ends_the_samples(size: int) -> None:
    data = wav(PCM, after=LIST + chunk(b"id3 ", b"odd") + chunk(b"cue ", b"x" * 100))
    decoder, samples = decode(data, size=size)
    assert samples.tolist() == EXPECTED
    assert decoder.n_ignored_bytes == 0


def test_samples_come_out_before_the_input_ends() -> None:
    decoder = WavDecoder()
    data = wav(bytes(2 * 4410), header=fmt(rate=44100), after=LIST)
    assert len(decoder.push(data)) == 1600  # the resampler's tail included


def test_rubbish_after_the_samples_is_counted() -> None:
    decoder, samples = decode(wav(PCM) + bytes(1000), size=333)
    assert samples.tolist() == EXPECTED
    assert decoder.n_ignored_bytes == 1000


@pytest.mark.parametrize("size", [1, 13, 1000])
def test_recordings_in_a_row(size: int) -> None:
    second = struct.pack(">2h", 5, 6)
    tags = chunk(b"LIST", bytes(20), order=">")
    data = wav(PCM, after=LIST) + wav(second, name=b"RIFX", after=tags) + wav(PCM + b"\1", size=13) + wav(PCM)
    decoder, samples = decode(data, size=size)
    assert samples.tolist() == [*EXPECTED, 5 / 32768, 6 / 32768, *EXPECTED, *EXPECTED]
    assert decoder.format == PcmFormat("s16le")
    assert decoder.n_leftover_bytes == 1
    assert decoder.n_ignored_bytes == 0


@pytest.mark.parametrize("name", [b"LIST", b"JUNK"])
def test_odd_chunks_with_and_without_their_pad_byte(name: bytes) -> None:
    padded = chunk(name, b"odd")
    for before in (padded, padded[:-1]):
        assert decode(wav(PCM, before=before))[1].tolist() == EXPECTED


def test_rf64() -> None:
    def ds64(size: int) -> bytes:
        return chunk(b"ds64", struct.pack("<QQQI", size + 72, size, 0, 0))

    for name in (b"RF64", b"BW64"):
        for size, after, expected in ((len(PCM), LIST, EXPECTED), (0, b"", EXPECTED)):
            data = wav(
                PCM,
                name=name,
                before=ds64(size),
                after=after,
                size=0xFFFFFFFF,
                riff_size=0xFFFFFFFF,
            )
            assert decode(data)[1].tolist() == expected


@pytest.mark.parametrize(
    ("header", "data", "expected"),
    [
        (fmt(bits=8), b"\x00\x80\xc0", PcmFormat("u8")),
        (fmt(bits=24), bytes(6), PcmFormat("s24le")),
        (fmt(bits=20), bytes(6), PcmFormat("s24le")),
        (fmt(bits=32), bytes(8), PcmFormat("s32le")),
        (fmt(3, bits=32), bytes(8), PcmFormat("f32le")),
        (fmt(3, bits=64), bytes(8), PcmFormat("f64le")),
        (fmt(6, bits=8, rate=8000), bytes(8), PcmFormat("alaw", 8000)),
        (fmt(7, bits=8, rate=8000), bytes(8), PcmFormat("mulaw", 8000)),
        (fmt(bits=16, channels=6, rate=48000), bytes(24), PcmFormat("s16le", 48000, 6)),
        (fmt(bits=24, extensible=True), bytes(6), PcmFormat("s24le")),
        (fmt(3, bits=32, channels=2, extensible=True), bytes(8), PcmFormat("f32le", 16000, 2)),
    ],
)
def test_formats(header: bytes, data: bytes, expected: PcmFormat) -> None:
    decoder, samples = decode(wav(data, header=header), size=11)
    assert decoder.format == expected
    n_frames = len(data) // expected.n_frame_bytes
    assert len(samples) == round(n_frames * 16000 / expected.rate)


def test_rifx() -> None:
    header = fmt(bits=24, channels=2, extensible=True, order=">")
    decoder, samples = decode(wav(b"\x40\0\0" * 2, header=header, name=b"RIFX"))
    assert decoder.format == PcmFormat("s24be", 16000, 2)
    assert samples.tolist() == [0.5]


def test_block_align_of_zero() -> None:
    header = bytearray(fmt())
    header[8 + 12 : 8 + 14] = bytes(2)
    assert decode(wav(PCM, header=bytes(header)))[1].tolist() == EXPECTED


def test_24_bits_in_4_bytes() -> None:
    body = struct.pack("<HHIIHH", 1, 1, 16000, 64000, 4, 24)
    decoder, samples = decode(wav(struct.pack("<i", 1 << 30), header=chunk(b"fmt ", body)))
    assert decoder.format == PcmFormat("s32le")
    assert samples.tolist() == [0.5]


@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from([(1, 8), (1, 16), (1, 24), (3, 32), (7, 8)]),
    rate=st.sampled_from([8000, 16000, 44100]),
    channels=st.integers(1, 3),
    before=st.lists(st.binary(max_size=9), max_size=3),
    true_size=st.booleans(),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_any_chunking_equals_the_whole(
    data: bytes,
    kind: tuple[int, int],
    rate: int,
    channels: int,
    before: list[bytes],
    true_size: bool,
    sizes: list[int],
) -> None:
    stream = wav(
        data,
        header=fmt(kind[0], bits=kind[1], rate=rate, channels=channels, extensible=true_size),
        before=b"".join(chunk(b"JUNK", body) for body in before),
        after=LIST if true_size and data else b"",
        size=None if true_size else 0xFFFFFFFF,
    )
    _, whole = decode(stream)
    chunked = WavDecoder()
    pieces: list[Samples] = []
    while stream:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(chunked.push(stream[:size]))
        stream = stream[size:]
    assert np.array_equal(np.concatenate([*pieces, chunked.finish()]), whole)


@given(data=st.binary(max_size=300), cut=st.integers(0, 60), size=st.integers(1, 80))
@settings(max_examples=300, deadline=None)
def test_damaged_headers_end_in_samples_or_one_clear_error(data: bytes, cut: int, size: int) -> None:
    stream = wav(PCM, before=LIST)[:cut] + data
    try:
        _, samples = decode(stream, size=size)
    except AudioError as error:
        assert "\n" not in str(error)  # noqa: PT017 - an error is one of two good ends
    else:
        assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the WAV header is cut off: the input ended inside it"),
        (wav(PCM)[:20], "the WAV header is cut off: the input ended inside it"),
        (wav(PCM)[:43], "the WAV header is cut off: the input ended inside it"),
        (
            wav(PCM, header=b""),
            "the WAV header is damaged: it has samples but no format",
        ),
        (
            wav(PCM, before=chunk(b"JUNK", b"", size=1 << 30)),
            "the WAV header is damaged: 1073741844 bytes and still no samples (chunk b'JUNK' of 1073741824 bytes)",
        ),
        (
            wav(PCM, header=chunk(b"fmt ", b"", size=5000)),
            "the WAV header is damaged: chunk b'fmt ' claims 5000 bytes",
        ),
        (
            wav(PCM, header=chunk(b"fmt ", bytes(10))),
            "the WAV header is damaged: a format of 10 bytes",
        ),
        (
            wav(PCM, header=fmt(rate=3)),
            "the WAV header is damaged: a sampling rate of 3 Hz is not possible: give it in Hz, from 1000 to 768000",
        ),
        (
            wav(PCM, header=fmt(channels=0)),
            "the WAV header is damaged: 0 channels are not possible: use 1 to 64",
        ),
        (
            wav(PCM, header=fmt(channels=1000)),
            "the WAV header is damaged: 1000 channels are not possible: use 1 to 64",
        ),
        (
            wav(PCM, header=fmt(0x55, bits=0)),
            "this WAV stream holds MP3 of 0 bits, not PCM; "
            "pipe it through `ffmpeg -i - -f s16le -ar 16000 -ac 1 -`, "
            "or give the file to `voxpipe transcribe`",
        ),
        (
            wav(PCM, header=fmt(0x1234, bits=7)),
            "this WAV stream holds codec 0x1234 of 7 bits, not PCM; "
            "pipe it through `ffmpeg -i - -f s16le -ar 16000 -ac 1 -`, "
            "or give the file to `voxpipe transcribe`",
        ),
        (b"RIFF\0\0\0\0AVI LIST", r"expected a WAV header, found b'RIFF\x00\x00\x00\x00AVI '"),
    ],
)
def test_errors(data: bytes, message: str) -> None:
    assert error_of(data) == message


def test_an_error_follows_the_samples_before_it_and_stays() -> None:
    """The second recording is damaged: in one push, the first is heard all the same."""
    decoder = WavDecoder()
    assert decoder.push(wav(PCM) + wav(PCM, header=b"")).tolist() == EXPECTED
    for _ in range(2):
        with pytest.raises(AudioError, match="it has samples but no format"):
            decoder.push(b"more")
    with pytest.raises(AudioError, match="it has samples but no format"):
        decoder.finish()


def test_a_header_without_end_is_given_up_in_bounded_memory() -> None:
    decoder = WavDecoder()
    decoder.push(b"RIFF\0\0\0\0WAVE")
    junk = chunk(b"JUNK", bytes(1 << 16))
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="the WAV header is damaged: 16"):  # noqa: PT012 - at some push
            for _ in range(2 * MAX_HEADER_BYTES // len(junk)):
                decoder.push(junk)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_open_stream_keeps_nothing() -> None:
    decoder = WavDecoder()
    decoder.push(wav(b"", size=0xFFFFFFFF))
    second = bytes(32000)
    tracemalloc.start()
    try:
        assert sum(len(decoder.push(second)) for _ in range(600)) == 600 * 16000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_open_stream_goes_on_beyond_the_size_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter:
        n_bytes = n_leftover_bytes = 0

        def __init__(self, pcm_format: PcmFormat) -> None:
            pass

        def push(self, data: bytes) -> Samples:
            Counter.n_bytes += len(data)
            return np.zeros(0, np.float32)

        def finish(self) -> Samples:
            return np.zeros(0, np.float32)

    monkeypatch.setattr("voxpipe.audio.wav.RawDecoder", Counter)
    decoder = WavDecoder()
    decoder.push(wav(b"", size=0x7FFFF000))  # sox: 18 hours of 16 kHz mono
    piece = bytes(1 << 24)
    for _ in range(129):
        decoder.push(piece)
    assert Counter.n_bytes == 129 << 24


FFMPEG_TONE = "ffmpeg -nostdin -v error -f lavfi -i sine=f=440:d=0.5:r={rate} -ac {channels} {rest} -"
SOX_TONE = "sox -V0 -n -r {rate} -c {channels} {rest} -t wav - synth 0.5 sine 440"


@pytest.mark.parametrize(
    ("command", "rate", "channels", "rest", "encoding"),
    [
        (FFMPEG_TONE, 16000, 1, "-f wav", "s16le"),
        (FFMPEG_TONE, 48000, 2, "-c:a pcm_s24le -f wav", "s24le"),
        (FFMPEG_TONE, 48000, 6, "-c:a pcm_f32le -f wav", "f32le"),
        (FFMPEG_TONE, 44100, 1, "-rf64 always -f wav", "s16le"),
        (FFMPEG_TONE, 8000, 1, "-c:a pcm_mulaw -f wav", "mulaw"),
        (SOX_TONE, 16000, 1, "-b 16", "s16le"),
        (SOX_TONE, 44100, 2, "-b 24", "s24le"),
        (SOX_TONE, 8000, 1, "-e float -b 32", "f32le"),
        (SOX_TONE, 16000, 1, "-b 16 -B", "s16be"),
        (SOX_TONE, 8000, 1, "-e a-law", "alaw"),
    ],
)
def test_real_writers_into_a_pipe(command: str, rate: int, channels: int, rest: str, encoding: str) -> None:
    words = command.format(rate=rate, channels=channels, rest=rest).split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    data = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=20).stdout
    decoder, samples = decode(data, size=1234)
    assert decoder.format == PcmFormat(encoding, rate, channels)
    assert len(samples) == 8000
    assert decoder.n_leftover_bytes == decoder.n_ignored_bytes == 0
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() == 220  # of 0.5 s: 440 Hz


def test_real_arecord_into_a_pipe() -> None:
    if shutil.which("arecord") is None:
        pytest.skip("arecord is not installed")
    command = ["arecord", "-q", "-D", "null", "-f", "S16_LE", "-c", "2", "-r", "48000", "-t", "wav"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        try:
            data = process.stdout.read(44 + 4 * 48000)
        finally:
            process.kill()
    decoder, samples = decode(data)
    assert decoder.format == PcmFormat("s16le", 48000, 2)
    assert len(samples) == 16000
