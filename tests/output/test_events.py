"""JSON lines: whatever the names and texts are, a line is UTF-8 and JSON."""

import io
import json

from hypothesis import given
from hypothesis import strategies as st

from voxpipe.output.events import JsonLines, StreamEvents
from voxpipe.output.transcript import Alternatives, Delta

half = st.sampled_from("\ud800\udbff\udc00\udfff")  # of a surrogate pair
any_text = st.lists(st.text(max_size=3) | half).map("".join)


def written(
    *, name: str, text: str = " a", logprobs: bool = False, alternatives: Alternatives = ()
) -> list[dict[str, object]]:
    output = io.BytesIO()
    events = StreamEvents(JsonLines(output), stream=name, source=name, logprobs=logprobs)
    events.delta(Delta(text, start=0.0, end=0.08, tokens=(7, 8), logprob=-0.123456, alternatives=alternatives))
    *lines, rest = output.getvalue().decode("utf-8").split("\n")
    assert rest == ""
    return [json.loads(line) for line in lines]


@given(any_text, any_text)
def test_any_name_and_text_make_two_whole_lines(name: str, text: str) -> None:
    start, delta = written(name=name, text=text)
    assert [start["type"], delta["type"]] == ["start", "delta"]
    if not any("\ud800" <= character <= "\udfff" for character in name + text):
        assert (start["stream"], start["source"], delta["text"]) == (name, name, text)


def test_half_a_surrogate_pair_is_escaped_as_json_has_it() -> None:
    assert written(name="in-\udcff.pcm é")[0]["stream"] == "in-\udcff.pcm é"


def test_a_delta_says_how_sure_the_model_was_only_if_that_is_wanted() -> None:
    assert "logprob" not in written(name="a")[1]
    assert written(name="a", logprobs=True)[1] == {
        "type": "delta",
        "stream": "a",
        "seq": 1,
        "text": " a",
        "start": 0.0,
        "end": 0.08,
        "logprob": -0.1235,
    }


def test_a_delta_says_what_else_it_might_have_been() -> None:
    delta = written(name="a", alternatives=((" an", -2.00004), ("", -0.00001)))[1]
    assert delta["alternatives"] == [{"text": " an", "logprob": -2.0}, {"text": "", "logprob": 0.0}]
    assert "logprob" not in delta
