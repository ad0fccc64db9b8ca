"""One live stream on a model: feed samples in, step, take deltas out.

A session knows the schedule of one stream (prompt, delay, one token per 80 ms, end) and nothing of threads, files, clocks
or of who shares the network with it. `feed`, `flush` and `close` only queue and may be called from any thread; all else
belongs to the one thread that does the model's work. Everything a session keeps has a bound, except the tokens, which it
keeps only if asked to.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxpipe.config import MS_PER_TOKEN, SAMPLE_RATE, delay_tokens
from voxpipe.errors import UsageError
from voxpipe.model.tokenizer import TextStream, Tokenizer
from voxpipe.output.transcript import Delta
from voxpipe.runtime.frontend import FrontEnd, audible
from voxpipe.runtime.source import StreamingAudioSource
from voxpipe.runtime.words import MAX_WORD_S, WordClock

if TYPE_CHECKING:
    from voxpipe.runtime.runner import Runner

Floats = NDArray[np.float32]
Likely = Sequence[tuple[int, float]]  # tokens and the logarithms of their probabilities, the likeliest first

# A model can fall into a rut of blanks over real speech, fed by its own context, for minutes. Pauses in speech reach 165
# blanks; silence wins by 8.5 logits and more, ruts by 3.5 to 6.6 (vllm-project/vllm#47614), so a penalty that grows to
# 7.0 after 200 blanks ends a rut and leaves silence alone.
RUT_BLANKS = 200
RUT_PENALTY_STEP = 0.5
RUT_PENALTY_MAX = 7.0
RUT_AUDIBLE_SHARE = 0.1  # of the last RUT_BLANKS tokens: below it, silence is the better explanation

ACCEPTANCE_WEIGHT = 0.1  # of the newest guess in the share of right ones
FIRST_ACCEPTANCE = 0.5
MAX_ACCEPTANCE = 0.999


class StreamingSession:
    """One stream.

    Args:
        delay_ms: how long the model may listen before it commits to a word; one of `DELAYS_MS`.
        max_tokens: stop after so many tokens of 80 ms (`truncated` then says so); by default there is no limit.
        source: where `feed` goes, if somebody else fills it.
        keep_tokens: keep every sampled id in `tokens`, which grows with the stream.
        n_alternatives: of each delta, how many texts to name that its last token might have been instead.
        first_token: position at which the model's clock starts; results do not depend on it.

    Attributes:
        done: the stream has ended and its last delta was returned.
        truncated: `max_tokens` ended it.
        tokens: ids sampled so far, if kept.
        n_guarded: tokens at which the blank-rut guard acted.
    """

    def __init__(
        self,
        runner: "Runner",
        tokenizer: Tokenizer,
        *,
        delay_ms: int | None = None,
        max_tokens: int | None = None,
        source: StreamingAudioSource | None = None,
        keep_tokens: bool = False,
        n_alternatives: int = 0,
        first_token: int = 0,
    ) -> None:
        runner.check_thread()
        config = runner.network.config
        if n_alternatives < 0:
            raise UsageError(f"n_alternatives must be 0 or more, not {n_alternatives}")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, not {max_tokens}")
        n_delay = delay_tokens(config.transcription_delay_ms if delay_ms is None else delay_ms)
        self.delay_ms = n_delay * MS_PER_TOKEN
        self._runner = runner
        self._config = config
        self.state = runner.network.begin(n_delay, first_token=first_token)
        self._source = source or StreamingAudioSource()
        self._front_end = FrontEnd(self._source, n_left_pad_tokens=config.n_left_pad_tokens, n_delay_tokens=n_delay)
        self._embeds: mx.array | None = None  # (T, dim) audio embeddings that wait to be decoded
        self._waiting: deque[bool] = deque()  # whether there was sound in each of them
        self._audible: deque[bool] = deque(maxlen=RUT_BLANKS)
        self._n_prompt = 1 + config.n_left_pad_tokens + n_delay
        self._position = runner.network.n_constant_tokens  # of the next audio embedding to be decoded
        self._token = config.streaming_pad_id if self._position else config.bos_id
        self._guesses: list[int] = []
        self._n_blanks = 0
        self._acceptance = FIRST_ACCEPTANCE
        self._max_tokens = max_tokens
        self._keep_tokens = keep_tokens
        self.n_alternatives = n_alternatives
        self._tokenizer = tokenizer
        self._words = WordClock(TextStream(tokenizer), self._front_end)
        self._deltas: list[Delta] = []
        self.tokens: list[int] = []
        self.done = False
        self.truncated = False
        self.n_guarded = 0

    def feed(self, samples: ArrayLike) -> None:
        """Queue (n_samples,) of 16 kHz mono audio; never waits for the model. Safe from any thread."""
        self._source.append(samples)

    def flush(self) -> None:
        """Have the words spoken so far decoded without ending the stream. Safe from any thread."""
        self._source.flush()

    def close(self) -> None:
        """Declare the audio ended; `step` until `done`. Safe from any thread."""
        self._source.close()

    @property
    def starved(self) -> bool:
        """Whether `step` can do nothing until there is more audio, a flush or the close."""
        if self.done or self._waiting:
            return self.done
        return not self._front_end.ready() and not self._front_end.ended

    @property
    def audio_s(self) -> float:
        """Seconds of audio taken in so far."""
        return self._front_end.n_samples / SAMPLE_RATE

    @property
    def settled_s(self) -> float:
        """Second of the stream before which no further word will begin."""
        return self._front_end.time_at(max(0, self.n_tokens - 1)) - MAX_WORD_S

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that have come in and are not decoded yet."""
        return self._source.buffered_s + len(self._waiting) * MS_PER_TOKEN / 1000

    @property
    def blank_run_s(self) -> float:
        """Seconds of audio for which the model has said nothing, up to its last token."""
        return self._n_blanks * MS_PER_TOKEN / 1000

    def take_gaps(self) -> list[tuple[float, float]]:
        """Remove and return the (start, end) seconds of audio that a lossy source has dropped."""
        gaps, self._front_end.gaps = self._front_end.gaps, []
        return [(first / SAMPLE_RATE, (first + n) / SAMPLE_RATE) for first, n in gaps]

    @property
    def n_tokens(self) -> int:
        """Tokens sampled so far."""
        return max(0, self._position - self._n_prompt + 1)

    def step(self, max_decode_tokens: int = 4) -> list[Delta]:
        """Do a bounded piece of work, alone: at most `max_decode_tokens` tokens or decoder calls.

        Returns:
            The deltas of this piece, none while the model waits or hears silence, and none once `done`.
        """
        left = max_decode_tokens
        while left > 0 and not self.starved:
            before = self.n_tokens
            self._runner.run([self], max_tokens=left)
            left -= max(1, self.n_tokens - before)
            if self.finish_if_exhausted():
                break
        return self.take_deltas()

    def take_deltas(self) -> list[Delta]:
        """Remove and return what has come out."""
        deltas, self._deltas = self._deltas, []
        return deltas

    # --- what the runner asks, in this order ---------------------------------------------------------------------------

    def take_frames(self, max_tokens: int) -> Floats | None:
        """(8 T, 400) frames of samples of the tokens that are there, up to `max_tokens`; None while there is not one."""
        return self._front_end.take(max_tokens)

    def add_embeds(self, embeds: mx.array, mel: Floats) -> None:
        """Queue the (T, dim) audio embeddings that were made of `mel`."""
        self._embeds = embeds if self._embeds is None else mx.concatenate([self._embeds, embeds])
        self._waiting.extend(audible(mel).tolist())

    @property
    def n_special(self) -> int:
        """Ids below it stand for no text."""
        return self._tokenizer.n_special

    @property
    def n_waiting(self) -> int:
        """Audio embeddings that wait to be decoded."""
        return len(self._waiting)

    @property
    def n_given(self) -> int:
        """Of the next positions, those whose previous token is known: the rest of the prompt, or one."""
        return max(1, self._n_prompt - self._position)

    def expected_tokens(self, n: int) -> float:
        """By how many of `n` positions the stream will go on, after its share of right guesses so far."""
        share = min(self._acceptance, MAX_ACCEPTANCE)
        n_guesses = max(0, n - self.n_given)
        return n - n_guesses + share * (1.0 - share**n_guesses) / (1.0 - share)

    def propose(self, n: int) -> list[int]:
        """The ids before the next `n` positions: the last token, then guesses of what will come of each position.

        The prompt's are known. Others are what the network said there when a wrong token stood before it, which is often
        right all the same, and blanks where it was not asked yet.
        """
        guesses = self._guesses[: n - 1] if self.n_given == 1 else []
        return [self._token, *guesses] + [self._config.streaming_pad_id] * (n - 1 - len(guesses))

    def waiting_embeds(self, n: int) -> mx.array:
        """(n, dim) audio embeddings of the next `n` positions."""
        assert self._embeds is not None
        return self._embeds[:n]

    def blank_penalties(self, tokens: Sequence[int]) -> list[float]:
        """What is taken from the blank's logit at each of the next positions, if the guesses before it are right."""
        if self._n_blanks + len(tokens) <= RUT_BLANKS:
            return [0.0] * len(tokens)
        sound = deque(self._audible, maxlen=RUT_BLANKS)
        n_blanks = self._n_blanks
        penalties = []
        for index, is_audible in zip(range(len(tokens)), self._waiting, strict=False):
            if index:
                n_blanks = n_blanks + 1 if tokens[index] == self._config.streaming_pad_id else 0
            sound.append(is_audible)
            in_rut = n_blanks > RUT_BLANKS and sum(sound) >= RUT_AUDIBLE_SHARE * RUT_BLANKS
            penalties.append(min(RUT_PENALTY_MAX, RUT_PENALTY_STEP * (n_blanks - RUT_BLANKS)) if in_rut else 0.0)
        return penalties

    def accept(
        self, tokens: Sequence[int], best: Sequence[int], logprobs: Sequence[float], others: Sequence[Likely] = ()
    ) -> int:
        """Go on by the positions whose previous token was right, and take the rest back.

        Args:
            tokens: from `propose`.
            best, logprobs: what the network chose after each of them.
            others: and its likeliest tokens of text, if they were asked for.

        Returns:
            By how many positions, at least one.
        """
        n_given = self.n_given
        penalties = self.blank_penalties(tokens)
        n = 0
        while n < len(tokens):
            self._audible.append(self._waiting.popleft())
            self._position += 1
            n += 1
            if self._position < self._n_prompt:
                self._token = self._config.streaming_pad_id
                continue
            self.n_guarded += penalties[n - 1] > 0.0
            self._choose(best[n - 1], logprobs[n - 1], others[n - 1] if others else ())
            is_guess = n >= n_given and n < len(tokens)
            if is_guess:
                self._acceptance += ACCEPTANCE_WEIGHT * ((self._token == tokens[n]) - self._acceptance)
            if self.done or (is_guess and self._token != tokens[n]):
                break
        self._guesses = list(best[n:])
        self.state.decoder.rollback(len(tokens) - n)
        assert self._embeds is not None
        self._embeds = self._embeds[n:] if self._waiting else None
        if self.done:
            self._release()
        return n

    def finish_if_exhausted(self) -> bool:
        """End the stream if all is decoded that there will ever be; return whether it has ended."""
        if not self.done and self._is_exhausted():
            self._finish()
            self._release()
        return self.done

    def _is_exhausted(self) -> bool:
        return not self._waiting and self._front_end.ended and not self._front_end.ready()

    def _choose(self, token: int, logprob: float, others: Likely) -> None:
        """Take the token of the current position and turn it into text."""
        config = self._config
        self._token = token
        if self._keep_tokens:
            self.tokens.append(token)
        self._n_blanks = self._n_blanks + 1 if token == config.streaming_pad_id else 0
        if token == config.streaming_word_id:
            self._words.mark()
        texts = [(self._tokenizer.decode([other]), log) for other, log in others if other != token]
        alternatives = tuple(texts[: self.n_alternatives])
        delta = self._words.push(token, logprob, slot=self.n_tokens - 1, alternatives=alternatives)
        if delta is not None:
            self._deltas.append(delta)
        end_token = self._front_end.end_token
        if token == config.eos_id and end_token is not None and self._position - 1 >= end_token:
            self._finish()  # an end-of-sequence token anywhere else is one more blank
        elif self._max_tokens is not None and self.n_tokens >= self._max_tokens:
            self.truncated = not self._is_exhausted()
            self._finish()

    def _finish(self) -> None:
        """End the stream."""
        self.done = True
        delta = self._words.finish()
        if delta is not None:
            self._deltas.append(delta)

    def _release(self) -> None:
        """Give the caches back; the session object may outlive its stream. A producer that goes on does not wait."""
        self._source.close()
        self._embeds = None
        self._waiting.clear()
        del self.state
