"""One decoder for everything that arrives as bytes: stdin, FIFOs and sockets.

The first bytes decide: a WAV header is obeyed, another container or text is refused with the
remedy, anything else is raw PCM in the format that was declared. This module knows nothing of
where the bytes come from.
"""

import numpy as np

from voxpipe.audio.encodings import AUTO
from voxpipe.audio.pcm import DEFAULT_FORMAT, Bytes, PcmFormat, RawDecoder
from voxpipe.audio.resample import EMPTY, SAMPLE_RATE, Samples
from voxpipe.audio.sniff import RAW, TEXT, WAV, sniff
from voxpipe.audio.wav import DECODE_FIRST, WavDecoder
from voxpipe.errors import AudioError

N_QUOTED_BYTES = 32  # of a text that came instead of sound, so that its writer is recognised


class AudioDecoder:
    """A stream of bytes, decoded to mono float32 at 16 kHz, in chunks of any size.

    Up to MAX_HEAD_BYTES of the stream are held back while it is unclear what it is; for sound that
    is a few bytes. After an AudioError the decoder is of no more use.
    """

    def __init__(self, pcm_format: PcmFormat = DEFAULT_FORMAT, *, sniffing: bool = True) -> None:
        """Make a decoder.

        Args:
            pcm_format: what raw bytes are.
            sniffing: look at the first bytes for a WAV header; False takes every byte as raw PCM.
        """
        self._pcm_format = pcm_format
        self._head = bytearray()
        self._decoder: RawDecoder | WavDecoder | None = None
        if not sniffing:
            self._decoder = RawDecoder(pcm_format)

    @classmethod
    def from_options(cls, encoding: str = AUTO, *, rate: int = SAMPLE_RATE, channels: int = 1) -> "AudioDecoder":
        """Make the decoder that `--format`, `--rate` and `--channels` describe.

        `auto` is s16le unless a WAV header says otherwise. A named encoding is obeyed to the byte:
        whoever names one has a reason, and a header is then a click of sound.

        Raises:
            UsageError: an encoding, rate or number of channels that cannot be read.
        """
        if encoding == AUTO:
            return cls(PcmFormat(rate=rate, channels=channels))
        return cls(PcmFormat(encoding, rate, channels), sniffing=False)

    @property
    def format(self) -> PcmFormat | None:
        """What is being decoded; None until the first bytes have told."""
        return self._decoder.format if self._decoder else None

    @property
    def n_leftover_bytes(self) -> int:
        """After `finish`: bytes at the end that filled no frame, and were dropped."""
        return self._decoder.n_leftover_bytes if self._decoder else 0

    @property
    def n_ignored_bytes(self) -> int:
        """Bytes dropped because they came after the end that a WAV header declared."""
        return self._decoder.n_ignored_bytes if isinstance(self._decoder, WavDecoder) else 0

    def push(self, data: Bytes) -> Samples:
        """Return the (m,) samples that `data` completes; m is 0 when it completes none.

        Raises:
            AudioError: the stream is no PCM and no readable WAV.
        """
        if self._decoder is None:
            self._head += data
            self._decoder = self._choose(at_end=False)
            if self._decoder is None:
                return EMPTY
            data = self._take_head()
        return self._decoder.push(data)

    def finish(self) -> Samples:
        """Return the (m,) samples still held back; the stream has ended.

        Raises:
            AudioError: the stream was no PCM and no readable WAV.
        """
        if self._decoder is not None:
            return self._decoder.finish()
        self._decoder = self._choose(at_end=True)
        assert self._decoder is not None  # sniff always decides at the end
        return np.concatenate([self._decoder.push(self._take_head()), self._decoder.finish()])

    def _take_head(self) -> bytearray:
        head, self._head = self._head, bytearray()
        return head

    def _choose(self, *, at_end: bool) -> RawDecoder | WavDecoder | None:
        kind = sniff(bytes(self._head), at_end=at_end)
        if kind is None:
            return None
        if kind == RAW:
            return RawDecoder(self._pcm_format)
        if kind == WAV:
            return WavDecoder()
        head = self._take_head()
        if kind == TEXT:
            quoted = bytes(head[:N_QUOTED_BYTES]).decode(errors="ignore")
            raise AudioError(
                f"the input looks like text ({quoted!r}), not audio; pipe raw PCM or WAV, "
                "for example `ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | voxpipe`"
            )
        raise AudioError(f"the input looks like {kind}, not raw PCM or WAV; {DECODE_FIRST}")
