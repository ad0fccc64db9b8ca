"""What a live stream complains of: lag, gaps, and input that is nothing but zeros."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.clips import BEACH, FUTURE, s16le, said, spoken, words
from tests.cli.process import Event, Live, live, run, text_of, wait_until
from tests.service.processes import LATE, script
from tests.service.test_daemon import serve
from voxpipe.config import SAMPLE_RATE
from voxpipe.errors import EX_OK
from voxpipe.service.reader import n_waiting_bytes
from voxpipe.service.symptoms import SILENT_S, LagWatch, SilenceWatch

SECOND = bytes(32_000)  # of silence
BYTES_PER_S = 32_000


def warnings_of(events: Sequence[Event], code: str) -> list[Event]:
    return [event for event in events if event["type"] == "warning" and event["code"] == code]


def write_before_the_model_is_there(voxpipe: Live, data: bytes, gate: Path) -> None:
    voxpipe.write(data)
    assert voxpipe.process.stdin is not None
    pipe = voxpipe.process.stdin.fileno()
    wait_until(lambda: n_waiting_bytes(pipe) == 0)
    gate.touch()


# --- lag --------------------------------------------------------------------------------------------------------------


def test_lag_is_told_when_it_begins_when_it_doubles_and_when_it_ends() -> None:
    watch = LagWatch()
    seen = [(lag_s, watch.look(lag_s)) for lag_s in (0.1, 1.9, 2.1, 3.0, 4.1, 4.3, 5.0, 8.7, 3.0, 0.6, 0.4, 0.1, 2.5)]
    assert [lag_s for lag_s, complaint in seen if complaint] == [2.1, 4.3, 8.7, 0.4, 2.5]
    assert [complaint.facts["lag_ms"] for _, complaint in seen if complaint] == [2100, 4300, 8700, 400, 2500]
    ends = [complaint.message for _, complaint in seen if complaint and complaint.message == "the model has caught up"]
    assert len(ends) == 1


@pytest.mark.parametrize("realtime", [True, False])
def test_a_live_source_is_told_that_the_model_lags_and_that_it_has_caught_up(tmp_path: Path, realtime: bool) -> None:
    options = ["--realtime"] if realtime else []
    with live(tmp_path / "gate", *options, command=script(LATE)) as voxpipe:
        # 1. six seconds come before the model does
        write_before_the_model_is_there(voxpipe, s16le(BEACH) + SECOND, tmp_path / "gate")
        # 2. it says how far behind it is, and soon that it is not any more
        if realtime:
            voxpipe.wait_for("warning", n=2)
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
        first_and_last = [event["lag_ms"] for event in warnings_of(voxpipe.events, "lag")]
        assert len(first_and_last) == (2 if realtime else 0)  # a file at full speed waits for nobody
        if realtime:
            assert first_and_last[0] > 5_000
            assert first_and_last[1] <= 500
        # 3. and nothing was lost
        assert words(voxpipe.text()) == said(BEACH)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_words_behind_a_gap_keep_their_place_in_time(tmp_path: Path) -> None:
    before = s16le(BEACH) * 3 + 2 * SECOND
    with live(tmp_path / "gate", "--max-lag", "16", command=script(LATE)) as voxpipe:
        # 1. twenty-one seconds come before the model does, and sixteen may wait
        write_before_the_model_is_there(voxpipe, before + s16le(FUTURE) + SECOND, tmp_path / "gate")
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK
    # 2. what is lost is told, once
    (gap,) = warnings_of(voxpipe.events, "gap")
    n_s = (len(before) + len(s16le(FUTURE)) + len(SECOND)) / BYTES_PER_S
    assert gap["start"] == 0.0
    assert gap["lost_s"] == gap["end"]
    assert n_s - 16 <= gap["lost_s"] <= n_s - 8
    # 3. the last words are there, when they were said
    deltas = [event for event in voxpipe.events if event["type"] == "delta"]
    n_words = len(said(FUTURE))
    assert words(text_of(voxpipe.events))[-n_words:] == said(FUTURE)
    starts = [event for event in deltas if event["text"].startswith(" ")][-n_words:]
    for event, (word, start, _) in zip(starts, spoken(FUTURE), strict=True):
        assert event["start"] == pytest.approx(len(before) / BYTES_PER_S + start, abs=0.5), word
    # 4. and the stream's clock has not lost a sample
    assert voxpipe.events[-1]["audio_s"] == pytest.approx(n_s, abs=0.01)


def test_a_client_of_the_daemon_asks_for_it_too(tmp_path: Path) -> None:
    fifo = tmp_path / "in.pcm"
    minute = (s16le(BEACH) + s16le(FUTURE)) * 4
    with serve(tmp_path, f'[[fifo]]\npath = "{fifo}"\nmax_lag_s = 1\n') as daemon:
        # 1. by option, more comes at once than may wait: the writer is not blocked, and is told what is lost
        lossy = run("--max-lag", "1", "--daemon", "require", stdin=minute, env=daemon.env)
        # 2. by header key, nothing may be lost
        with daemon.connect() as client, client.makefile("rb") as lines:
            client.sendall(b'VOXPIPE/1 {"realtime": true}\n' + minute)
            lagging = [json.loads(lines.readline())]
            while "caught up" not in lagging[-1].get("message", ""):
                lagging.append(json.loads(lines.readline()))
            client.shutdown(socket.SHUT_WR)
            lagging += map(json.loads, lines)
        # 3. by settings, of a named pipe
        fifo.write_bytes(minute)
        daemon.process.wait_for("done", "in.pcm#1")
        by_settings = daemon.process.events
    for events in (lossy.events, by_settings):
        gaps = warnings_of(events, "gap")
        assert gaps
        for gap in gaps:
            assert gap["lost_s"] == pytest.approx(gap["end"] - gap["start"], abs=0.02)
        starts = [gap["start"] for gap in gaps]
        assert starts == sorted(starts)
    assert max(event["lag_ms"] for event in warnings_of(lagging, "lag")) > 2_000
    assert warnings_of(lagging, "gap") == []
    for events in (lossy.events, lagging, by_settings):
        assert events[-1]["audio_s"] == pytest.approx(len(minute) / BYTES_PER_S, abs=0.01)
    assert words(text_of(lagging)).count("young") == 4


# --- silence ----------------------------------------------------------------------------------------------------------


def test_zeros_are_told_once_an_episode() -> None:
    zeros = round(SILENT_S + 2) * SECOND
    result = run(stdin=zeros + s16le(FUTURE) + zeros + zeros)
    assert result.status == EX_OK
    told = warnings_of(result.events, "silent-input")
    assert [event["start"] for event in told] == [
        0.0,
        pytest.approx((len(zeros) + len(s16le(FUTURE))) / BYTES_PER_S, abs=0.5),
    ]
    assert "if this is a microphone, see whether it is muted" in told[0]["message"]
    assert words(result.text) == said(FUTURE)


def test_a_live_pipe_is_told_while_it_is_silent() -> None:
    with live() as voxpipe:
        voxpipe.write(round(SILENT_S) * SECOND)
        voxpipe.wait_for("warning")
        assert voxpipe.events[-1]["code"] == "silent-input"
        voxpipe.end_input()
        assert voxpipe.end() == EX_OK


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25]), st.integers(1, 20)), min_size=1, max_size=12),
    st.integers(800, 5 * SAMPLE_RATE),
)
def test_the_size_of_chunks_does_not_matter(parts: list[tuple[float, int]], n_chunk: int) -> None:
    samples = np.concatenate([np.full(n * SAMPLE_RATE, level, np.float32) for level, n in parts])
    watch = SilenceWatch()
    chunks = (samples[first : first + n_chunk] for first in range(0, len(samples), n_chunk))
    told = [complaint.facts["start"] for complaint in map(watch.look, chunks) if complaint]
    expected = []
    zeros_s, position_s = 0, 0
    for level, n in [*parts, (0.25, 0)]:
        if level:
            if zeros_s >= SILENT_S:
                expected.append(float(position_s - zeros_s))
            zeros_s = 0
        else:
            zeros_s += n
        position_s += n
    assert told == expected
