"""A recording through the bare network: what the runtime does with streams, in the fewest lines that say it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.random_checkpoints import Floats
from voxpipe.checkpoints.load import build_network, read_checkpoint
from voxpipe.config import SAMPLES_PER_TOKEN
from voxpipe.model.mel import LogMelStream
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, ENCODER_GROUP_TOKENS, VoxtralRealtime

LEFT_PAD_TOKENS = 32
RIGHT_PAD_TOKENS = 11  # and the delay
BOS, STREAMING_PAD = 1, 32


def load_network(directory: Path, *, dtype: mx.Dtype = mx.float32, dequantize: bool = True) -> VoxtralRealtime:
    return build_network(read_checkpoint(directory), dtype=dtype, dequantize=dequantize)


def padded(samples: Floats, n_delay_tokens: int) -> Floats:
    """Silence before and after: 32 tokens, and to a whole token plus the delay plus 11."""
    right = -len(samples) % SAMPLES_PER_TOKEN + (n_delay_tokens + RIGHT_PAD_TOKENS) * SAMPLES_PER_TOKEN
    return np.pad(samples, (LEFT_PAD_TOKENS * SAMPLES_PER_TOKEN, right))


def padded_mel(samples: Floats, n_delay_tokens: int) -> Floats:
    """(8 n_tokens, n_mels)."""
    stream = LogMelStream()
    mel = stream.push(padded(samples, n_delay_tokens))
    return np.concatenate([mel, stream.push(np.zeros(40, np.float32))])  # the last frame looks 40 samples ahead


def prompt(n_delay_tokens: int) -> list[int]:
    return [BOS] + [STREAMING_PAD] * (LEFT_PAD_TOKENS + n_delay_tokens)


def audio_embeds(network: VoxtralRealtime, mel: Floats, *, group: int = ENCODER_GROUP_TOKENS) -> mx.array:
    """(8 T, n_mels) -> (T, dim), `group` tokens a call."""
    state = network.make_state()
    frames = mx.array(mel)[None]
    parts = [network.encode(frames[:, i : i + 8 * group], state) for i in range(0, len(mel), 8 * group)]
    return mx.concatenate(parts, axis=1)[0]


def logits(
    network: VoxtralRealtime,
    embeds: mx.array,
    tokens: NDArray[np.int64],
    n_delay_tokens: int,
    *,
    chunk: int = DECODER_CHUNK_TOKENS,
    first_token: int = 0,
) -> Floats:
    """Teacher-forced logits of every position, (T, vocab_size), `chunk` positions a call."""
    state = network.make_state(first_token=first_token)
    x = (embeds + network.decoder.embed_tokens(mx.array(tokens)))[None]
    scales = network.delay_scales(n_delay_tokens)
    parts = [network.decoder(x[:, i : i + chunk], scales, state.decoder) for i in range(0, len(tokens), chunk)]
    return np.array(network.decoder.logits(mx.concatenate(parts, axis=1))[0].astype(mx.float32))


def greedy_tokens(network: VoxtralRealtime, samples: Floats, delay_ms: int, *, eos: int | None = 2) -> list[int]:
    """The sampled ids, one for each audio embedding from the prompt's last on."""
    n_delay_tokens = delay_ms // 80
    embeds = audio_embeds(network, padded_mel(samples, n_delay_tokens))[None]
    scales = network.delay_scales(n_delay_tokens)
    state = network.make_state()
    given = prompt(n_delay_tokens)
    for start in range(0, len(given), DECODER_CHUNK_TOKENS):
        part = given[start : start + DECODER_CHUNK_TOKENS]
        step = network.decode(embeds[:, start : start + len(part)], mx.array([part]), scales, state)
    sampled = [_best(step)]
    for position in range(len(given), embeds.shape[1]):
        if sampled[-1] == eos:
            break
        step = network.decode(embeds[:, position : position + 1], mx.array([[sampled[-1]]]), scales, state)
        sampled.append(_best(step))
    return sampled


def _best(logits: mx.array) -> int:
    return int(np.array(logits[0].astype(mx.float32)).argmax())
