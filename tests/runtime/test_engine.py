"""The engine's one promise: a stream gets what it gets alone, whoever comes and goes beside it."""

import gc
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.random_checkpoints import Floats
from tests.runtime.models import clip
from voxpipe import BusyError, StreamingAudioSource, StreamingSession, Transcriber
from voxpipe.config import DELAYS_MS
from voxpipe.model import voxtral
from voxpipe.model.kernels import GpuKernels
from voxpipe.runtime.engine import LAG_S, Engine
from voxpipe.runtime.runner import Runner

SPEECH = np.concatenate([clip("hall.flac"), clip("beach.wav"), clip("future.flac")])
MAX_STREAMS = 16


@dataclass
class Plan:
    """One stream: what it hears, how it is fed, when it comes and goes."""

    samples: Floats
    delay_ms: int
    chunks: list[int]
    arrives: int  # turn
    is_live: bool
    leaves_after: int | None  # turns, dropped in mid-stream
    flushes: bool


@dataclass
class Run:
    plan: Plan
    session: StreamingSession
    position: int = 0
    chunk: int = 0
    deltas: list[str] = field(default_factory=list)

    def feed(self) -> None:
        """The next chunk, or the end."""
        size = self.plan.chunks[self.chunk % len(self.plan.chunks)]
        self.chunk += 1
        if self.position < len(self.plan.samples):
            self.session.feed(self.plan.samples[self.position : self.position + size])
            self.position += size
            if self.plan.flushes and self.chunk == 2:
                self.session.flush()
        else:
            self.session.close()


plans = st.builds(
    lambda start, n, **rest: Plan(samples=SPEECH[start : start + n], **rest),
    start=st.integers(0, len(SPEECH) - 40_000),
    n=st.integers(1, 40_000),
    delay_ms=st.sampled_from(DELAYS_MS),
    chunks=st.lists(
        st.sampled_from([1, 160, 1_279, 1_280, 1_281, 5_000, 20_480, 60_000]), min_size=1, max_size=4
    ).filter(lambda sizes: max(sizes) > 1_000),
    arrives=st.integers(0, 20),
    is_live=st.booleans(),
    leaves_after=st.one_of(st.none(), st.none(), st.integers(1, 15)),
    flushes=st.booleans(),
)


def alone(model: Transcriber, plan: Plan) -> tuple[list[int], str]:
    """The same chunks through a session of its own, one position in a call."""
    run = Run(
        plan,
        StreamingSession(
            Runner(model.network, speculate=False), model.tokenizer, delay_ms=plan.delay_ms, keep_tokens=True
        ),
    )
    while not run.session.done:
        run.feed()
        while not run.session.starved:
            run.deltas += run.session.step()
    return run.session.tokens, "".join(run.deltas)


def together(model: Transcriber, plans_: list[Plan], *, speculate: bool, rows_per_tray: int) -> list[Run]:
    runner = Runner(model.network, speculate=speculate)
    model.network.expect_streams(rows_per_tray * len(model.network.lanes))
    engine = Engine(runner, max_streams=MAX_STREAMS)
    runs: list[Run] = []
    open_runs: dict[StreamingSession, Run] = {}
    turn = 0
    while len(runs) < len(plans_) or open_runs:
        for plan in plans_:
            if plan.arrives == turn:
                session = StreamingSession(runner, model.tokenizer, delay_ms=plan.delay_ms, keep_tokens=True)
                engine.add(session, live=plan.is_live)
                runs.append(Run(plan, session))
                open_runs[session] = runs[-1]
        for session, run in list(open_runs.items()):
            if run.plan.leaves_after is not None and turn == run.plan.arrives + run.plan.leaves_after:
                engine.remove(session)
                del open_runs[session]
            elif session.starved:
                run.feed()
        for session, deltas in engine.turn():
            open_runs[session].deltas += deltas
            if session.done:
                del open_runs[session]
        turn += 1
    assert len(engine) == 0
    return runs


@contextmanager
def laid_out_for_a_gpu(model: Transcriber, *, compiles: bool) -> Iterator[None]:
    kernels = model.network.kernels
    model.network.use_kernels(GpuKernels(folded=True, compiles=compiles))
    try:
        yield
    finally:
        model.network.use_kernels(kernels)


def check_equal(
    model: Transcriber, plans_: list[Plan], *, speculate: bool, rows_per_tray: int, is_dense: bool = False
) -> None:
    """Each stream beside the others against itself alone; `is_dense` lays them out as on a GPU."""
    if is_dense:
        with laid_out_for_a_gpu(model, compiles=False):
            check_equal(model, plans_, speculate=speculate, rows_per_tray=rows_per_tray)
        return
    for run in together(model, plans_, speculate=speculate, rows_per_tray=rows_per_tray):
        tokens, text = alone(model, run.plan)
        if run.plan.leaves_after is None:
            assert run.session.tokens == tokens
            assert "".join(run.deltas) == text
        else:
            assert run.session.tokens == tokens[: len(run.session.tokens)]
            assert text.startswith("".join(run.deltas))


FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(
    plans_=st.lists(plans, min_size=2, max_size=MAX_STREAMS),
    speculate=st.booleans(),
    rows_per_tray=st.sampled_from([1, 2, 8]),
    is_dense=st.booleans(),
)
def test_streams_of_a_random_model_equal_each_alone(
    narrow: Transcriber, plans_: list[Plan], speculate: bool, rows_per_tray: int, is_dense: bool
) -> None:
    check_equal(narrow, plans_, speculate=speculate, rows_per_tray=rows_per_tray, is_dense=is_dense)


@settings(FEW, max_examples=2)
@given(
    plans_=st.lists(plans, min_size=5, max_size=8),
    speculate=st.booleans(),
    rows_per_tray=st.sampled_from([1, 4]),
    is_dense=st.booleans(),
)
def test_streams_of_the_embedded_model_equal_each_alone(
    tiny: Transcriber, plans_: list[Plan], speculate: bool, rows_per_tray: int, is_dense: bool
) -> None:
    check_equal(tiny, plans_, speculate=speculate, rows_per_tray=rows_per_tray, is_dense=is_dense)


def test_sixteen_streams_at_once(tiny: Transcriber) -> None:
    """Every delay, staggered by a turn, all with the same words."""
    plans_ = [
        Plan(
            clip("future.flac")[:16_000],
            delay_ms,
            [1_280],
            arrives=turn,
            is_live=True,
            leaves_after=None,
            flushes=False,
        )
        for turn, delay_ms in enumerate(DELAYS_MS)
    ]
    check_equal(tiny, plans_, speculate=True, rows_per_tray=8)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX's CPU backend needs a C++ compiler to trace")
def test_traced_layers_give_the_tokens_of_untraced_ones(tiny: Transcriber) -> None:
    samples = clip("future.flac")
    expected = tiny.generate(samples).tokens
    with laid_out_for_a_gpu(tiny, compiles=True):
        assert tiny.generate(samples).tokens == expected
        plans_ = [
            Plan(samples, delay_ms, [1_280], arrives=turn, is_live=True, leaves_after=None, flushes=False)
            for turn, delay_ms in enumerate((80, 480, 480))
        ]
        check_equal(tiny, plans_, speculate=True, rows_per_tray=2)


class Spy(Runner):
    """Notes who took part in each call, and how much each was allowed to encode."""

    def __init__(self, model: Transcriber) -> None:
        super().__init__(model.network)
        self.calls: list[tuple[list[StreamingSession], int]] = []

    def run(self, sessions, *, max_tokens=32, group_tokens=16):  # type: ignore[no-untyped-def]
        self.calls.append((list(sessions), group_tokens))
        return super().run(sessions, max_tokens=max_tokens, group_tokens=group_tokens)


def new_session(model: Transcriber, runner: Runner, seconds: float) -> StreamingSession:
    session = StreamingSession(runner, model.tokenizer)
    session.feed(np.zeros(int(seconds * 16_000), np.float32))
    return session


def test_files_take_part_beside_live_streams_in_small_pieces(small: Transcriber) -> None:
    spy = Spy(small)
    engine = Engine(spy)
    live, file = new_session(small, spy, 0.1), new_session(small, spy, 30.0)
    engine.add(file, live=False)
    engine.turn()
    assert spy.calls[-1] == ([file], 16)  # nobody waits for it
    engine.add(live)
    while not file.starved and not live.starved:
        engine.turn()
        assert spy.calls[-1] == ([live, file], 4)
    engine.turn()
    assert spy.calls[-1] == ([file], 8)  # the live stream may come back at any moment


def test_files_wait_while_a_live_stream_lags(small: Transcriber) -> None:
    spy = Spy(small)
    engine = Engine(spy)
    live, file = new_session(small, spy, 20.0), new_session(small, spy, 20.0)
    engine.add(file, live=False)
    engine.add(live)
    while live.waiting_s > LAG_S:
        engine.turn()
        assert spy.calls[-1] == ([live], 16)
    while not live.starved:
        engine.turn()
        assert spy.calls[-1][0] == [live, file]


@pytest.mark.parametrize("live", [True, False])
def test_more_streams_than_a_batch_holds_have_turns(
    small: Transcriber, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr(voxtral, "MAX_ROWS_CPU", 3)
    spy = Spy(small)
    engine = Engine(spy)
    sessions = [new_session(small, spy, 5.0) for _ in range(7)]
    for session in sessions:
        engine.add(session, live=live)
    for _ in range(14):
        engine.turn()
    served = [sum(session in rows for rows, _ in spy.calls) for session in sessions]
    assert {len(rows) for rows, _ in spy.calls} == {3}
    assert max(served) - min(served) <= 1


def test_no_more_streams_than_there_are_places(small: Transcriber) -> None:
    engine = small.create_engine(max_streams=2)
    first, second, third, file = (small.create_streaming_session() for _ in range(4))
    engine.add(first)
    engine.add(second)
    with pytest.raises(BusyError, match=r"all 2 streams are in use; try again"):
        engine.add(third)
    engine.add(file, live=False)  # which takes no live stream's place
    first.close()
    engine.turn()
    assert first.done
    engine.add(third)
    engine.remove(second)
    assert len(engine) == 2


def test_nothing_to_do_is_nothing_done(small: Transcriber) -> None:
    engine = small.create_engine()
    assert engine.turn() == []
    session = small.create_streaming_session()
    engine.add(session)
    assert engine.turn() == []
    session.close()
    assert engine.turn() == [(session, [])]
    assert engine.turn() == []


def test_a_source_filled_by_another_thread_is_noticed(small: Transcriber) -> None:
    engine = small.create_engine()
    source = StreamingAudioSource()
    session = small.create_streaming_session(source=source)
    engine.add(session)
    source.append(np.zeros(16_000, np.float32))
    assert [one for one, _ in engine.turn()] == [session]


def test_memory_of_a_stream_is_that_of_its_rings(small: Transcriber) -> None:
    """Rows are given back when their stream ends, and taken by the next."""
    small.network._trays.clear()  # those of sessions that other tests have not forgotten yet
    engine = small.create_engine(n_expected=8)
    sizes = deque(maxlen=2)
    for _ in range(3):
        sessions = [small.create_streaming_session() for _ in range(8)]
        for session in sessions:
            engine.add(session)
            session.feed(np.zeros(16_000 * 10, np.float32))
        while engine.turn():
            pass
        states = [session.state for session in sessions]
        trays = {id(state.encoder.ring.tray): state.encoder.ring.tray for state in states}
        trays |= {id(state.decoder.tray): state.decoder.tray for state in states}
        assert sum(tray.nbytes for tray in trays.values()) == sum(state.nbytes for state in states)
        del states
        for session in sessions:
            session.close()
        while engine.turn():
            pass
        gc.collect()  # sessions of other tests, which might go in between
        mx.clear_cache()
        sizes.append(mx.get_active_memory())
        assert all(len(tray.free_rows) == tray.n_rows for tray in trays.values())
    assert sizes[0] == sizes[1]
