"""`load` and `generate`: every kind of audio, whole and as an iterator."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import soxr

from tests.random_checkpoints import chunks
from tests.runtime.models import SPEECH, clip
from voxpipe import AudioError, Delta, InputError, StreamingAudioSource, Transcriber, Transcript, UsageError, load
from voxpipe.runtime.source import as_samples
from voxpipe.runtime.transcriber import _blocks, transcribe

CLIP = clip("future.flac")
TEXT = "then there is the future said the very young man"


@pytest.fixture(scope="module")
def whole(tiny: Transcriber) -> Transcript:
    return tiny.generate(str(SPEECH / "future.flac"))


def test_a_path_is_read_in_words_or_as_an_object(tiny: Transcriber, whole: Transcript) -> None:
    assert whole.text == TEXT
    assert whole.audio_s == pytest.approx(len(CLIP) / 16_000)
    assert not whole.truncated
    assert tiny.generate(SPEECH / "future.flac", max_tokens=20).tokens == whole.tokens[:20]


@pytest.mark.parametrize(
    "kind", ["float64", "float16", "int16", "list", "mx.float32", "mx.bfloat16", "mx.int16", "column", "row"]
)
def test_arrays_of_any_kind(tiny: Transcriber, kind: str) -> None:
    pcm = np.round(CLIP * 32_767).astype(np.int16)
    audio: Any = {
        "float64": lambda: CLIP.astype(np.float64),
        "float16": lambda: CLIP.astype(np.float16),
        "int16": lambda: pcm,
        "list": CLIP.tolist,
        "mx.float32": lambda: mx.array(CLIP),
        "mx.bfloat16": lambda: mx.array(CLIP).astype(mx.bfloat16),
        "mx.int16": lambda: mx.array(pcm),
        "column": lambda: CLIP[:, None],
        "row": lambda: CLIP[None],
    }[kind]()
    samples = np.concatenate([as_samples(block) for block in _blocks(audio)])  # what a session is fed
    assert np.abs(samples - CLIP).max() < 5e-3  # bfloat16 has 8 bits
    if kind in ("mx.int16", "list"):
        assert tiny.generate(audio).text == TEXT


def test_a_stereo_file_at_another_rate(tiny: Transcriber, tmp_path: Path) -> None:
    left = soxr.resample(CLIP, 16_000, 44_100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, 0.5 * left], axis=1), 44_100)
    result = tiny.generate(tmp_path / "stereo.wav")
    assert result.text == TEXT
    assert result.audio_s == pytest.approx(len(CLIP) / 16_000, abs=1e-3)


def test_stream_yields_text_that_adds_up_to_the_result(tiny: Transcriber, whole: Transcript) -> None:
    deltas = list(tiny.generate(SPEECH / "future.flac", stream=True))
    assert len(deltas) > 5
    assert all(isinstance(delta, str) and isinstance(delta, Delta) for delta in deltas)
    assert "".join(deltas).strip() == whole.text
    assert [(delta.start, delta.end, delta.tokens) for delta in deltas] == [
        (delta.start, delta.end, delta.tokens) for delta in whole.deltas
    ]


def test_stream_yields_words_before_the_whole_file_was_read(tiny: Transcriber) -> None:
    n_read = 0

    def counted(samples: Any) -> Any:
        nonlocal n_read
        for part in chunks(samples, 16_000):
            n_read += len(part)
            yield part

    session = tiny.create_streaming_session()
    first = next(transcribe(counted(CLIP), session))
    assert first == " then"
    assert n_read <= 32_000


@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
def test_generate_streaming_follows_another_thread(tiny: Transcriber, sample_rate: int) -> None:
    source = StreamingAudioSource(sample_rate, max_buffer_s=0.3)
    samples = CLIP if sample_rate == 16_000 else soxr.resample(CLIP, 16_000, sample_rate)

    def produce() -> None:
        for part in chunks(samples, sample_rate // 25):
            source.append(part)
        source.close()

    producer = threading.Thread(target=produce)
    producer.start()
    text = "".join(tiny.generate_streaming(source))
    producer.join()
    assert text.strip() == TEXT


def test_generate_streaming_of_a_source_closed_empty_ends(tiny: Transcriber) -> None:
    source = StreamingAudioSource()
    source.close()
    assert list(tiny.generate_streaming(source)) == []


@pytest.mark.parametrize("audio", [np.zeros(0, np.float32), [], mx.zeros((0,))])
def test_empty_audio_is_an_error(tiny: Transcriber, audio: Any) -> None:
    with pytest.raises(AudioError, match=r"^there is no audio in it$"):
        tiny.generate(audio)
    with pytest.raises(AudioError, match=r"^there is no audio in it$"):
        list(tiny.generate(audio, stream=True))


def test_an_empty_file_is_an_error(tiny: Transcriber, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError):
        tiny.generate(tmp_path / "empty.wav")
    with pytest.raises(InputError):
        tiny.generate(tmp_path / "missing.wav")


@pytest.mark.parametrize("audio", [np.zeros((10, 2), np.float32), np.float32(0.5), 0.5, np.zeros((2, 2, 2))])
def test_what_is_not_mono_is_an_error(tiny: Transcriber, audio: Any) -> None:
    with pytest.raises(AudioError, match="audio must be one-dimensional"):
        tiny.generate(audio)


def test_one_sample_is_enough(tiny: Transcriber) -> None:
    result = tiny.generate(np.zeros(1, np.float32))
    assert result.text == ""
    assert len(result.tokens) == 32 + 1 + 17 - 39 + 1


def test_a_model_on_another_thread_than_its_own_is_a_mistake() -> None:
    loaded: list[Transcriber] = []
    thread = threading.Thread(target=lambda: loaded.append(load("tiny")))
    thread.start()
    thread.join()
    with pytest.raises(UsageError, match="on the thread that loaded it"):
        loaded[0].generate(SPEECH / "future.flac")


def test_a_process_ends_in_peace_after_another_thread_has_used_a_model() -> None:
    code = f"""
import threading
from voxpipe import load
def work():
    print(load("tiny").generate({str(SPEECH / "future.flac")!r}).text)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no dtype 'int8'; choose one of "):
        load("tiny", dtype="int8")
