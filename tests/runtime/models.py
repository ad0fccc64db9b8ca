"""Models for the tests of streams: the embedded one, small random ones, and a network that says what it is told."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from tests.random_checkpoints import Floats, Sizes
from voxpipe.audio.files import read_blocks
from voxpipe.config import DecoderConfig, EncoderConfig, ModelConfig
from voxpipe.model.tokenizer import Tokenizer
from voxpipe.model.voxtral import StreamState, VoxtralRealtime
from voxpipe.output.transcript import Delta
from voxpipe.runtime.runner import Runner
from voxpipe.runtime.session import StreamingSession

SPEECH = Path(__file__).parents[1] / "data" / "speech"
BOS, EOS, BLANK, WORD = 1, 2, 32, 33
N_SPECIAL = 40

# the least that still has several heads and layers of both kinds, for streams of hours
SMALL = Sizes(
    encoder_dim=16,
    encoder_layers=1,
    encoder_heads=2,
    encoder_head_dim=8,
    encoder_hidden=24,
    encoder_window=50,
    decoder_dim=24,
    decoder_layers=1,
    decoder_heads=4,
    decoder_kv_heads=2,
    decoder_head_dim=6,
    decoder_hidden=36,
    decoder_window=60,
    vocab_size=100,
    n_mels=32,
)


def clip(name: str) -> Floats:
    """A clip of tests/data/speech, 16 kHz."""
    return np.concatenate(list(read_blocks(SPEECH / name)))


def drain(session: StreamingSession, max_decode_tokens: int = 16) -> list[Delta]:
    """Step until there is nothing to do."""
    deltas: list[Delta] = []
    while not session.starved:
        deltas += session.step(max_decode_tokens)
    return deltas


def byte_tokens(text: str | bytes) -> list[int]:
    """One token for each byte of UTF-8."""
    return [N_SPECIAL + byte for byte in (text.encode() if isinstance(text, str) else text)]


LEAST: dict[str, Any] = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 1,
    "n_kv_heads": 1,
    "head_dim": 8,
    "hidden_dim": 8,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": 9,
}
BYTES = Tokenizer(N_SPECIAL, [bytes([byte]) for byte in range(256)])


class ScriptedRing:
    """In the place of a decoder's cache: the token ids that each position was given, without those taken back."""

    def __init__(self, fed: list[int]) -> None:
        self.fed = fed

    def rollback(self, n: int) -> None:
        del self.fed[len(self.fed) - n :]


class ScriptedNetwork:
    """Chooses the scripted tokens one after another, then blanks.

    It looks at what it is given: behind a token that it had not chosen, it says nothing but question marks.

    Args:
        script: the tokens.
        margin: how far the logit of the token lies above that of `runner_up`.

    Attributes:
        fed: the token ids that each position of the newest stream was given, without those taken back.
        n_decoded: how many positions each stream of each call brought.
    """

    def __init__(self, script: Sequence[int], *, margin: float = 9.0, runner_up: int = N_SPECIAL + ord("x")) -> None:
        self.config = ModelConfig(
            encoder=EncoderConfig(**LEAST), decoder=DecoderConfig(**LEAST, vocab_size=N_SPECIAL + 256)
        )
        self.n_constant_tokens = 31
        self._script = script
        self._margin, self._runner_up = margin, runner_up
        self.fed: list[int] = []
        self.n_decoded: list[list[int]] = []

    def begin(self, n_delay_tokens: int, *, first_token: int = 0) -> Any:
        self.fed = [BOS] + [BLANK] * 30
        return SimpleNamespace(decoder=ScriptedRing(self.fed), n_delay_tokens=n_delay_tokens)

    def encode(self, pieces: Sequence[tuple[Any, Floats]]) -> list[mx.array]:
        return [mx.zeros((len(mel) // 8, 1)) for _, mel in pieces]

    def n_computed(self, n_positions: Sequence[int], states: Sequence[Any]) -> int:
        return sum(n_positions)

    def decode(self, embeds: Sequence[mx.array], tokens: Sequence[Sequence[int]], states: Sequence[Any]) -> mx.array:
        assert [len(part) for part in embeds] == [len(ids) for ids in tokens]
        self.n_decoded.append([len(ids) for ids in tokens])
        rows = []
        for ids, state in zip(tokens, states, strict=True):
            for token in ids:
                state.decoder.fed.append(token)
                rows.append(self._logits(state.decoder.fed, state.n_delay_tokens))
        return mx.array(np.stack(rows))

    def _logits(self, fed: Sequence[int], n_delay_tokens: int) -> Floats:
        n_prompt = 33 + n_delay_tokens
        chosen = [self._token(index) for index in range(max(0, len(fed) - n_prompt))]
        expected = ([BOS] + [BLANK] * (n_prompt - 1))[: len(fed)] + chosen
        is_own = all(token in (own, self._runner_up) for token, own in zip(fed, expected, strict=True))
        logits = np.full(N_SPECIAL + 256, -20.0, np.float32)
        logits[self._runner_up] = -self._margin
        logits[self._token(len(fed) - n_prompt) if is_own else N_SPECIAL + ord("?")] = 0.0
        return logits

    def _token(self, index: int) -> int:
        return self._script[index] if 0 <= index < len(self._script) else BLANK


def scripted_session(network: ScriptedNetwork, *, speculate: bool = True, **arguments: Any) -> StreamingSession:
    return StreamingSession(scripted_runner(network, speculate=speculate), BYTES, keep_tokens=True, **arguments)


def scripted_runner(network: ScriptedNetwork, *, speculate: bool = True) -> Runner:
    return Runner(cast(VoxtralRealtime, network), speculate=speculate)


class CountingNetwork:
    """A real network that notes how many tokens each stream of each call brought."""

    def __init__(self, network: VoxtralRealtime) -> None:
        self._network = network
        self.encoded: list[list[int]] = []
        self.decoded: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def encode(self, pieces: Sequence[tuple[StreamState, Floats]]) -> list[mx.array]:
        self.encoded.append([len(mel) // 8 for _, mel in pieces])
        return self._network.encode(pieces)

    def decode(
        self, embeds: Sequence[mx.array], tokens: Sequence[Sequence[int]], states: Sequence[StreamState]
    ) -> mx.array:
        self.decoded.append([len(ids) for ids in tokens])
        return self._network.decode(embeds, tokens, states)


def sizes_held(thing: object, *, without: Sequence[object] = ()) -> dict[str, int]:
    """The size of every buffer that an object of ours can reach, by its path: bytes of arrays, lengths of the rest."""
    sizes: dict[str, int] = {}
    seen = {id(one) for one in without}

    def children(node: object) -> Iterator[tuple[str, object]]:
        if isinstance(node, dict):
            yield from ((f"[{key!r}]", value) for key, value in node.items())
        elif isinstance(node, list | tuple | deque | set):
            yield from (("[]", value) for value in node)
        elif type(node).__module__.startswith(("voxpipe.", "types")):
            yield from ((f".{name}", value) for name, value in vars(node).items())

    def walk(path: str, node: object) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, np.ndarray | mx.array):
            base = node.base if isinstance(node, np.ndarray) else None
            sizes[path] = sizes.get(path, 0) + max(node.nbytes, base.nbytes if isinstance(base, np.ndarray) else 0)
        elif isinstance(node, list | deque | dict | set | str | bytes | bytearray):
            sizes[path] = sizes.get(path, 0) + len(node)
        for name, child in children(node):
            walk(path + name, child)

    walk("", thing)
    return sizes
