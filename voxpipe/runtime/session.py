"""One live stream on a model: feed samples in, step, take deltas out.

A session knows the schedule of one stream (prompt, delay, one decoder step per 80 ms, end) and nothing of threads, files
or clocks. `feed`, `flush` and `close` only queue and may be called from any thread; `step` does the model's work and
belongs to the one thread that does all of it. Everything a session keeps has a bound, except the tokens, which it keeps
only if asked to.
"""

import logging
from collections import deque
from dataclasses import dataclass

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
from voxpipe.runtime.words import WordClock

log = logging.getLogger(__name__)

# A model can fall into a rut of blanks over real speech, fed by its own context, for minutes. Pauses in speech reach 165
# blanks; silence wins by 8.5 logits and more, ruts by 3.5 to 6.6 (vllm-project/vllm#47614), so a penalty that grows to
# 7.0 after 200 blanks ends a rut and leaves silence alone.
RUT_BLANKS = 200
RUT_PENALTY_STEP = 0.5
RUT_PENALTY_MAX = 7.0
RUT_AUDIBLE_SHARE = 0.1  # of the last RUT_BLANKS tokens: below it, silence is the better explanation

CLEAR_CACHE_TOKENS = 256  # MLX's buffer pool otherwise grows; clearing it at every step would double the step


@dataclass
class Group:
    """Audio embeddings made by one encoder call and not yet decoded."""

    embeds: mx.array  # (1, T, dim)
    audible: list[bool]  # whether there was sound in each token

    @property
    def n_tokens(self) -> int:
        return len(self.audible)

    def take(self, n: int) -> tuple[mx.array, list[bool]]:
        """Remove and return the first n."""
        taken = self.embeds[:, :n], self.audible[:n]
        self.embeds, self.audible = self.embeds[:, n:], self.audible[n:]
        return taken


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
        self._group: Group | None = None  # being decoded
        self._next_group: Group | None = None  # being encoded meanwhile
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
        if self.done or self._group is not None or self._next_group is not None:
            return self.done
        return not self._front_end.ready() and not self._front_end.ended

    @property
    def audio_s(self) -> float:
        """Seconds of audio taken in so far."""
        return self._front_end.n_samples / SAMPLE_RATE

    @property
    def n_tokens(self) -> int:
        """Tokens sampled so far."""
        return max(0, self._position - self._n_prompt + 1)

    def step(self, max_decode_tokens: int = 4) -> list[Delta]:
        """Do a bounded piece of work: at most two encoder calls and `max_decode_tokens` decoder calls.

        Returns:
            The deltas of this piece, none while the model waits or hears silence, and none once `done`.
        """
        deltas: list[Delta] = []
        if self.done:
            return deltas
        if self._group is None:
            self._group, self._next_group = self._next_group or self._encode(), None
        if self._group is not None and self._next_group is None and self._front_end.ready(ENCODER_GROUP_TOKENS):
            self._next_group = self._encode()
        for _ in range(max_decode_tokens):
            if self._group is None or self.done:
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
        decoded = self._group is None and self._next_group is None
        return decoded and self._front_end.ended and not self._front_end.ready()

    def _encode(self) -> Group | None:
        """Begin to encode the tokens that are there, up to a full group, without waiting for the result."""
        mel = self._front_end.take(ENCODER_GROUP_TOKENS)
        if mel is None:
            return None
        embeds = self._network.encode(mx.array(mel)[None], self._state)
        mx.async_eval(embeds)  # type: ignore[no-untyped-call]
        return Group(embeds, audible(mel).tolist())

    def _decode(self) -> Delta | None:
        """One decoder call: a piece of the prompt, or one token."""
        assert self._group is not None
        n_prompt_left = self._n_prompt - self._position
        n = min(self._group.n_tokens, n_prompt_left, DECODER_CHUNK_TOKENS) if n_prompt_left > 0 else 1
        ids = [self._token] + [self._config.streaming_pad_id] * (n - 1)
        embeds, are_audible = self._group.take(n)
        if not self._group.n_tokens:
            self._group = None
        self._audible.extend(are_audible)
        logits = self._network.decode(embeds, mx.array([ids]), self._scales, self._state)
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
        self._group = self._next_group = None
        del self._state
