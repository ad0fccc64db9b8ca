"""When each word was spoken, from the slot in which the model wrote it.

Knows the order of tokens and the stream's clock, nothing of the model.
"""

from voxpipe.model.tokenizer import TextStream
from voxpipe.output.transcript import Alternatives, Delta
from voxpipe.runtime.frontend import FrontEnd

MAX_WORD_S = 0.6  # assumed when nothing tells where a word began
QUEUED_WORD_S = 0.1  # and how long a word lasts at least that had to wait for the one before to be written,
QUEUED_LETTER_S = 0.08  # for each letter of its first piece


class WordClock:
    """Turns tokens into deltas that know when their word was spoken.

    The model writes a word's mark in the slot in which the word ends, and its pieces behind it. A word that ends while
    another is still being written has no mark and comes late: its end lies between the end of the word before and its
    first piece, sooner for a short word. Where a word begins, the end of the word before tells.
    """

    def __init__(self, text: TextStream, front_end: FrontEnd) -> None:
        self._text = text
        self._front_end = front_end
        self._marked = True  # the next piece of text begins a word
        self._start = self._end = 0.0
        self._tokens: list[int] = []  # whose bytes have not become text yet
        self._logprob = 0.0

    def mark(self) -> None:
        """The next piece of text begins a word."""
        self._marked = True

    def push(self, token: int, logprob: float, *, slot: int, alternatives: Alternatives = ()) -> Delta | None:
        """Take the token generated for the `slot`-th 80 ms and return the text it completes, if any."""
        text = self._text.push(token)
        if not self._text.is_text(token):
            return None
        if self._marked or (text[:1].isspace() and not self._tokens):
            self._begin_word(text, slot)
        self._tokens.append(token)
        self._logprob += logprob
        return self._emit(text, alternatives)

    def finish(self) -> Delta | None:
        """What is left of an unfinished character when the stream ends."""
        return self._emit(self._text.finish())

    def _begin_word(self, text: str, slot: int) -> None:
        previous_end = self._end
        # the piece follows its mark by one slot, and the word ended within the mark's slot
        end = self._front_end.time_at(slot - 0.5)
        if not self._marked:
            end = min(end, previous_end + QUEUED_WORD_S + QUEUED_LETTER_S * len(text.strip()))
        self._marked = False
        self._end = max(previous_end, end)
        self._start = max(previous_end, self._end - MAX_WORD_S)

    def _emit(self, text: str, alternatives: Alternatives = ()) -> Delta | None:
        if not text:
            return None
        delta = Delta(
            text,
            start=self._start,
            end=self._end,
            tokens=tuple(self._tokens),
            logprob=self._logprob,
            alternatives=alternatives,
        )
        self._tokens, self._logprob = [], 0.0
        return delta
