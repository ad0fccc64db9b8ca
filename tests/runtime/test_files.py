"""Recordings beside each other: each read by a thread of its own, none of them holding up another."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.random_checkpoints import Floats
from tests.runtime.models import clip
from voxpipe import Transcriber
from voxpipe.errors import AudioError
from voxpipe.runtime import files
from voxpipe.runtime.files import Progress, transcribe_together

SECOND = 16_000


def texts(progress: list[Progress], n: int) -> list[str]:
    return ["".join(delta for one in progress if one.index == index for delta in one.deltas) for index in range(n)]


def test_a_recording_gets_beside_others_what_it_gets_alone(small: Transcriber) -> None:
    sounds = [
        np.random.default_rng(seed).uniform(-0.5, 0.5, SECOND * (seed + 1)).astype(np.float32) for seed in range(4)
    ]
    alone = [small.generate(sound).deltas for sound in sounds]
    progress = list(transcribe_together(([sound] for sound in sounds), small, jobs=3))
    assert texts(progress, 4) == ["".join(deltas) for deltas in alone]
    ends = [one for one in progress if one.is_last]
    assert sorted(one.index for one in ends) == [0, 1, 2, 3]
    assert [one.audio_s for one in sorted(ends, key=lambda one: one.index)] == [1.0, 2.0, 3.0, 4.0]


def test_a_recording_that_hangs_holds_up_itself_alone(tiny: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STALL_S", 0.05)
    released = threading.Event()
    sound = clip("future.flac")

    def hangs_at_once() -> Iterator[Floats]:
        released.wait()
        yield sound

    def hangs_later() -> Iterator[Floats]:
        yield sound[:SECOND]
        released.wait()
        yield sound[SECOND:]

    ends = []
    recordings = [hangs_at_once(), hangs_later(), [sound], [sound]]
    said: dict[int, str] = dict.fromkeys(range(4), "")
    for one in transcribe_together(recordings, tiny, jobs=1):
        said[one.index] += "".join(one.deltas)
        if one.is_last:
            ends.append(one.index)
        if ends == [2, 3]:
            released.set()
    assert ends[:2] == [2, 3]
    assert sorted(ends) == [0, 1, 2, 3]
    assert set(said.values()) == {tiny.generate(sound).text.join((" ", ""))}


def test_reading_does_not_run_ahead_of_the_model(small: Transcriber) -> None:
    n_read = 0

    def hours() -> Iterator[Floats]:
        nonlocal n_read
        while True:
            n_read += 1
            yield np.zeros(10 * SECOND, np.float32)

    progress = transcribe_together([hours()], small, jobs=1)
    for one in progress:
        if one.audio_s > 60:
            break
    assert n_read * 10 < one.audio_s + 2 * files.READ_AHEAD_S + 30
    progress.close()
    n_then = n_read
    time.sleep(0.05)
    assert n_read == n_then  # and it ends with whoever asked for it


def test_channels_are_streams(small: Transcriber) -> None:
    left, right = (np.random.default_rng(seed).uniform(-0.5, 0.5, SECOND).astype(np.float32) for seed in range(2))
    progress = list(transcribe_together([[np.stack([left, right], axis=1)]], small, jobs=1))
    for channel, sound in enumerate((left, right)):
        mine = [one for one in progress if one.channel == channel]
        assert all(one.n_channels == 2 for one in mine)
        assert sum(one.is_last for one in mine) == 1
        assert "".join(delta for one in mine for delta in one.deltas) == "".join(small.generate(sound).deltas)


def test_errors_end_their_own_recording(small: Transcriber, caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> Iterator[Floats]:
        yield np.zeros(SECOND, np.float32)
        raise AudioError("damaged")

    def is_defective() -> Iterator[Floats]:
        raise ZeroDivisionError
        yield

    recordings = [breaks(), [], is_defective(), [np.zeros(SECOND, np.float32)]]
    ends = {one.index: one for one in transcribe_together(recordings, small, jobs=4) if one.is_last}
    assert (str(ends[0].error), ends[0].audio_s) == ("damaged", 1.0)
    assert (str(ends[1].error), ends[1].n_channels) == ("there is no audio in it", 0)
    assert "this is a defect" in str(ends[2].error)
    assert ends[3].error is None
    assert "ZeroDivisionError" in caplog.text


def test_closing_closes_the_recordings(small: Transcriber) -> None:
    closed = threading.Event()

    class Recording:
        def __iter__(self) -> Iterator[Floats]:
            yield np.zeros(SECOND, np.float32)
            closed.wait(60)

        def cancel(self) -> None:
            closed.set()

    progress = transcribe_together([Recording()], small, jobs=1)
    next(progress)
    progress.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recording-")]
