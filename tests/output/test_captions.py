"""Captions: words from pieces, cues from words, lines from cues; whatever the words and their times are."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxpipe.output.captions import (
    COLUMNS_PER_S,
    LINE_COLUMNS,
    MAX_LATE_S,
    Cue,
    CueMaker,
    Word,
    WordJoiner,
    break_lines,
    clock,
    columns,
    fits,
    join_words,
    srt_escape,
    vtt_escape,
)
from voxpipe.output.transcript import Delta

JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。"
)
THAI = "เราเกิดมาทั้งทีต้องทำความดีให้มากที่สุดเท่าที่จะทำได้ก่อนที่จะจากโลกนี้ไป"

latin_words = st.text(string.ascii_letters + ",.'", min_size=1, max_size=60)
any_words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def delta(text: str, start: float, end: float, logprob: float = 0.0, n_tokens: int = 1) -> Delta:
    return Delta(text, start=start, end=end, tokens=tuple(range(n_tokens)), logprob=logprob)


def joined(*deltas: Delta) -> list[Word]:
    joiner = WordJoiner()
    return [word for one in deltas for word in joiner.push([one])] + joiner.finish()


def evenly(text: str, *, s_per_word: float = 0.4, start: float = 0.0) -> list[Word]:
    """The words of `text`, one after the other."""
    words = []
    for n, word in enumerate(text.split()):
        words.append(Word(word, start + n * s_per_word, start + (n + 1) * s_per_word, 1.0))
    return words


def cues_of(words: list[Word], *, audio_s: float | None = None) -> list[Cue]:
    maker = CueMaker()
    return [cue for word in words for cue in maker.push([word])] + maker.finish(audio_s)


def squeezed(text: str) -> str:
    return "".join(text.split())


# words


def test_pieces_make_words_with_times_and_probability() -> None:
    words = joined(
        delta(" dis", 1.0, 1.6, -0.2), delta("tinct", 1.0, 1.6, -0.4), delta("ly", 1.0, 1.6), delta(" now", 1.6, 2.0)
    )
    assert [(word.text, word.start, word.end, word.spaced) for word in words] == [
        ("distinctly", 1.0, 1.6, True),
        ("now", 1.6, 2.0, True),
    ]
    assert words[0].probability == pytest.approx(2.718281828 ** (-0.6 / 3))
    assert words[1].probability == 1.0


def test_a_word_is_whole_however_its_pieces_are_timed() -> None:
    (word,) = joined(delta(" it", 1.0, 1.2), delta("'s", 1.3, 1.5))
    assert (word.text, word.start, word.end) == ("it's", 1.0, 1.5)


def test_what_the_model_wrote_in_one_go_is_a_word_where_no_spaces_are_written() -> None:
    words = joined(delta("吾", 0.0, 0.4), delta("輩", 0.0, 0.4), delta("は", 0.4, 0.6), delta("。", 0.7, 0.8))
    assert [(word.text, word.spaced) for word in words] == [("吾輩", False), ("は。", False)]


def test_white_space_and_what_no_text_file_may_hold() -> None:
    words = joined(delta("  a b\n", 0.0, 1.0), delta("c\0\x1b \ud800", 1.0, 2.0), delta(" 10\u00a0km", 2.0, 3.0))
    assert [word.text for word in words] == ["a", "b", "c\ufffd\ufffd", "\ufffd", "10\u00a0km"]
    assert joined(delta("   ", 0.0, 1.0)) == []


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(any_words, st.booleans()), max_size=20))
def test_words_keep_every_character(pieces: list[tuple[str, bool]]) -> None:
    deltas = [delta(f" {text}" if spaced else text, float(n), n + 0.5) for n, (text, spaced) in enumerate(pieces)]
    words = joined(*deltas)
    assert squeezed(join_words(words)) == squeezed("".join(word.text for word in words))
    assert len(squeezed(join_words(words))) == len(squeezed("".join(deltas)))
    assert all(word.text and not word.text.isspace() for word in words if "\u00a0" not in word.text)


# lines


@settings(deadline=None)  # the machine may be busy
@given(st.lists(latin_words, max_size=30), st.integers(10, 60))
def test_lines_split_no_word_and_keep_every_character(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = break_lines(text, width)
    assert " ".join(lines) == text
    assert all(columns(line) <= width or " " not in line for line in lines)
    assert fits(text, width) == (len(lines) <= 2)


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=200), st.integers(10, 60))
def test_lines_of_any_text(text: str, width: int) -> None:
    lines = break_lines(text, width)
    held_together = re.split(r"[^\S\u00a0\u2007\u202f]+", text)
    assert squeezed("".join(lines)) == squeezed(text)
    for word in held_together:
        if word and word.isascii():
            assert any(word in line for line in lines)


@pytest.mark.parametrize("text", [JAPANESE, THAI])
def test_lines_of_scripts_without_spaces(text: str) -> None:
    lines = break_lines(text)
    assert "".join(lines) == text
    assert all(columns(line) <= LINE_COLUMNS for line in lines)
    assert all(line[0] not in "。、ー" and line[0] not in "\u0e31\u0e34\u0e35\u0e48\u0e49" for line in lines)
    assert not any(line.endswith(("เ", "แ", "โ", "ไ", "ใ")) for line in lines)


def test_two_lines_are_of_like_length_and_break_behind_a_clause() -> None:
    assert break_lines("I got up, and went down into the great hall, and so out") == [
        "I got up, and went down into",
        "the great hall, and so out",
    ]
    assert break_lines("When I had gone down into it, there was nobody left") == [
        "When I had gone down into it,",
        "there was nobody left",
    ]
    assert break_lines("short") == ["short"]
    assert break_lines("  ") == []


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert columns("abc") == 3
    assert columns("猫だ") == 4
    assert columns("e\u0301") == 1


# cues


@st.composite
def timed_words(draw: st.DrawFn) -> list[Word]:
    """Words as the model gives them: in order, some without any length, some after long pauses."""
    words, at = [], 0.0
    for text in draw(st.lists(st.one_of(latin_words, st.sampled_from([JAPANESE, "猫", "です。"])), max_size=40)):
        at += draw(st.sampled_from([0.0, 0.0, 0.0, 0.08, 0.5, 1.0, 30.0]))
        end = at + draw(st.sampled_from([0.0, 0.08, 0.24, 0.6]))
        words.append(Word(text, at, end, 1.0, draw(st.booleans())))
        at = end
    return words


@settings(deadline=None)  # the machine may be busy
@given(timed_words())
def test_cues_of_any_words(words: list[Word]) -> None:
    cues = cues_of(words)
    assert squeezed("".join(line for cue in cues for line in cue.lines)) == squeezed(join_words(words))
    previous_end = 0.0
    for cue in cues:
        assert cue.start >= previous_end
        assert round(cue.end * 1000) - round(cue.start * 1000) >= 190
        assert 1 <= len(cue.lines) <= 2
        for line in cue.lines:
            assert line == line.strip(" ")
            assert line
            assert columns(line) <= LINE_COLUMNS or " " not in line
        previous_end = cue.end


@settings(deadline=None)  # the machine may be busy
@given(timed_words())
def test_any_chunking_gives_the_same_cues(words: list[Word]) -> None:
    maker = CueMaker()
    assert maker.push(words) + maker.finish() == cues_of(words)


def test_a_cue_ends_at_a_pause_and_stays_to_be_read() -> None:
    cues = cues_of(evenly("it was late", s_per_word=0.1) + evenly("nobody came", start=5.0))
    assert [(cue.lines, cue.start, cue.end) for cue in cues] == [
        (("it was late",), 0.0, 0.84),
        (("nobody came",), 5.0, 5.84),
    ]


def test_the_last_cue_does_not_outlast_the_audio_only_to_be_read() -> None:
    (cue,) = cues_of(evenly("nobody came", start=5.0, s_per_word=0.1), audio_s=5.5)
    assert (cue.start, cue.end) == (5.0, 5.5)


def test_speech_faster_than_a_reader_makes_a_cue_late_by_half_a_second_at_most() -> None:
    words = evenly("nineteen eighty four " * 40, s_per_word=0.2)
    starts = {round(word.start, 2) for word in words}
    cues = cues_of(words)
    assert len(cues) > 5
    for cue in cues:
        on_time = max(start for start in starts if start <= cue.start)
        assert cue.start - on_time <= MAX_LATE_S
    slow = cues_of(evenly("nineteen eighty four " * 40, s_per_word=0.6))
    for cue in slow:
        assert columns(" ".join(cue.lines)) / (cue.end - cue.start) <= COLUMNS_PER_S


def test_a_full_cue_ends_where_a_sentence_does() -> None:
    text = (
        "The night was dark and cold. I went on and on, until the very last of the light had gone out behind the hill."
    )
    cues = cues_of(evenly(text, s_per_word=0.2))
    assert " ".join(cues[0].lines) == "The night was dark and cold."


def test_no_word_is_left_alone_in_a_last_cue() -> None:
    text = "but i was still on the same beach and i saw them distinctly now as soon as i stopped"
    cues = cues_of(evenly(text, s_per_word=0.25))
    assert len(cues) == 2
    assert all(columns(" ".join(cue.lines)) > 30 for cue in cues)


def test_a_long_text_without_spaces_is_shared_out_in_time() -> None:
    cues = cues_of([Word(JAPANESE, 0.0, 14.0, 1.0, spaced=False)])
    assert "".join(line for cue in cues for line in cue.lines) == JAPANESE
    assert len(cues) >= 2
    assert cues[-1].end <= 14.5
    assert all(columns(line) <= LINE_COLUMNS for cue in cues for line in cue.lines)


def test_hours_are_held_a_cue_at_a_time() -> None:
    maker = CueMaker()
    n_shown = 0
    for n in range(30_000):
        n_shown += len(maker.push([Word(f"word{n}", n * 0.36, n * 0.36 + 0.36, 1.0)]))
        assert len(maker._words) + len(maker._waiting) < 40
    assert n_shown > 2000


# text


def test_clock() -> None:
    assert clock(0.0, point=",") == "00:00:00,000"
    assert clock(3599.999, point=".") == "00:59:59.999"
    assert clock(3599.9999, point=".") == "01:00:00.000"
    assert clock(100 * 3600 + 61.05, point=".") == "100:01:01.050"


def test_escapes() -> None:
    assert vtt_escape("a --> b & <c>") == "a --&gt; b &amp; &lt;c&gt;"
    assert srt_escape("a --> b & <i>c {\\an8} {d}") == "a --\u2060> b & <\u2060i>c {\u2060\\an8} {d}"
