"""Files of every kind: read in blocks, by libsndfile or ffmpeg, with one clear error each."""

import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from voxpipe.audio import ffmpeg, files
from voxpipe.audio.files import AudioFile, AudioInfo, read_blocks
from voxpipe.audio.resample import Samples
from voxpipe.errors import AudioError, InputError, UnavailableError, VoxpipeError

from .wav_bytes import chunk, fmt, wav

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def tone(duration_s: float, *, rate: int = 16000, channels: int = 1) -> Samples:
    """A 440 Hz tone with a little noise, (n, channels)."""
    t = np.arange(round(duration_s * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    mono = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.01 * noise
    return np.repeat(mono[:, None], channels, axis=1).astype(np.float32)


def read(path: Path | str, *, block_s: float = files.BLOCK_S) -> Samples:
    blocks = list(read_blocks(path, block_s=block_s))
    assert all(len(block) and block.dtype == np.float32 and block.ndim == 1 for block in blocks)
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def error_of(path: Path | str, kind: type[VoxpipeError]) -> str:
    with pytest.raises(VoxpipeError) as caught:
        read(path)
    assert type(caught.value) is kind
    return str(caught.value)


def pitch_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * 16000 / len(samples))


@pytest.fixture
def no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))


def fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 16000, 1),
        ("a.wav", "PCM_24", 48000, 2),
        ("a.wav", "FLOAT", 44100, 6),
        ("a.flac", "PCM_16", 22050, 2),
        ("a.aiff", "PCM_16", 8000, 1),
        ("a.ogg", "VORBIS", 44100, 2),
        ("a.ogg", "OPUS", 48000, 1),
        ("a.mp3", "MPEG_LAYER_III", 44100, 1),
        ("a.caf", "ALAC_16", 44100, 1),
        ("no_suffix", "PCM_16", 16000, 1),
    ],
)
@pytest.mark.usefixtures("no_ffmpeg")
def test_what_libsndfile_reads(tmp_path: Path, name: str, subtype: str, rate: int, channels: int) -> None:
    path = tmp_path / name
    container = {"": "WAV"}.get(path.suffix, path.suffix[1:].upper())
    soundfile.write(path, tone(1.3, rate=rate, channels=channels), rate, subtype, None, container)
    stored, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = soxr.resample(stored.mean(axis=1), rate, 16000) if rate != 16000 else stored[:, 0]
    samples = read(path)
    assert np.array_equal(samples, expected)
    assert np.array_equal(read(path, block_s=0.0937), samples)
    assert abs(len(samples) - 1.3 * 16000) < 16
    assert abs(pitch_hz(samples) - 440) < 1
    with AudioFile(path) as file:
        assert file.info == AudioInfo(container, subtype, rate, channels, len(stored) / rate)


def test_blocks_have_about_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(5, rate=44100), 44100)
    lengths = [len(block) for block in read_blocks(str(path), block_s=1.0)]
    assert len(lengths) == 6
    assert all(abs(n - 16000) < 1000 for n in lengths[:5])
    assert sum(lengths) == 80000


@pytest.mark.parametrize("name", ["-rf.wav", "a:b.wav", "%d ü.wav", "http:x.wav", "a\nb.wav"])
def test_awkward_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / name, tone(0.5), 16000, format="WAV")
    assert len(read(name)) == 8000


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    try:
        os.rename(tmp_path / "a.wav", name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert len(read(name)) == 8000
    os.truncate(name, 0)
    assert error_of(name, AudioError) == f"{str(tmp_path)!r}"[:-1] + r"/\udcff.wav': is empty (0 bytes)"


def test_floats_that_are_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    values = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -2.0], np.float32)
    soundfile.write(path, values, 16000, subtype="FLOAT")
    assert read(path).tolist() == [0.5, 0.0, 0.0, 0.0, 32768.0, -2.0]


def test_header_without_samples(tmp_path: Path) -> None:
    for name in ("a.wav", "a.aiff"):
        soundfile.write(tmp_path / name, np.zeros(0, np.float32), 44100)
        assert len(read(tmp_path / name)) == 0


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_that_was_never_completed(tmp_path: Path, size: int) -> None:
    """A recorder that was killed leaves a header that claims no samples, or 4 GB of them."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(3 * 48000 * 4), header=fmt(rate=48000, channels=2), size=size))
    assert len(read(path, block_s=0.5)) == 3 * 16000
    with AudioFile(path) as file:
        assert file.info.rate == 48000
        assert file.info.duration_s in (None, 3.0)


def test_rf64_that_was_never_completed(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    ds64 = chunk(b"ds64", bytes(28))
    path.write_bytes(wav(bytes(32000), before=ds64, name=b"RF64", size=0xFFFFFFFF))
    assert len(read(path)) == 16000


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9])
def test_cut_flac_gives_its_good_part_then_the_position(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.flac"
    whole = tone(20)
    soundfile.write(path, whole, 16000)
    os.truncate(path, int(path.stat().st_size * keep))
    heard: list[Samples] = []
    with pytest.raises(AudioError) as caught:
        heard.extend(read_blocks(path))
    samples = np.concatenate([np.zeros(0, np.float32), *heard])
    end_s = len(samples) / 16000
    assert str(caught.value) == (
        f"{path}: damaged or cut off at {end_s:.1f} s of 20.0 s (libsndfile: flac decoder lost sync)"
    )


def test_cut_flac_yields_blocks_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    whole = tone(20, rate=32000)
    soundfile.write(path, whole, 32000)
    os.truncate(path, path.stat().st_size // 2)
    heard: list[Samples] = []
    with pytest.raises(AudioError, match=r"cut off at (9|10)\.\d s of 20\.0 s"):
        heard.extend(read_blocks(path, block_s=1.0))
    samples = np.concatenate(heard)
    assert 9 * 16000 < len(samples) < 11 * 16000
    expected = soxr.resample(whole[: len(samples) * 2, 0], 32000, 16000)
    assert np.abs(samples - expected).max() < 1e-3


def test_damage_in_the_middle_of_mp3(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(20), 16000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    message = error_of(path, AudioError)
    assert message.startswith(f"{path}: damaged or cut off at ")
    assert message.endswith(" s of 20.0 s (libsndfile: Unspecified internal error)")


def test_cut_mp3_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(20), 16000)
    os.truncate(path, path.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        end_s = len(read(path)) / 16000
    assert 9 < end_s < 11
    assert caplog.messages == [f"{path}: ends at {end_s:.1f} s, its header says 20.0 s"]


def test_mp3_files_put_behind_each_other(tmp_path: Path) -> None:
    """Each has a header with its own length; libsndfile alone stops at the first one's end."""
    data = b""
    for duration_s, rate in ((2, 44100), (5, 16000), (1, 44100)):
        soundfile.write(tmp_path / "part.mp3", tone(duration_s, rate=rate), rate)
        data += (tmp_path / "part.mp3").read_bytes()
    path = tmp_path / "whole.mp3"
    path.write_bytes(data + b"TAG" + bytes(125))
    n_open = len(os.listdir("/dev/fd"))
    samples = read(path, block_s=0.7)
    assert abs(len(samples) / 16000 - 8) < 0.2
    assert abs(pitch_hz(samples[4 * 16000 : 6 * 16000]) - 440) < 1
    blocks = read_blocks(path, block_s=0.7)
    assert len([next(blocks) for _ in range(5)]) == 5
    blocks.close()  # type: ignore[attr-defined]  # in the second part
    assert len(os.listdir("/dev/fd")) == n_open


@needs_ffmpeg
def test_mp3_whose_bit_rate_falls(source: Path) -> None:
    """Without a table of contents its length is guessed, from the first frames: far too short."""
    plain = ("-write_xing", "0", "-id3v2_version", "0", "-b:a")
    loud = encode(source, source.parent / "a.mp3", *plain, "320k")
    poor = encode(source, source.parent / "b.mp3", *plain, "32k")
    path = source.parent / "c.mp3"
    path.write_bytes(loud.read_bytes() + 5 * poor.read_bytes())
    with AudioFile(path) as file:
        assert file.info.duration_s is not None
        assert file.info.duration_s < 6
    assert abs(len(read(path)) / 16000 - 18) < 0.5


@pytest.mark.usefixtures("no_ffmpeg")
def test_an_impossible_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(20), header=fmt(rate=400)))
    assert error_of(path, AudioError) == (
        f"{path}: cannot use audio sampled at 400 Hz: the rate must be between 1000 and 768000 Hz"
    )


def test_things_that_are_no_files(tmp_path: Path) -> None:
    missing, fifo, loop = tmp_path / "missing.wav", tmp_path / "fifo", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    stream = "is a FIFO, socket or device; streams are read by `voxpipe listen`"
    assert error_of(missing, InputError) == f"{missing}: No such file or directory"
    assert error_of(tmp_path, InputError) == (f"{tmp_path}: is a directory; name its files")
    assert error_of(fifo, InputError) == f"{fifo}: {stream}"
    assert error_of("/dev/null", InputError) == f"/dev/null: {stream}"
    assert error_of(loop, InputError).startswith(f"{loop}: ")
    assert error_of("a\0b", InputError) == r"'a\x00b': embedded null byte"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert error_of(tmp_path / "s", InputError) == f"{tmp_path / 's'}: {stream}"


def test_symlinks_are_followed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    (tmp_path / "link").symlink_to("a.wav")
    assert len(read(tmp_path / "link")) == 8000


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.5), 16000)
    if os.geteuid() == 0:  # root may read anything: let the system call say no

        def refuse(path: str, flags: int) -> int:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.chmod(0)
    assert error_of(path, InputError) == f"{path}: Permission denied"


def test_empty_text_and_headerless(tmp_path: Path) -> None:
    empty, text, raw = tmp_path / "empty.wav", tmp_path / "notes.mp3", tmp_path / "a.pcm"
    empty.touch()
    text.write_text("#EXTM3U\nhttp://example.org/secret.mp3\n")
    raw.write_bytes(bytes(32000))
    assert error_of(empty, AudioError) == f"{empty}: is empty (0 bytes)"
    assert error_of(text, AudioError) == f"{text}: is text, not audio"
    assert error_of(raw, AudioError) == (
        f"{raw}: has no header that says what it holds; say it, for example "
        "`voxpipe listen --format s16le --rate 16000 --channels 1 - < FILE`"
    )


def test_blocks_once_and_of_some_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    with AudioFile(tmp_path / "a.wav") as file:
        with pytest.raises(ValueError, match="block_s must be positive, not 0"):
            file.blocks(block_s=0)
        assert sum(map(len, file.blocks())) == 8000
        with pytest.raises(RuntimeError, match="reads a file once"):
            file.blocks()


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_an_hour_never_sits_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    minute = np.zeros(60 * 8000, np.int16)
    minute[::50] = 1000
    with soundfile.SoundFile(path, "w", 8000, 1, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    tracemalloc.start()
    try:
        n_samples = sum(len(block) for block in read_blocks(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_samples == 3600 * 16000
    assert peak_bytes < 8 << 20  # the hour is 230 MB


def test_an_open_wav_of_an_hour_never_sits_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(b"", size=0))
    os.truncate(path, 44 + 3600 * 32000)
    tracemalloc.start()
    try:
        assert sum(len(block) for block in read_blocks(path)) == 3600 * 16000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# Channels kept apart


def split(path: Path, *, block_s: float = files.BLOCK_S) -> Samples:
    with AudioFile(path, split=True) as file:
        return np.concatenate(list(file.blocks(block_s=block_s)))


def pitches(rate: int, channels: int) -> Samples:
    """(n, channels): 300 Hz in the first, 400 Hz in the second, and so on."""
    t = np.arange(2 * rate) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (300 + 100 * n) * t) for n in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_24", 16000, 6),
        ("a.wav", "PCM_16", 8000, 1),
        ("a.flac", "PCM_24", 192000, 2),
        ("a.ogg", "VORBIS", 44100, 2),
        ("a.mp3", "MPEG_LAYER_III", 48000, 2),
    ],
)
@pytest.mark.usefixtures("no_ffmpeg")
def test_each_channel_as_if_it_were_alone(tmp_path: Path, name: str, subtype: str, rate: int, channels: int) -> None:
    path = tmp_path / name
    soundfile.write(path, pitches(rate, channels), rate, subtype)
    stored, _ = soundfile.read(path, dtype="float32", always_2d=True)
    heard = split(path)
    assert heard.shape[1] == channels
    for n in range(channels):
        alone = soxr.resample(stored[:, n], rate, 16000) if rate != 16000 else stored[:, n]
        assert np.array_equal(heard[:, n], alone)
        assert abs(pitch_hz(heard[:, n]) - (300 + 100 * n)) < 1
    assert np.array_equal(split(path, block_s=0.0937), heard)


def test_channels_that_cannot_be_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "many.wav"
    soundfile.write(path, np.zeros((100, 17), np.float32), 16000)
    with pytest.raises(AudioError) as caught:
        split(path)
    assert str(caught.value) == (
        f"{path}: its channels cannot be kept apart: it has 17 of them, and 16 are the most; or use `--channels mix`"
    )
    path.write_bytes(wav(bytes(48000 * 4), header=fmt(rate=48000, channels=2), size=0))
    with pytest.raises(AudioError, match="its header was never completed"):
        split(path)
    assert len(read(path)) == 16000
    data = b""
    for channels in (2, 1):
        soundfile.write(tmp_path / "part.mp3", tone(2, channels=channels), 16000)
        data += (tmp_path / "part.mp3").read_bytes()
    (tmp_path / "both.mp3").write_bytes(data)
    with pytest.raises(AudioError, match=r"goes from 2 to 1 channels at 2\.\d s"):
        split(tmp_path / "both.mp3")


def test_a_header_that_promises_ten_hours(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(32000), size=36000 * 32000))
    assert len(read(path)) == 16000
    assert split(path).shape == (16000, 1)


# What takes ffmpeg


def encode(source: Path, target: Path, *options: str) -> Path:
    """Have ffmpeg make `target` from `source`."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", f"file:{source}", *options]
    subprocess.run([*command, f"file:{target}"], check=True, timeout=60)
    return target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.wav"
    soundfile.write(path, tone(3, rate=44100, channels=2), 44100)
    return path


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "container", "encoding", "rate"),
    [
        ("a.m4a", "MP4/M4A", "aac", 44100),
        ("a.webm", "Matroska/WebM", "opus", 48000),
        ("a.aac", "AAC", "aac", 44100),
        ("a.wma", "WMA/ASF", "wmav2", 44100),
        ("-rf a:b %d ü.m4a", "MP4/M4A", "aac", 44100),
    ],
)
def test_what_ffmpeg_reads(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    container: str,
    encoding: str,
    rate: int,
) -> None:
    monkeypatch.chdir(source.parent)
    path = encode(source, source.parent / name)
    samples = read(name, block_s=1.0)
    assert abs(len(samples) - 3 * 16000) < 3000  # codecs pad
    assert abs(pitch_hz(samples) - 440) < 1
    with AudioFile(path) as file:
        info = file.info
    assert (info.container, info.encoding, info.channels) == (container, encoding, 2)
    if shutil.which("ffprobe"):
        assert info.rate == rate
        assert info.duration_s == pytest.approx(3, abs=0.3)
    lengths = [len(block) for block in read_blocks(name, block_s=1.0)]
    assert lengths[:2] == [16000, 16000]


@needs_ffmpeg
def test_channels_through_ffmpeg(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", pitches(48000, 6), 48000)
    path = encode(tmp_path / "a.wav", tmp_path / "-a:b.mka", "-c:a", "pcm_s24le")
    heard = split(path, block_s=0.3)
    assert heard.shape == (32000, 6)
    assert [round(pitch_hz(heard[:, n])) for n in range(6)] == [300, 400, 500, 600, 700, 800]
    silent = tmp_path / "silent.mp4"
    command = "ffmpeg -nostdin -v error -f lavfi -i testsrc=d=1:s=64x64"
    subprocess.run([*command.split(), str(silent)], check=True, timeout=60)
    with pytest.raises(AudioError, match="it has no audio track"):
        split(silent)


def test_channels_without_ffprobe(scripted: Path) -> None:
    (scripted.parent / "bin" / "ffprobe").unlink()
    os.environ["PATH"] = str(scripted.parent / "bin")
    fake_program(scripted.parent / "bin", "ffmpeg", "exit 1")
    with pytest.raises(UnavailableError, match="how many channels it has takes ffprobe, which is not on PATH"):
        split(scripted)


@needs_ffmpeg
def test_sound_of_a_video(source: Path) -> None:
    path = source.parent / "a.mkv"
    command = "ffmpeg -nostdin -v error -f lavfi -i testsrc=d=1:s=64x64 -f lavfi -i sine=d=1"
    subprocess.run([*command.split(), str(path)], check=True, timeout=60)
    assert abs(len(read(path)) - 16000) < 200


@needs_ffmpeg
def test_files_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    command = "ffmpeg -nostdin -v error -f lavfi -i testsrc=d=1:s=64x64"
    subprocess.run([*command.split(), str(path)], check=True, timeout=60)
    assert error_of(path, AudioError) == f"{path}: it has no audio track"


@needs_ffmpeg
def test_files_that_ffmpeg_cannot_read_either(source: Path) -> None:
    path = encode(source, source.parent / "a.m4a")
    os.truncate(path, path.stat().st_size // 2)  # the index was at the end
    assert error_of(path, AudioError) == (
        f"{path}: not audio, or damaged (ffmpeg: moov atom not found; Invalid data found when processing input)"
    )
    noise = source.parent / "noise.xyz"
    noise.write_bytes(np.random.default_rng(1).bytes(5000))
    assert error_of(noise, AudioError).startswith(f"{noise}: not audio, or damaged (ffmpeg: ")
    flac = source.parent / "a.flac"
    flac.write_bytes(b"fLaC" + bytes(100))
    assert error_of(flac, AudioError).startswith(f"{flac}: not audio, or damaged (ffmpeg: ")


@needs_ffmpeg
def test_a_playlist_opens_nothing(source: Path) -> None:
    """ffmpeg would follow a playlist that does not look like text to us; it may not leave."""
    path = source.parent / "list.m3u8"
    path.write_bytes(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n\0")
    assert error_of(path, AudioError).startswith(f"{path}: ")


@pytest.mark.usefixtures("no_ffmpeg")
@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A \0\0\2\0", "MP4/M4A"),
        ("a", b"\x1a\x45\xdf\xa3\1\0\0\0", "Matroska/WebM"),
        ("a.XYZ", b"\xc1\x01\xfe\x33" * 99, ".xyz"),
        ("a", b"\xc1\x01\xfe\x33" * 99, "unknown"),
    ],
)
def test_without_ffmpeg(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert error_of(path, UnavailableError) == (
        f"{path}: reading it ({what}) takes ffmpeg, which is not on PATH; "
        "install it with `apt install ffmpeg` or `brew install ffmpeg`"
    )


@pytest.mark.usefixtures("no_ffmpeg")
def test_damage_without_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC" + bytes(100))
    message = error_of(path, AudioError)
    assert message.startswith(f"{path}: damaged, or FLAC with a codec that only ffmpeg reads ")
    assert message.endswith("; ffmpeg is not on PATH)")


# A scripted ffmpeg shows what the real one does only on a bad day.

HEADER_MP4 = b"\0\0\0\x20ftypM4A \0\0\2\0"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file for ffmpeg; the test puts its ffmpeg into `bin` beside it."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    fake_program(tmp_path / "bin", "ffprobe", "exit 1")
    path = tmp_path / "a.m4a"
    path.write_bytes(HEADER_MP4)
    yield path
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left, not even a zombie


def test_ffmpeg_is_given_the_path_and_nothing_to_misread(scripted: Path) -> None:
    arguments = scripted.parent / "arguments"
    fake_program(scripted.parent / "bin", "ffmpeg", f'printf "%s\\n" "$@" > {arguments}')
    assert len(read(scripted)) == 0
    assert arguments.read_text().split("\n")[:-1] == [
        *("-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{scripted}"),
        *("-vn", "-f", "f32le", "-ar", "16000", "-ac", "1", "pipe:1"),
    ]


def test_ffmpeg_dies_on_the_way(scripted: Path) -> None:
    script = 'head -c 96002 /dev/zero; echo "[mov @ 0x55d] bad things" >&2; exit 3'
    fake_program(scripted.parent / "bin", "ffmpeg", script)
    heard: list[int] = []
    with pytest.raises(AudioError) as caught:
        heard.extend(len(block) for block in read_blocks(scripted, block_s=1.0))
    assert heard == [16000, 8000]
    assert str(caught.value) == f"{scripted}: damaged at about 1.5 s (ffmpeg: bad things)"


def test_ffmpeg_complains_and_ends_well_without_a_sample(scripted: Path) -> None:
    fake_program(scripted.parent / "bin", "ffmpeg", "echo 'Error while decoding' >&2")
    assert error_of(scripted, AudioError) == (f"{scripted}: not audio, or damaged (ffmpeg: Error while decoding)")


def test_ffmpeg_is_killed_by_a_signal_without_a_word(scripted: Path) -> None:
    fake_program(scripted.parent / "bin", "ffmpeg", "kill -9 $$")
    assert error_of(scripted, AudioError) == (f"{scripted}: not audio, or damaged (ffmpeg: it says nothing)")


def test_ffmpeg_complains_without_end(scripted: Path) -> None:
    """More complaints than a pipe or memory should hold, then sound: neither blocks nor grows."""
    script = "yes 'a complaint' | head -c 3000000 >&2; head -c 64000 /dev/zero"
    fake_program(scripted.parent / "bin", "ffmpeg", script)
    tracemalloc.start()
    try:
        assert len(read(scripted)) == 16000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_ffmpeg_hangs(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "STALL_S", 0.2)
    fake_program(scripted.parent / "bin", "ffmpeg", "exec sleep 60")
    began = time.monotonic()
    assert error_of(scripted, AudioError) == f"{scripted}: ffmpeg got nothing out of it for 0 s"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("how", ["iterator", "file", "exception"])
def test_leaving_early_leaves_no_child(scripted: Path, how: str) -> None:
    pid_file = scripted.parent / "pid"
    fake_program(scripted.parent / "bin", "ffmpeg", f"echo $$ > {pid_file}; exec cat /dev/zero")
    if how == "iterator":
        blocks = read_blocks(scripted, block_s=0.1)
        assert len(next(blocks)) == 1600
        blocks.close()  # type: ignore[attr-defined]
    elif how == "file":
        with AudioFile(scripted) as file:
            assert len(next(file.blocks(block_s=0.1))) == 1600
    else:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the loop is what is left early
            for _ in read_blocks(scripted, block_s=0.1):
                raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_ffmpeg_has_a_process_group_of_its_own(scripted: Path) -> None:
    """Ctrl-C on the terminal must not end it under us: what was heard is still to be decoded."""
    group = scripted.parent / "group"
    code = f"import os; open('{group}', 'w').write(str(os.getpgid(0) == os.getpid()))"
    fake_program(scripted.parent / "bin", "ffmpeg", f'exec {sys.executable} -c "{code}"')
    assert len(read(scripted)) == 0
    assert group.read_text() == "True"


def test_ffprobe_answers_nonsense(scripted: Path) -> None:
    fake_program(scripted.parent / "bin", "ffmpeg", "exit 0")
    for answer in ("", "{}", '{"streams": [{"sample_rate": "x"}]}', "[1"):
        fake_program(scripted.parent / "bin", "ffprobe", f"echo '{answer}'")
        with AudioFile(scripted) as file:
            assert file.info == AudioInfo("MP4/M4A")


def test_a_wav_that_was_never_completed_and_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = wav(b"", size=0, header=fmt(3, bits=64, channels=65))
    path.write_bytes(data + struct.pack("<65d", *[0.0] * 65))
    assert error_of(path, AudioError) == (
        f"{path}: the WAV header is damaged: 65 channels are not possible: use 1 to 64"
    )
