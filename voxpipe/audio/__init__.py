"""Bytes and files -> mono float32 samples at 16 kHz."""

from voxpipe.audio.decoder import AudioDecoder
from voxpipe.audio.files import AudioFile, AudioInfo, read_blocks
from voxpipe.audio.pcm import ENCODINGS, PcmDecoder, PcmFormat
from voxpipe.audio.resample import SAMPLE_RATE, Resampler

__all__ = [
    "ENCODINGS",
    "SAMPLE_RATE",
    "AudioDecoder",
    "AudioFile",
    "AudioInfo",
    "PcmDecoder",
    "PcmFormat",
    "Resampler",
    "read_blocks",
]
