"""libsndfile as a decoder: an open file -> blocks of 16 kHz samples, mono or of every channel.

Reads forwards only, in small steps, and gives up a damaged file only after its good part. This
module knows nothing of paths and of what libsndfile cannot open.
"""

import logging
import os
from collections.abc import Generator, Iterator

import numpy as np
import soundfile

from voxpipe.audio.pcm import make_finite, to_mono
from voxpipe.audio.resample import MultiResampler, Samples
from voxpipe.errors import AudioError

logger = logging.getLogger(__name__)

N_STEP_FRAMES = 4096  # read at a time: what a damaged file loses of its good part, at most
MAX_BLOCK_SAMPLES = 1 << 24  # of all channels, at the file's own rate: 64 MB
MAX_FRAMES = 1 << 62  # libsndfile's "unknown" is the largest int64
WARN_SHORT_S = 1.0  # sound missing at the end; less is how MP3 counts

OpenError = soundfile.LibsndfileError  # what SequentialFile raises


class SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read from its beginning to its end, without a seek.

    soundfile seeks after every read of a seekable file. In MP3 that breaks the decoder's chain from
    frame to frame, so that the sound differs with the size of the reads; in a cut FLAC it hides the
    true error.
    """

    def __init__(self, fd: int) -> None:
        """Open the file behind descriptor `fd` from its position on, and own it.

        By descriptor because soundfile cannot encode a path that is not UTF-8.

        Raises:
            OpenError: libsndfile cannot read this file.
        """
        self.fd = fd
        super().__init__(fd, closefd=True)

    def seekable(self) -> bool:
        """Pretend that it is not."""
        return False

    @property
    def duration_s(self) -> float | None:
        """Seconds by the header; None when it does not say, an estimate for some MP3 files."""
        return self.frames / self.samplerate if self.frames < MAX_FRAMES else None

    def open_rest(self) -> "SequentialFile | None":
        """Open what lies behind the last frame that was read, if that is more sound.

        libsndfile stops an MP3 where its first header ends it, or, without a length there, where a
        guess from the first bit rate does: of a file with a variable bit rate, or of several put
        behind each other, the greater part may be left.
        """
        position = os.lseek(self.fd, 0, os.SEEK_CUR)
        if self.format != "MP3" or position >= os.fstat(self.fd).st_size:
            return None
        try:
            return SequentialFile(os.dup(self.fd))
        except OpenError:
            return None  # tags


def explain(error: soundfile.LibsndfileError) -> str:
    """Return libsndfile's own words."""
    return str(error.error_string).removeprefix("Error : ").rstrip(".")


def decode(sound: SequentialFile, *, name: str, block_s: float, split: bool = False) -> Iterator[Samples]:
    """Yield the sound: (n,) float32, mono, 16 kHz, about `block_s` seconds each, never empty.

    Args:
        sound: not yet read; it stays the caller's to close.
        name: what messages call the file.
        block_s: seconds in a block.
        split: yield (n, channels) instead.

    Raises:
        AudioError: a rate that cannot be used, or damage, with the position in seconds, after the
            blocks before it.
    """
    end_s = 0.0
    part: SequentialFile | None = sound
    while part is not None:
        try:
            if split and part.channels != sound.channels:
                raise AudioError(
                    f"{name}: goes from {sound.channels} to {part.channels} channels at {end_s:.1f} s, so they cannot "
                    "be kept apart; mix them with `--channels mix`"
                )
            part_s, damage = yield from _decode_part(part, name=name, block_s=block_s, split=split)
            end_s += part_s
            rest = None if damage else part.open_rest()
        finally:
            if part is not sound:
                part.close()
        part = rest
    duration_s = sound.duration_s
    if damage is not None:
        whole = f" of {duration_s:.1f} s" if duration_s else ""
        raise AudioError(
            f"{name}: damaged or cut off at {end_s:.1f} s{whole} (libsndfile: {explain(damage)})"
        ) from damage
    if duration_s and end_s < duration_s - WARN_SHORT_S:
        logger.warning("%s: ends at %.1f s, its header says %.1f s", name, end_s, duration_s)


def _decode_part(
    sound: SequentialFile, *, name: str, block_s: float, split: bool
) -> Generator[Samples, None, tuple[float, soundfile.LibsndfileError | None]]:
    """Yield blocks to the end or to the damage; return the seconds read and the damage."""
    rate, n_channels = sound.samplerate, sound.channels
    try:
        resampler = MultiResampler(rate, n_channels if split else 1)
    except AudioError as exc:
        raise AudioError(f"{name}: {exc}") from exc
    n_block_frames = max(1, min(round(block_s * rate), MAX_BLOCK_SAMPLES // n_channels))
    frames = np.empty((n_block_frames, n_channels), np.float32)  # (n, channels)
    n_read_frames = 0
    damage: soundfile.LibsndfileError | None = None
    n_filled = n_block_frames
    while n_filled == n_block_frames:  # a short block is the last
        n_filled = 0
        while n_filled < n_block_frames:
            try:
                n_step = len(sound.read(out=frames[n_filled : n_filled + N_STEP_FRAMES]))
            except soundfile.LibsndfileError as exc:
                damage = exc
                break
            if n_step == 0:
                break
            n_filled += n_step
        n_read_frames += n_filled
        finite = make_finite(frames[:n_filled])
        block = resampler.push(finite if split else to_mono(finite)[:, None])
        if len(block):
            yield block if split else block[:, 0]
    tail = resampler.finish()
    if len(tail):
        yield tail if split else tail[:, 0]
    return n_read_frames / rate, damage
