"""Deltas and segments."""

import copy
import json
import pickle

from hypothesis import given
from hypothesis import strategies as st

from voxpipe.output.transcript import MAX_SEGMENT_S, Delta, SegmentStream, segments


def delta(text: str, start: float, end: float) -> Delta:
    return Delta(text, start=start, end=end, tokens=(7, 8), logprob=-0.5)


def test_a_delta_is_a_str_that_knows_its_place() -> None:
    one = delta(" word", 1.0, 1.5)
    assert one == " word"
    assert isinstance(one, str)
    assert f"{one}!" == " word!"
    assert hash(one) == hash(" word")
    assert json.dumps({"text": one}) == '{"text": " word"}'
    assert (one.start, one.end, one.tokens, one.logprob) == (1.0, 1.5, (7, 8), -0.5)


def test_a_delta_can_be_copied_and_sent_to_another_process() -> None:
    one = delta(" word", 1.0, 1.5)
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is Delta
        assert (other, other.start, other.end, other.tokens, other.logprob) == (" word", 1.0, 1.5, (7, 8), -0.5)


def test_segments_are_split_at_pauses_and_lose_no_text() -> None:
    deltas = [delta(" a", 0.0, 0.5), delta("b", 0.0, 0.5), delta(" c", 1.2, 1.5), delta(" d", 2.5, 3.0)]
    assert [(one.text, one.start, one.end) for one in segments(deltas)] == [(" ab c", 0.0, 1.5), (" d", 2.5, 3.0)]
    assert [one.text for one in segments(deltas, pause_s=0.5)] == [" ab", " c", " d"]
    assert segments([]) == []


def test_a_pause_of_exactly_the_limit_splits() -> None:
    assert len(segments([delta(" a", 0.0, 1.0), delta(" b", 1.5, 2.0)], pause_s=0.5)) == 2
    assert len(segments([delta(" a", 0.0, 1.0), delta(" b", 1.25, 2.0)], pause_s=0.5)) == 1


def test_the_pieces_of_one_word_are_never_split() -> None:
    deltas = [delta(" long", 0.0, 3.0), delta("er", 0.0, 3.0), delta("est", 0.0, 3.0)]
    assert [one.text for one in segments(deltas)] == [" longerest"]


def test_talk_without_a_pause_is_split_before_the_word_that_makes_it_too_long() -> None:
    deltas = [delta(piece, 0.5 * n, 0.5 * n + 0.5) for n in range(2_000) for piece in (f" {n}", "er")]
    split = segments(deltas, pause_s=60.0)
    assert "".join(one.text for one in split) == "".join(deltas)
    assert [one.reason for one in split] == ["length", "length", "length", "end"]
    assert [one.end - one.start for one in split] == [MAX_SEGMENT_S, MAX_SEGMENT_S, MAX_SEGMENT_S, 100.0]
    assert all(one.text.startswith(" ") for one in split)  # no word is torn


def test_a_long_segment_that_ends_with_a_pause_says_so() -> None:
    deltas = [delta(" a", 0.0, 299.0), delta(" b", 301.0, 301.5)]
    assert [one.reason for one in segments(deltas)] == ["pause", "end"]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=20),
    st.sampled_from([0.08, 0.8, 2.0]),
    st.lists(st.floats(0, 3), max_size=20),
)
def test_segments_that_come_live_are_those_of_the_whole(
    gaps: list[tuple[float, float]], pause_s: float, waits: list[float]
) -> None:
    """Whenever it is said that nothing begins before a second, as long as it is true."""
    deltas, at = [], 0.0
    for number, (gap, length) in enumerate(gaps):
        deltas.append(delta(f" {number}", at + gap, at + gap + length))
        at += gap + length
    stream, live = SegmentStream(pause_s), []
    for number, one in enumerate(deltas):
        before = deltas[number - 1].end if number else 0.0
        live.append(stream.settle(min(one.start, before + (waits[number] if number < len(waits) else 0.0))))
        live.append(stream.push(one))
    live.append(stream.finish())
    assert [segment for segment in live if segment is not None] == segments(deltas, pause_s=pause_s)
    assert stream.finish() is None
