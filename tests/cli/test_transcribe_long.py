"""`voxpipe transcribe` and a file of three hours: as much memory as for a minute, and all of the text."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pysrt
import pytest
import soundfile

from tests.cli.clips import BEACH, FUTURE, HALL, RATE, said, samples, words
from tests.cli.process import COMMAND, environment

CLIPS = (BEACH, HALL, FUTURE)
PAUSE_S = 1.0


def repeat(path: Path, *, minutes: float) -> list[tuple[float, float, list[str]]]:
    """Write a FLAC of the clips in turn; return (start, end, words) of each repetition."""
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    spoken = []
    n_samples = 0
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        while n_samples < minutes * 60 * RATE:
            clip = CLIPS[len(spoken) % len(CLIPS)]
            sound = samples(clip)
            file.write(sound)
            file.write(pause)
            spoken.append((n_samples / RATE, (n_samples + len(sound)) / RATE, said(clip)))
            n_samples += len(sound) + len(pause)
    return spoken


def transcribe(path: Path, out: Path) -> float:
    """Peak of resident memory in MB."""
    command = [*COMMAND, "transcribe", "-f", "txt,srt,json", "-o", str(out), str(path)]
    process = subprocess.Popen(command, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024 if os.uname().sysname == "Linux" else usage.ru_maxrss / 2**20


@pytest.mark.long
@pytest.mark.timeout(10_800)
def test_three_hours_take_the_memory_of_a_minute_and_lose_nothing(tmp_path: Path) -> None:
    peak_mb = {}
    for minutes in (1, 180):
        path = tmp_path / f"{minutes}.flac"
        spoken = repeat(path, minutes=minutes)
        peak_mb[minutes] = transcribe(path, tmp_path)
        whole: dict[str, Any] = json.loads((tmp_path / f"{minutes}.json").read_text())
        assert whole["audio"]["duration_s"] == pytest.approx(soundfile.info(path).duration, abs=0.01)
        assert not whole["truncated"]
        heard = np.array([word["start"] for word in whole["words"]])
        n_right = n_said = n_whole = 0
        for start, end, expected in spoken:
            first, last = np.searchsorted(heard, (start - PAUSE_S / 2, end + PAUSE_S / 2))
            found = [word["word"].lower() for word in whole["words"][first:last]]
            same = sum(word in found for word in expected)
            assert same >= len(expected) / 2, f"{start:.1f} s: {expected} became {found}"
            n_right, n_said, n_whole = n_right + same, n_said + len(expected), n_whole + (found == expected)
        print(
            f"\n{minutes} min: {peak_mb[minutes]:.0f} MB at most, {len(heard)} words, {n_right} of {n_said} that were said, "
            f"{n_whole} of {len(spoken)} sentences without any mistake, the last word at {heard[-1]:.1f} s of {end:.1f} s",
            end="",
        )
        assert n_right > 0.9 * n_said
        assert heard[-1] > end - 2
        texts = [(tmp_path / f"{minutes}.txt").read_text()]
        texts.append(" ".join(item.text for item in pysrt.open(str(tmp_path / f"{minutes}.srt"))))
        assert [words(text) for text in texts] == [words(whole["text"])] * 2
    assert peak_mb[180] - peak_mb[1] < 100
