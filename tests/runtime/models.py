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
from voxpipe.model.voxtral import VoxtralRealtime
from voxpipe.output.transcript import Delta
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


class ScriptedNetwork:
    """Chooses the scripted tokens one after another, then blanks.

    Args:
        script: the tokens.
        margin: how far the logit of the token lies above that of `runner_up`.

    Attributes:
        fed: the token ids that each position was given.
    """

    def __init__(self, script: Sequence[int], *, margin: float = 9.0, runner_up: int = N_SPECIAL + ord("x")) -> None:
        self.config = ModelConfig(
            encoder=EncoderConfig(**LEAST), decoder=DecoderConfig(**LEAST, vocab_size=N_SPECIAL + 256)
        )
        self._script = script
        self._margin, self._runner_up = margin, runner_up
        self._n_delay = 0
        self.fed: list[int] = []

    def delay_scales(self, n_delay_tokens: int) -> mx.array:
        self._n_delay = n_delay_tokens
        return mx.zeros(1)

    def make_state(self, *, batch: int = 1, first_token: int = 0) -> Any:
        return SimpleNamespace(decoder=SimpleNamespace(arrays=list))

    def encode(self, mel: mx.array, state: Any) -> mx.array:
        return mx.zeros((1, mel.shape[1] // 8, 1))

    def decode(self, audio_embeds: mx.array, tokens: mx.array, scales: mx.array, state: Any) -> mx.array:
        self.fed += np.asarray(tokens)[0].tolist()
        index = len(self.fed) - (33 + self._n_delay)
        logits = np.full((1, N_SPECIAL + 256), -20.0, np.float32)
        logits[0, self._runner_up] = -self._margin
        logits[0, self._script[index] if 0 <= index < len(self._script) else BLANK] = 0.0
        return mx.array(logits)


def scripted_session(network: ScriptedNetwork, **arguments: Any) -> StreamingSession:
    return StreamingSession(cast(VoxtralRealtime, network), BYTES, keep_tokens=True, **arguments)


class CountingNetwork:
    """A real network that notes the number of tokens of each call."""

    def __init__(self, network: VoxtralRealtime) -> None:
        self._network = network
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def encode(self, mel: mx.array, state: Any) -> mx.array:
        self.encoded.append(mel.shape[1] // 8)
        return self._network.encode(mel, state)

    def decode(self, audio_embeds: mx.array, tokens: mx.array, scales: mx.array, state: Any) -> mx.array:
        self.decoded.append(tokens.shape[1])
        return self._network.decode(audio_embeds, tokens, scales, state)


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
