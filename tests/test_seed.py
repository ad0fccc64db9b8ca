"""Every snippet of the document that voxpipe began with: it runs after a change of the import line and the model name.

The snippets are kept as the document has them, but for those two. A later snippet uses names of an earlier one, as there.
"""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.random_checkpoints import Floats, chunks
from tests.runtime.models import clip

CLIP_FILE = Path(__file__).parent / "data" / "speech" / "future.flac"
TEXT = "then there is the future said the very young man"

BASIC = """
from mlx_audio.stt.utils import load

# Use 4bit for faster inference, fp16 for full precision
model = load("mlx-community/Voxtral-Mini-4B-Realtime-2602-4bit")

# Transcribe audio
result = model.generate("audio.wav")
print(result.text)
"""
STREAMING = """
for chunk in model.generate("audio.wav", stream=True):
    print(chunk, end="", flush=True)
"""
LIVE = """
import threading
import numpy as np
from mlx_audio.stt.models.voxtral_realtime.streaming import StreamingAudioSource

source = StreamingAudioSource()

def producer():
    for chunk in capture_microphone_chunks():  # 16 kHz float32 np.ndarray
        source.append(chunk)
    source.close()

threading.Thread(target=producer, daemon=True).start()

for delta in model.generate_streaming(source):
    print(delta, end="", flush=True)
"""
SESSION = """
session = model.create_streaming_session()

# Producer side (any thread or asyncio task):
session.feed(samples)           # cheap, non-blocking
session.close()                 # end-of-stream signal

# Consumer side (MLX executor thread):
while not session.done:
    for delta in session.step(max_decode_tokens=4):
        emit(delta)
"""
DELAY = """
result = model.generate("audio.wav", transcription_delay_ms=240)
"""


def adapted(snippet: str) -> str:
    """Only the import line and the model name are changed."""
    snippet = re.sub(r"^from mlx_audio\S* import (\w+)$", r"from voxpipe import \1", snippet, flags=re.MULTILINE)
    return snippet.replace("mlx-community/Voxtral-Mini-4B-Realtime-2602-4bit", "tiny")


def capture_microphone_chunks() -> Iterator[Floats]:
    return chunks(clip("future.flac"), 1_280)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the snippets see: the names that the document leaves to its reader, then those that they bind themselves."""
    return {"capture_microphone_chunks": capture_microphone_chunks, "samples": clip("future.flac")}


@pytest.fixture
def play(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Run a snippet in a folder that holds audio.wav; return what it printed."""
    (tmp_path / "audio.wav").write_bytes(CLIP_FILE.read_bytes())
    monkeypatch.chdir(tmp_path)

    def run(snippet: str) -> str:
        if "model" not in names and snippet != BASIC:
            exec(adapted(BASIC), names)
            capsys.readouterr()
        exec(adapted(snippet), names)
        return capsys.readouterr().out

    return run


def test_only_the_import_and_the_model_name_change() -> None:
    before, after = (text.splitlines() for text in (BASIC, adapted(BASIC)))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["from voxpipe import load", 'model = load("tiny")']
    before, after = (text.splitlines() for text in (LIVE, adapted(LIVE)))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["from voxpipe import StreamingAudioSource"]
    assert all(adapted(snippet) == snippet for snippet in (STREAMING, SESSION, DELAY))


def test_basic_transcription(play: Callable[[str], str]) -> None:
    assert play(BASIC) == TEXT + "\n"


def test_streaming_transcription(play: Callable[[str], str], names: dict[str, Any]) -> None:
    assert play(STREAMING).strip() == TEXT
    assert isinstance(names["chunk"], str)


def test_live_input_streaming(play: Callable[[str], str], names: dict[str, Any]) -> None:
    assert play(LIVE).strip() == TEXT
    assert names["source"].closed
    assert threading.active_count() < 10


def test_sessions(play: Callable[[str], str], names: dict[str, Any]) -> None:
    emitted: list[str] = []
    names["emit"] = emitted.append
    assert play(SESSION) == ""
    assert "".join(emitted).strip() == TEXT
    assert names["session"].done


def test_adjusting_the_delay(play: Callable[[str], str], names: dict[str, Any]) -> None:
    assert play(DELAY) == ""
    assert names["result"].text == TEXT
    assert names["result"].delay_ms == 240
    assert isinstance(names["samples"], np.ndarray)
