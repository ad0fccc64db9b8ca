"""A worker's model on its thread: loading that fails, and decoding that does."""

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.clips import FUTURE, said, samples, words
from voxpipe.cluster.model import ModelChoice, ModelThread, _threads, model_thread
from voxpipe.errors import ModelError
from voxpipe.runtime.transcriber import Transcriber

TINY = ModelChoice("tiny")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    while _threads:
        _threads.popitem()[1].stop()


def failing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = itertools.count()

    def failing(*arguments: Any, **how: Any) -> Any:
        if next(calls) == 0:
            raise MemoryError("no room\nfor it")
        return function(*arguments, **how)

    return failing


def heard(thread: ModelThread) -> list[str]:
    turns = thread.transcribe([samples(FUTURE)], n_at_once=2)
    return words("".join(delta for progress in turns for delta in progress.deltas))


def test_a_model_that_is_not_there_leaves_nothing_open() -> None:
    choice = ModelChoice("nobody/nothing")
    with pytest.raises(ModelError, match="voxpipe pull nobody/nothing"):
        model_thread(choice)
    n_before = len(os.listdir("/dev/fd"))
    gc.disable()  # on a worker, it may be long until it comes
    try:
        for _ in range(10):
            with pytest.raises(ModelError):
                model_thread(choice)
        assert len(os.listdir("/dev/fd")) == n_before
    finally:
        gc.enable()


def test_whatever_has_kept_a_model_from_being_loaded_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from voxpipe.runtime import transcriber

    monkeypatch.setattr(transcriber, "load_choice", failing_once(transcriber.load_choice))
    with pytest.raises(ModelError, match=r"^MemoryError: no room for it$"):
        model_thread(TINY)
    assert model_thread(TINY).facts().name == "tiny"


def test_a_failure_is_told_to_who_has_asked_and_the_next_one_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transcriber, "create_engine", failing_once(Transcriber.create_engine))
    thread = model_thread(TINY)
    with pytest.raises(MemoryError):
        heard(thread)
    assert heard(thread) == said(FUTURE)
