"""Captions: pieces of text as they come -> words -> cues of one or two lines.

Everything is incremental and holds a cue or two. Times are the model's: it speaks in slots of 80 ms, so a cue can be
wrong by a few of them, and no rule here pretends otherwise. This module knows nothing of files.

Limits: 42 columns, two lines and 17 characters a second are the usual ones of broadcasters (Netflix Timed Text Style
Guide, BBC Subtitle Guidelines); a wide character (Chinese, Japanese) takes two columns and the reading time of two.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from voxpipe.output.transcript import SEGMENT_PAUSE_S, Delta

LINE_COLUMNS = 42
MAX_CUE_S = 7.0  # of speech in one cue
COLUMNS_PER_S = 17.0  # a reader's speed: a cue stays that long where the next one leaves room,
MAX_LATE_S = 0.5  # and may keep the next one waiting for so long
GOOD_CUE_S = 0.84  # a single word is seen for that long, again where there is room
MIN_CUE_S = 0.2  # whatever the times say

_SPACE = re.compile(r"[^\S\u00a0\u2007\u202f]+")  # those three hold a line together
_SENTENCE_ENDS = tuple(".?!…。？！")
_CLAUSE_ENDS = (*_SENTENCE_ENDS, *",;:–—、，；：")
_QUOTES = "\"'”’»)]」』）"
_UNSPACED = (  # scripts that write words without spaces between them
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # radicals, CJK punctuation, kana, bopomofo
    (0x31F0, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)
_NEVER_FIRST = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ々ーะาำๆະາຳໆ")
_NEVER_LAST = frozenset("เแโใไເແໂໃໄ\u1039\u17d2\u200d")  # vowels written before their consonant, joiners


@dataclass(frozen=True, slots=True)
class Word:
    """What stands between two spaces; where no spaces are written, what the model wrote in one go.

    Attributes:
        text: without spaces.
        start, end: seconds.
        probability: exp of the mean log-probability of its tokens, so that long words compare with short ones.
        spaced: whether there is a space before it.
    """

    text: str
    start: float
    end: float
    probability: float
    spaced: bool = True


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines that are shown from `start` to `end` (seconds, in hundredths)."""

    lines: tuple[str, ...]
    start: float
    end: float


class WordJoiner:
    """Deltas -> words. A word comes out when the next one begins, for only then it is known to be whole."""

    def __init__(self) -> None:
        self._text = ""
        self._spaced = False
        self._start = self._end = 0.0
        self._logprob = 0.0
        self._n_tokens = 0

    def push(self, deltas: Iterable[Delta]) -> list[Word]:
        """Return the (maybe no) words that are whole now."""
        words: list[Word] = []
        for delta in deltas:
            for index, part in enumerate(_SPACE.split(_printable(delta))):
                begins_anew = bool(part and self._text) and (
                    (delta.start, delta.end) != (self._start, self._end) and _may_break(self._text[-1], part[0])
                )
                if index or begins_anew:
                    words += self.finish()
                    self._spaced = index > 0
                if part:
                    self._add(part, delta)
        return words

    def finish(self) -> list[Word]:
        """Return the last word, if there is one."""
        if not self._text:
            return []
        probability = math.exp(self._logprob / max(1, self._n_tokens))
        word = Word(self._text, self._start, self._end, min(1.0, probability), self._spaced)
        self._text, self._logprob, self._n_tokens, self._spaced = "", 0.0, 0, False
        return [word]

    def _add(self, part: str, delta: Delta) -> None:
        if not self._text:
            self._start = delta.start
        self._end = delta.end
        self._text += part
        self._logprob += delta.logprob
        self._n_tokens += len(delta.tokens)


def join_words(words: Iterable[Word]) -> str:
    """The text of words, without the space before the first."""
    return "".join(f" {word.text}" if word.spaced else word.text for word in words).lstrip(" ")


def is_pause(previous: Word, word: Word) -> bool:
    """Whether a segment ends between the two."""
    return word.start - previous.end >= SEGMENT_PAUSE_S


class CueMaker:
    """Words -> cues: never overlapping, never empty, in order, each at most two lines.

    A cue ends at a pause, or before the word that has no room in it or would make it longer than MAX_CUE_S; then it ends
    where a sentence, a clause or a breath does, if one does in its latter part. It begins with its first word and stays
    as long as reading takes, which can make the next one late by MAX_LATE_S at most.
    """

    def __init__(self, *, width: int = LINE_COLUMNS) -> None:
        """Make one for lines of `width` columns; only a longer word goes beyond."""
        self._width = width
        self._words: list[Word] = []  # of the cue being filled
        self._waiting: list[Word] = []  # of a full one; it ends when the next begins
        self._free_from = 0.0

    def push(self, words: Iterable[Word]) -> list[Cue]:
        """Return the (maybe no) cues whose end is known now."""
        cues: list[Cue] = []
        for word in words:
            for piece in _split_oversize(word, self._width):
                while self._words and (n := self._n_words_before(piece)):
                    if is_pause(self._words[-1], piece):
                        self._balance()
                        n = len(self._words)
                    cues += self._close(n)
                self._words.append(piece)
        return cues

    def finish(self, audio_s: float | None = None) -> list[Cue]:
        """Return the last cues; none ends after `audio_s` only to be read."""
        self._balance()
        cues = self._close(len(self._words)) if self._words else []
        if self._waiting:
            cues.append(self._show(self._waiting, latest=math.inf if audio_s is None else audio_s))
        self._waiting = []
        return cues

    def _n_words_before(self, word: Word) -> int:
        """How many of the words held make a cue, now that `word` follows; 0 if it can join them."""
        held = self._words
        if is_pause(held[-1], word):
            return len(held)
        if fits(join_words([*held, word]), self._width) and word.end - held[0].start <= MAX_CUE_S:
            return 0
        n_columns = columns(join_words(held))
        best, best_score = len(held), -math.inf
        for n, (last, following) in enumerate(zip(held, [*held[1:], word], strict=True), start=1):
            score = columns(join_words(held[:n])) / n_columns + following.start - last.end
            ending = last.text.rstrip(_QUOTES)
            score += 0.8 if ending.endswith(_SENTENCE_ENDS) else 0.4 if ending.endswith(_CLAUSE_ENDS) else 0.0
            if score >= best_score:
                best, best_score = n, score
        return best

    def _balance(self) -> None:
        """Give a last cue of a word or two some words of the one before it."""
        if not self._words or not self._waiting or is_pause(self._waiting[-1], self._words[0]):
            return
        if columns(join_words(self._words)) >= self._width / 2:
            return
        words = self._waiting + self._words
        best, best_score = len(self._waiting), -math.inf
        for n in range(len(words) // 2, len(self._waiting) + 1):
            first, last = words[:n], words[n:]
            if not first or not fits(join_words(last), self._width) or last[-1].end - last[0].start > MAX_CUE_S:
                continue
            score = -abs(columns(join_words(first)) - columns(join_words(last))) / self._width
            score += 0.5 if first[-1].text.rstrip(_QUOTES).endswith(_CLAUSE_ENDS) else 0.0
            if score >= best_score:
                best, best_score = n, score
        self._waiting, self._words = words[:best], words[best:]

    def _close(self, n: int) -> list[Cue]:
        """Take the first `n` words held as a cue and return the one before it."""
        words, self._words = self._words[:n], self._words[n:]
        cues = [self._show(self._waiting, latest=words[0].start + MAX_LATE_S)] if self._waiting else []
        self._waiting = words
        return cues

    def _show(self, words: Sequence[Word], *, latest: float) -> Cue:
        text = join_words(words)
        start = max(self._free_from, round(words[0].start, 2))
        spoken = max(word.end for word in words)
        read = start + max(GOOD_CUE_S, columns(text) / COLUMNS_PER_S)
        end = max(start + MIN_CUE_S, min(max(spoken, read), latest))
        self._free_from = round(end, 2)
        return Cue(tuple(break_lines(text, self._width)), start, self._free_from)


def columns(text: str) -> int:
    """How wide `text` is on a screen: marks are 0, wide characters 2."""
    if text.isascii():
        return len(text)
    return sum(_char_columns(char) for char in text)


def break_lines(text: str, width: int = LINE_COLUMNS) -> list[str]:
    """Break `text` into lines of at most `width` columns: two of like length where they suffice, else as many as it takes.

    A break takes the place of a space, or falls between two characters of a script that writes none. No word is split:
    one that is wider than a line stands alone on its own. All other characters are kept, in order.
    """
    units = _units(text)
    whole = _line(units)
    if columns(whole) <= width or len(units) == 1:
        return [whole] if whole else []
    best: list[str] = []
    best_score = -math.inf
    for n in range(1, len(units)):
        lines = [_line(units[:n]), _line(units[n:])]
        if not _is_line(lines[0], n, width) or not _is_line(lines[1], len(units) - n, width):
            continue
        score = -abs(columns(lines[0]) - columns(lines[1])) / width
        score += 0.5 if lines[0].endswith(_CLAUSE_ENDS) else 0.0
        if score >= best_score:  # the later break of two like ones: a shorter line below looks torn
            best, best_score = lines, score
    return best or list(_wrap(units, width))


def fits(text: str, width: int = LINE_COLUMNS) -> bool:
    """Whether `text` makes at most two lines."""
    if columns(text) <= width:
        return True
    return len(list(_wrap(_units(text), width))) <= 2


def vtt_escape(text: str) -> str:
    """`text` as WebVTT has it: `&`, `<` and `>` as references, which no `-->` survives."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def srt_escape(text: str) -> str:
    """`text` as SubRip has it, which knows no escape: an invisible joiner keeps `-->`, tags and styles from being read."""
    return text.replace("-->", "--\u2060>").replace("<", "<\u2060").replace("{\\", "{\u2060\\")


def clock(seconds: float, *, point: str) -> str:
    """`seconds` as HH:MM:SS and milliseconds behind `point`."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _printable(text: str) -> str:
    """Put U+FFFD for what may not stand in a text file: control characters and halves of surrogate pairs."""
    if text.isprintable():
        return text
    is_bad = [unicodedata.category(char) in ("Cc", "Cs") and not char.isspace() for char in text]
    return "".join("\ufffd" if bad else char for char, bad in zip(text, is_bad, strict=True))


def _units(text: str) -> list[tuple[str, bool]]:
    """What no line break may split, each with whether a space stands before it."""
    units: list[tuple[str, bool]] = []
    for word in _SPACE.split(text):
        begin = 0
        for index in range(1, len(word) + 1):
            if index == len(word) or _may_break(word[index - 1], word[index]):
                units.append((word[begin:index], begin == 0))
                begin = index
    return units


def _line(units: Sequence[tuple[str, bool]]) -> str:
    return "".join(f" {text}" if spaced and n else text for n, (text, spaced) in enumerate(units))


def _is_line(line: str, n_units: int, width: int) -> bool:
    return n_units == 1 or columns(line) <= width


def _wrap(units: Sequence[tuple[str, bool]], width: int) -> Iterator[str]:
    """Lines filled one after the other."""
    line = ""
    for text, spaced in units:
        longer = f"{line} {text}" if spaced and line else line + text
        if line and columns(longer) > width:
            yield line
            longer = text
        line = longer
    if line:
        yield line


def _split_oversize(word: Word, width: int) -> Iterator[Word]:
    """A word of a script without spaces that has no room in a cue, in parts that have, its time shared out among them."""
    if fits(word.text, width):
        yield word
        return
    n_columns = columns(word.text)
    rate = (word.end - word.start) / n_columns
    start, spaced = word.start, word.spaced
    for line in _wrap(_units(word.text), width):
        end = min(word.end, start + rate * columns(line))
        yield replace(word, text=line, start=start, end=end, spaced=spaced)
        start, spaced = end, False


def _may_break(left: str, right: str) -> bool:
    """Whether a line may end between two characters that have no space between them."""
    if not _is_unspaced(left) and not _is_unspaced(right):
        return False
    if right in _NEVER_FIRST or left in _NEVER_LAST:
        return False
    return unicodedata.category(right) not in ("Mn", "Mc", "Me", "Pe", "Pf", "Po", "Pd", "Lm", "Cf") and (
        unicodedata.category(left) not in ("Ps", "Pi")
    )


def _is_unspaced(char: str) -> bool:
    code = ord(char)
    return code >= _UNSPACED[0][0] and any(first <= code <= last for first, last in _UNSPACED)


def _char_columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
