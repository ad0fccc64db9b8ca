"""One live stream on a model: feed samples in, step, take deltas out.

A session knows the schedule of one stream (prompt, delay, one decoder step per 80 ms, end) and nothing of threads, files
or clocks. `feed`, `flush` and `close` only queue and may be called from any thread; `step` does the model's work and
belongs to the one thread that does all of it. Everything a session keeps has a bound, except the tokens, which it keeps
only if asked to.
"""

import logging
from collections import deque

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike

from voxpipe.config import MS_PER_TOKEN, SAMPLE_RATE, delay_tokens
from voxpipe.errors import UsageError
from voxpipe.model.tokenizer import TextStream, Tokenizer
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, ENCODER_GROUP_TOKENS, VoxtralRealtime
from voxpipe.output.transcript import Delta
from voxpipe.runtime.frontend import FrontEnd, audible
from voxpipe.runtime.source import StreamingAudioSource

log = logging.getLogger(__name__)

# A model can fall into a rut of blanks over real speech, fed by its own context, for minutes. Pauses in speech reach 165
# blanks; silence wins by 8.5 logits and more, ruts by 3.5 to 6.6 (vllm-project/vllm#47614), so a penalty that grows to
# 7.0 after 200 blanks ends a rut and leaves silence alone.
RUT_BLANKS = 200
RUT_PENALTY_STEP = 0.5
RUT_PENALTY_MAX = 7.0
RUT_AUDIBLE_SHARE = 0.1  # of the last RUT_BLANKS tokens: below it, silence is the better explanation

MAX_WORD_S = 0.6  # assumed when nothing tells where a word began
QUEUED_WORD_S = 0.1  # and how long a word lasts at least that had to wait for the one before to be written,
QUEUED_LETTER_S = 0.08  # for each letter of its first piece
CLEAR_CACHE_TOKENS = 256  # MLX's buffer pool otherwise grows; clearing it at every step would double the step


class StreamingSession:
    """One stream.

    Args:
        delay_ms: how long the model may listen before it commits to a word; one of `DELAYS_MS`.
        max_tokens: stop after so many tokens of 80 ms (`truncated` then says so); by default there is no limit.
        source: where `feed` goes, if somebody else fills it.
        keep_tokens: keep every sampled id in `tokens`, which grows with the stream.
        first_token: position at which the model's clock starts; results do not depend on it.

    Attributes:
        done: the stream has ended and its last delta was returned.
        truncated: `max_tokens` ended it.
        tokens: ids sampled so far, if kept.
        n_guarded: tokens at which the blank-rut guard acted.
    """

    def __init__(
        self,
        network: VoxtralRealtime,
        tokenizer: Tokenizer,
        *,
        delay_ms: int | None = None,
        max_tokens: int | None = None,
        source: StreamingAudioSource | None = None,
        keep_tokens: bool = False,
        first_token: int = 0,
    ) -> None:
        config = network.config
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, not {max_tokens}")
        n_delay = delay_tokens(config.transcription_delay_ms if delay_ms is None else delay_ms)
        self.delay_ms = n_delay * MS_PER_TOKEN
        self._network = network
        self._config = config
        self._scales = network.delay_scales(n_delay)
        self._state = network.make_state(first_token=first_token)
        self._source = source or StreamingAudioSource()
        self._front_end = FrontEnd(
            self._source, config.encoder, n_left_pad_tokens=config.n_left_pad_tokens, n_delay_tokens=n_delay
        )
        self._embeds: mx.array | None = None  # (1, T, dim) audio embeddings not yet decoded
        self._audible: deque[bool] = deque(maxlen=RUT_BLANKS)
        self._n_prompt = 1 + config.n_left_pad_tokens + n_delay
        self._position = 0  # of the next audio embedding to be decoded
        self._token = config.bos_id
        self._n_blanks = 0
        self._max_tokens = max_tokens
        self._keep_tokens = keep_tokens
        self._words = WordClock(TextStream(tokenizer), self._front_end)
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
        return self.done or (self._embeds is None and not self._front_end.ready() and not self._front_end.ended)

    @property
    def audio_s(self) -> float:
        """Seconds of audio taken in so far."""
        return self._front_end.n_samples / SAMPLE_RATE

    @property
    def n_tokens(self) -> int:
        """Tokens sampled so far."""
        return max(0, self._position - self._n_prompt + 1)

    def step(self, max_decode_tokens: int = 4) -> list[Delta]:
        """Do a bounded piece of work: at most one encoder call and `max_decode_tokens` decoder calls.

        Returns:
            The deltas of this piece, none while the model waits or hears silence, and none once `done`.
        """
        deltas: list[Delta] = []
        if self.done:
            return deltas
        if self._embeds is None:
            self._encode()
        for _ in range(max_decode_tokens):
            if self._embeds is None or self.done:
                break
            delta = self._decode()
            if delta is not None:
                deltas.append(delta)
        if self._exhausted():
            self.done = True
        if self.done:
            delta = self._words.finish()
            if delta is not None:
                deltas.append(delta)
            self._release()
        return deltas

    def _exhausted(self) -> bool:
        return self._embeds is None and self._front_end.ended and not self._front_end.ready()

    def _encode(self) -> None:
        mel = self._front_end.take(ENCODER_GROUP_TOKENS)
        if mel is not None:
            self._audible.extend(audible(mel).tolist())
            self._embeds = self._network.encode(mx.array(mel)[None], self._state)
            mx.eval(self._embeds)

    def _decode(self) -> Delta | None:
        """One decoder call: a piece of the prompt, or one token."""
        assert self._embeds is not None
        n_available = self._embeds.shape[1]
        n_prompt_left = self._n_prompt - self._position
        n = min(n_available, n_prompt_left, DECODER_CHUNK_TOKENS) if n_prompt_left > 0 else 1
        ids = [self._token] + [self._config.streaming_pad_id] * (n - 1)
        logits = self._network.decode(self._embeds[:, :n], mx.array([ids]), self._scales, self._state)
        self._embeds = self._embeds[:, n:] if n < n_available else None
        self._position += n
        if self._position < self._n_prompt:
            mx.eval(self._state.decoder.arrays())
            self._token = self._config.streaming_pad_id
            return None
        return self._choose(logits)

    def _choose(self, logits: mx.array) -> Delta | None:
        """Sample the token of the current position and turn it into text."""
        config = self._config
        logits = logits.astype(mx.float32)
        penalty = self._rut_penalty()
        if penalty:
            logits[:, config.streaming_pad_id] -= penalty
        best = logits.argmax(axis=-1)
        logprob = logits.max(axis=-1) - logits.logsumexp(axis=-1)
        mx.eval(best, logprob)
        self._token, token_logprob = int(np.asarray(best)[0]), float(np.asarray(logprob)[0])
        if self._keep_tokens:
            self.tokens.append(self._token)
        if self.n_tokens % CLEAR_CACHE_TOKENS == 0:
            mx.clear_cache()
        self._n_blanks = self._n_blanks + 1 if self._token == config.streaming_pad_id else 0
        end_token = self._front_end.end_token
        if self._token == config.eos_id and end_token is not None and self._position - 1 >= end_token:
            self.done = True  # an end-of-sequence token anywhere else is one more blank
        elif self._max_tokens is not None and self.n_tokens >= self._max_tokens:
            self.done, self.truncated = True, not self._exhausted()
        if self._token == config.streaming_word_id:
            self._words.mark()
        return self._words.push(self._token, token_logprob, slot=self.n_tokens - 1)

    def _rut_penalty(self) -> float:
        run = self._n_blanks - RUT_BLANKS
        if run <= 0 or sum(self._audible) < RUT_AUDIBLE_SHARE * RUT_BLANKS:
            return 0.0
        self.n_guarded += 1
        return min(RUT_PENALTY_MAX, RUT_PENALTY_STEP * run)

    def _release(self) -> None:
        """Give the caches back; the session object may outlive its stream. A producer that goes on does not wait."""
        self._source.close()
        self._embeds = None
        del self._state


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

    def push(self, token: int, logprob: float, *, slot: int) -> Delta | None:
        """Take the token generated for the `slot`-th 80 ms and return the text it completes, if any."""
        text = self._text.push(token)
        if not self._text.is_text(token):
            return None
        if self._marked or (text[:1].isspace() and not self._tokens):
            self._begin_word(text, slot)
        self._tokens.append(token)
        self._logprob += logprob
        return self._emit(text)

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

    def _emit(self, text: str) -> Delta | None:
        if not text:
            return None
        delta = Delta(text, start=self._start, end=self._end, tokens=tuple(self._tokens), logprob=self._logprob)
        self._tokens, self._logprob = [], 0.0
        return delta
