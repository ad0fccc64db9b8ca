"""The network at work for several sessions at once: one encoder call and one decoder call, whatever each of them brings.

When several audio embeddings of a stream wait already (a file, a backlog), the tokens between them are guessed: one pass
over the weights verifies several positions, the guesses that agree are kept, and the caches are rolled back to the first
that does not. What the network said behind a wrong guess is the next call's guess (Jacobi decoding). The tokens are those
that one position at a time gives. How many guesses pay is measured on the way: with the share of right ones of each
stream, and with the time that calls of each size take on this machine. A call is timed where nothing else is waited for: the
embeddings of a turn are part of it unless they are computed before, which is done now and then.
"""

import math
import threading
import time
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from voxpipe.errors import UsageError
from voxpipe.model.mel import frames_to_log_mel
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, ENCODER_GROUP_TOKENS, VoxtralRealtime
from voxpipe.runtime.session import Likely, StreamingSession

CHUNK_SIZES = (1, 2, 3, 4, 6, 8)  # positions of one stream in a call
COST_WEIGHT = 0.2  # of the newest measurement of a call's time
TIMED_EVERY = 4  # calls in a row that follow an encoder's call: to wait for it costs an overlap
EXPLORE_EVERY = 64  # calls after which the largest size is tried again: the machine may have become idle
CLEAR_CACHE_CALLS = 256  # MLX's buffer pool otherwise grows; clearing it at every step would double the step


class Runner:
    """Runs one network.

    Args:
        speculate: guess tokens where that pays; otherwise one position of a stream in a call.

    Attributes:
        n_calls, n_positions: decoder calls, and positions by which streams went on in them.
        n_guessed, n_right: guesses made, and those that were right.
    """

    def __init__(self, network: VoxtralRealtime, *, speculate: bool = True) -> None:
        self.network = network
        self.speculate = speculate
        self.n_calls = 0
        self.n_positions = 0
        self.n_guessed = 0
        self.n_right = 0
        self._thread = threading.get_ident()
        self._cost_s: dict[int, float] = {}  # of a call that computes about so many positions
        self._begun: set[int] = set()
        self._n_untimed = 0

    def check_thread(self) -> None:
        """Raise UsageError on any thread but the one that made the runner: MLX's streams are a thread's own."""
        if threading.get_ident() != self._thread:
            raise UsageError(
                "a model works on the thread that loaded it; load it on this one, or feed a session that is stepped on that one"
            )

    def run(
        self,
        sessions: Sequence[StreamingSession],
        *,
        max_tokens: int = DECODER_CHUNK_TOKENS,
        group_tokens: int = ENCODER_GROUP_TOKENS,
    ) -> int:
        """Do one piece of work for every session that has any.

        Args:
            max_tokens: most tokens that each gets.
            group_tokens: most audio embeddings that each has encoded.

        Returns:
            Positions by which the sessions went on, altogether.
        """
        self.check_thread()
        embeds = self._encode(sessions, group_tokens)
        waiting = [session for session in sessions if session.n_waiting]
        if not waiting:
            return 0
        self._n_untimed = self._n_untimed + 1 if embeds and self._is_choice(waiting) else 0
        if self._n_untimed == TIMED_EVERY:
            mx.eval(embeds)
        is_timed = not embeds or self._n_untimed == TIMED_EVERY
        self._n_untimed %= TIMED_EVERY
        return self._decode(waiting, max_tokens, is_timed=is_timed)

    def _encode(self, sessions: Sequence[StreamingSession], group_tokens: int) -> list[mx.array]:
        jobs = []
        for session in sessions:
            frames = None if session.n_waiting else session.take_frames(group_tokens)
            if frames is not None:
                jobs.append((session, frames))
        if not jobs:
            return []
        config = self.network.config.encoder
        together = frames_to_log_mel(
            np.concatenate([frames for _, frames in jobs]), n_mels=config.n_mels, log_mel_max=config.log_mel_max
        )
        mels = np.split(together, np.cumsum([len(frames) for _, frames in jobs])[:-1])
        embeds = self.network.encode([(session.state, mel) for (session, _), mel in zip(jobs, mels, strict=True)])
        for (session, _), mel, part in zip(jobs, mels, embeds, strict=True):
            session.add_embeds(part, mel)
        return embeds

    def _decode(self, sessions: Sequence[StreamingSession], max_tokens: int, *, is_timed: bool) -> int:
        tokens = [
            session.propose(n) for session, n in zip(sessions, self._chunk_sizes(sessions, max_tokens), strict=True)
        ]
        n_computed = self._n_computed(sessions, list(map(len, tokens)))
        started_at = time.perf_counter()
        logits = self.network.decode(
            [session.waiting_embeds(len(ids)) for session, ids in zip(sessions, tokens, strict=True)],
            tokens,
            [session.state for session in sessions],
        )
        logits = logits.astype(mx.float32)
        penalties = [session.blank_penalties(ids) for session, ids in zip(sessions, tokens, strict=True)]
        if any(any(part) for part in penalties):
            logits[:, self.network.config.streaming_pad_id] -= mx.array(np.concatenate(penalties).astype(np.float32))
        best = logits.argmax(axis=-1)
        scale = logits.logsumexp(axis=-1)
        logprob = logits.max(axis=-1) - scale
        likely = _likeliest_text(logits, scale, sessions)
        mx.eval(best, logprob, *likely)
        if is_timed:
            self._note_cost(n_computed, time.perf_counter() - started_at)
        others = [list(zip(*both, strict=True)) for both in zip(*(np.asarray(x).tolist() for x in likely), strict=True)]
        return self._accept(sessions, tokens, np.asarray(best).tolist(), np.asarray(logprob).tolist(), others)

    def _accept(
        self,
        sessions: Sequence[StreamingSession],
        tokens: Sequence[Sequence[int]],
        best: Sequence[int],
        logprobs: Sequence[float],
        others: Sequence[Likely],
    ) -> int:
        n_accepted = first = 0
        for session, ids in zip(sessions, tokens, strict=True):
            stop = first + len(ids)
            n_given = session.n_given
            n = session.accept(ids, best[first:stop], logprobs[first:stop], others[first:stop])
            n_accepted += n
            self.n_guessed += max(0, len(ids) - n_given)
            self.n_right += max(0, n - n_given)
            first = stop
        self.n_positions += n_accepted
        self.n_calls += 1
        if self.n_calls % CLEAR_CACHE_CALLS == 0:
            mx.clear_cache()
        return n_accepted

    def _chunk_sizes(self, sessions: Sequence[StreamingSession], max_tokens: int) -> list[int]:
        """How many positions each session brings: what is given it brings anyway, guesses as they pay."""

        def sizes(size: int) -> list[int]:
            return [min(session.n_waiting, max_tokens, max(session.n_given, size)) for session in sessions]

        if not self._is_choice(sessions):
            return sizes(1)
        if self.n_calls % EXPLORE_EVERY == 0:
            return sizes(CHUNK_SIZES[-1])

        def rate(chunk: list[int]) -> float:
            gain = sum(session.expected_tokens(n) for session, n in zip(sessions, chunk, strict=True))
            return gain / self._expected_cost(self._n_computed(sessions, chunk))

        return max((sizes(size) for size in CHUNK_SIZES), key=rate)

    def _is_choice(self, sessions: Sequence[StreamingSession]) -> bool:
        """Whether there are positions to guess for."""
        return self.speculate and any(session.n_waiting > 1 for session in sessions)

    def _n_computed(self, sessions: Sequence[StreamingSession], chunk: Sequence[int]) -> int:
        """Positions that a call computes; many are rounded, since each number of them would be met too seldom to be known."""
        n = self.network.n_computed(chunk, [session.state for session in sessions])
        return n if n <= CHUNK_SIZES[-1] else round(2 ** (math.ceil(4 * math.log2(n)) / 4))

    def _note_cost(self, n_positions: int, cost_s: float) -> None:
        if n_positions not in self._begun:  # the first call of a size prepares what the others find there
            self._begun.add(n_positions)
            return
        known = self._cost_s.get(n_positions, cost_s)
        self._cost_s[n_positions] = known + COST_WEIGHT * (cost_s - known)

    def _expected_cost(self, n_positions: int) -> float:
        """Seconds of a call: measured, or else the next smaller call's and what a position more costs, as far as is known.

        While calls of one size only are known, a larger one is thought to cost the same, so that it is tried.
        """
        known = self._cost_s
        if n_positions in known:
            return known[n_positions]
        smaller = [n for n in known if n < n_positions]
        if not smaller:
            return 1.0
        least, nearest, most = min(known), max(smaller), max(known)
        slope = max(0.0, known[most] - known[least]) / max(1, most - least)
        return known[nearest] + slope * (n_positions - nearest)


def _likeliest_text(
    logits: mx.array, scale: mx.array, sessions: Sequence[StreamingSession]
) -> tuple[mx.array, mx.array] | tuple[()]:
    """(N, n) ids of text and their log probabilities, the likeliest first: one more than any session asks for."""
    n = max(session.n_alternatives for session in sessions)
    if n == 0:
        return ()
    first = sessions[0].n_special
    text = logits[:, first:]
    n = min(n + 1, text.shape[-1])
    ids = mx.argpartition(-text, kth=n - 1, axis=-1)[:, :n]
    ids = mx.take_along_axis(ids, mx.argsort(-mx.take_along_axis(text, ids, axis=-1), axis=-1), axis=-1)
    return ids + first, mx.take_along_axis(text, ids, axis=-1) - scale[:, None]
