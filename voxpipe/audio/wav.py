"""WAV as it comes through a pipe: RIFF, RIFX, RF64 and BW64 bytes -> mono 16 kHz samples.

A pipe cannot be rewound, so writers leave sizes blank: ffmpeg writes 0xFFFFFFFF, sox 0x7FFFF000,
arecord 0x80000000, others 0. Such a data chunk lasts until the end of input. One with a real size
ends there: the chunks after it are not sound, and a further RIFF header starts the next recording
(`cat *.wav`, or two writers that followed each other on a FIFO). Nothing is kept but the piece of
the header being read. This module knows nothing of files; other codecs than PCM it names and
refuses.

Source: Microsoft's RIFF/WAVE (1991) and WAVE_FORMAT_EXTENSIBLE, EBU Tech 3306 (RF64).
"""

import struct
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from voxpipe.audio.pcm import Bytes, PcmFormat, RawDecoder
from voxpipe.audio.resample import EMPTY, Samples
from voxpipe.errors import AudioError, UsageError

MAX_HEADER_BYTES = 1 << 24  # before the samples; the longest seen hold a cover picture
MAX_KEPT_CHUNK_BYTES = 4096  # `fmt ` has 16 to 40 bytes, `ds64` 28 and a table
MIN_OPEN_SIZE = 0x7F00_0000  # a writer that did not know the size; a true one gives 2 GB of sound
PRINTABLE = range(0x20, 0x7F)  # chunk names are made of these
DECODE_FIRST = "pipe it through `ffmpeg -i - -f s16le -ar 16000 -ac 1 -`, or give the file to `voxpipe transcribe`"

_RIFF_NAMES = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_EXTENSIBLE = 0xFFFE
_ENCODINGS = {
    # (format tag, bytes a sample) -> encoding, less its byte order
    (1, 1): "u8",
    (1, 2): "s16",
    (1, 3): "s24",
    (1, 4): "s32",
    (3, 4): "f32",
    (3, 8): "f64",
    (6, 1): "alaw",
    (7, 1): "mulaw",
}
_CODEC_NAMES = {0x02: "MS ADPCM", 0x11: "IMA ADPCM", 0x31: "GSM 6.10", 0x50: "MP2", 0x55: "MP3"}

_Walk = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class _Header:
    format: PcmFormat
    n_data_bytes: int | None  # None: until the end of input
    byte_order: str  # of struct: "<" or ">"


class _InputEndError(Exception):
    """The input ended where the walk wanted more."""


class WavDecoder:
    """A WAV stream, decoded as its header says to mono float32 at 16 kHz.

    `format` is None until the header has been read. `n_leftover_bytes` counts bytes that filled no
    frame, `n_ignored_bytes` what followed a complete data chunk and was no chunk itself.
    """

    def __init__(self) -> None:
        self.format: PcmFormat | None = None
        self.n_leftover_bytes = 0
        self.n_ignored_bytes = 0
        self._buffer = bytearray()  # input the walk has not taken yet
        self._output: list[Samples] = []
        self._at_end = False
        self._error: AudioError | None = None
        self._walk = self._walk_recordings()  # runs until it lacks input; `_advance` wakes it

    def push(self, data: Bytes) -> Samples:
        """Return the (m,) samples that `data` completes.

        Raises:
            AudioError: the header is damaged or its codec is not PCM. Samples from before the
                damage are returned first, the error is raised by the next call.
        """
        self._buffer += data
        return self._advance()

    def finish(self) -> Samples:
        """Return the (m,) samples still held back.

        Raises:
            AudioError: as `push`, or the input ended inside a header.
        """
        self._at_end = True
        return self._advance()

    def _advance(self) -> Samples:
        if self._error is None:
            try:
                next(self._walk, None)
            except AudioError as error:
                self._error = error
        output, self._output = self._output, []
        if self._error is not None:
            self._buffer.clear()
            if not output:
                raise self._error
        return np.concatenate(output) if output else EMPTY

    def _walk_recordings(self) -> _Walk:
        """Read recordings until the input ends, appending their samples to `_output`."""
        try:
            riff = yield from self._take(12)
            while riff:
                header = yield from self._read_header(riff)
                self.format = header.format
                yield from self._decode_data(header)
                riff = yield from self._find_next_riff(header)
        except _InputEndError:
            raise AudioError("the WAV header is cut off: the input ended inside it") from None

    def _read_header(self, riff: bytes) -> Generator[None, None, _Header]:
        """Read on from the 12 bytes `riff` to the first sample."""
        if riff[:4] not in _RIFF_NAMES or riff[8:] != b"WAVE":
            raise AudioError(f"expected a WAV header, found {riff!r}")
        order = ">" if riff.startswith(b"RIFX") else "<"
        pcm_format: PcmFormat | None = None
        n_data_bytes_64 = 0
        n_header_bytes = len(riff)
        while True:
            name, size = struct.unpack(f"{order}4sI", (yield from self._take(8)))
            if name == b"data":
                break
            n_header_bytes += 8 + size
            if n_header_bytes > MAX_HEADER_BYTES:
                raise AudioError(
                    f"the WAV header is damaged: {n_header_bytes} bytes and still no samples "
                    f"(chunk {name!r} of {size} bytes)"
                )
            if name == b"fmt ":
                pcm_format = _parse_format((yield from self._take_kept(name, size)), order)
            elif name == b"ds64":
                body = yield from self._take_kept(name, size)
                n_data_bytes_64 = int.from_bytes(body[8:16], "little")
            else:
                yield from self._skip(size)
            yield from self._skip_pad(size)
        if pcm_format is None:
            raise AudioError("the WAV header is damaged: it has samples but no format")
        n_data_bytes: int | None = size
        if size == 0 or size >= MIN_OPEN_SIZE:
            n_data_bytes = n_data_bytes_64 or None
        return _Header(pcm_format, n_data_bytes, order)

    def _decode_data(self, header: _Header) -> _Walk:
        decoder = RawDecoder(header.format)
        n_left_bytes = header.n_data_bytes
        while n_left_bytes is None or n_left_bytes > 0:
            if not self._buffer:
                if self._at_end:
                    break
                yield
                continue
            piece = bytes(self._buffer[:n_left_bytes])
            del self._buffer[: len(piece)]
            if n_left_bytes is not None:
                n_left_bytes -= len(piece)
            self._emit(decoder.push(piece))
        self._emit(decoder.finish())
        self.n_leftover_bytes += decoder.n_leftover_bytes

    def _emit(self, samples: Samples) -> None:
        if len(samples):
            self._output.append(samples)

    def _find_next_riff(self, header: _Header) -> Generator[None, None, bytes]:
        """Pass over what follows the data; return the next 12-byte RIFF header, or b"" at the end.

        Bytes that are not a chunk mean that the data's size was too small or that the rest is
        rubbish: nothing after them can be trusted, so they are counted and dropped to the end.
        """
        try:
            yield from self._skip_pad(header.n_data_bytes or 0)
            while True:
                head = yield from self._take(8)
                name = head[:4]
                if name in _RIFF_NAMES:
                    return head + (yield from self._take(4))
                if not all(byte in PRINTABLE for byte in name):
                    break
                (size,) = struct.unpack(f"{header.byte_order}I", head[4:])
                yield from self._skip(size)
                yield from self._skip_pad(size)
            self.n_ignored_bytes += len(head)
            while True:
                self.n_ignored_bytes += len((yield from self._take(max(1, len(self._buffer)))))
        except _InputEndError:
            return b""

    def _take(self, n_bytes: int) -> Generator[None, None, bytes]:
        """Return the next `n_bytes`, waiting for them."""
        while len(self._buffer) < n_bytes:
            if self._at_end:
                raise _InputEndError
            yield
        taken = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return taken

    def _take_kept(self, name: bytes, n_bytes: int) -> Generator[None, None, bytes]:
        if n_bytes > MAX_KEPT_CHUNK_BYTES:
            raise AudioError(f"the WAV header is damaged: chunk {name!r} claims {n_bytes} bytes")
        return (yield from self._take(n_bytes))

    def _skip(self, n_bytes: int) -> _Walk:
        """Drop the next `n_bytes` as they come, keeping none."""
        while n_bytes > 0:
            n_bytes -= len((yield from self._take(min(n_bytes, max(1, len(self._buffer))))))

    def _skip_pad(self, n_chunk_bytes: int) -> _Walk:
        """Drop the byte that makes an odd chunk even, unless the writer left it out."""
        if n_chunk_bytes % 2 == 0:
            return
        while not self._buffer:
            if self._at_end:
                raise _InputEndError
            yield
        if self._buffer[0] not in PRINTABLE:  # else it is the first letter of the next name
            del self._buffer[0]


def _parse_format(body: bytes, order: str) -> PcmFormat:
    """Read a `fmt ` chunk."""
    if len(body) < 16:
        raise AudioError(f"the WAV header is damaged: a format of {len(body)} bytes")
    tag, channels, rate, _, n_frame_bytes, n_bits = struct.unpack(f"{order}HHIIHH", body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack(f"{order}H", body[24:26])  # the sub-format's GUID begins with it
    # 20 bits lie left-justified in 3 bytes: the container's width counts, not the bits used
    n_sample_bytes = n_frame_bytes // channels if channels else 0
    encoding = _ENCODINGS.get((tag, n_sample_bytes or (n_bits + 7) // 8))
    if encoding is None:
        codec = _CODEC_NAMES.get(tag, f"codec 0x{tag:04X}")
        raise AudioError(f"this WAV stream holds {codec} of {n_bits} bits, not PCM; {DECODE_FIRST}")
    if encoding[-1].isdigit() and encoding != "u8":
        encoding += "be" if order == ">" else "le"
    try:
        return PcmFormat(encoding, rate, channels)
    except UsageError as exc:
        raise AudioError(f"the WAV header is damaged: {exc}") from exc
