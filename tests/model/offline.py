"""A recording through the bare network: what the runtime does with streams, in the fewest lines that say it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.random_checkpoints import Floats
from voxpipe.checkpoints.load import build_network, read_checkpoint
from voxpipe.config import SAMPLES_PER_TOKEN
from voxpipe.model.mel import FrameStream, frames_to_log_mel
from voxpipe.model.voxtral import DECODER_CHUNK_TOKENS, ENCODER_GROUP_TOKENS, VoxtralRealtime

LEFT_PAD_TOKENS = 32
RIGHT_PAD_TOKENS = 11  # and the delay
BOS, STREAMING_PAD = 1, 32


def load_network(
    directory: Path, *, dtype: mx.Dtype = mx.float32, dequantize: bool = True, fuse: bool = True
) -> VoxtralRealtime:
    """A network that is ready to run, or with `fuse=False` in the checkpoint's form."""
    network = build_network(read_checkpoint(directory), dtype=dtype, dequantize=dequantize)
    if fuse:
        network.fuse()
    return network


def padded(samples: Floats, n_delay_tokens: int) -> Floats:
    """Silence before and after: 32 tokens, and to a whole token plus the delay plus 11."""
    right = -len(samples) % SAMPLES_PER_TOKEN + (n_delay_tokens + RIGHT_PAD_TOKENS) * SAMPLES_PER_TOKEN
    return np.pad(samples, (LEFT_PAD_TOKENS * SAMPLES_PER_TOKEN, right))


def padded_mel(samples: Floats, n_delay_tokens: int) -> Floats:
    """(8 n_tokens, n_mels)."""
    silence = np.zeros(40, np.float32)  # the last frame looks 40 samples ahead
    return frames_to_log_mel(FrameStream().push(np.concatenate([padded(samples, n_delay_tokens), silence])))


def prompt(n_delay_tokens: int) -> list[int]:
    return [BOS] + [STREAMING_PAD] * (LEFT_PAD_TOKENS + n_delay_tokens)


def audio_embeds(network: VoxtralRealtime, mel: Floats, *, group: int = ENCODER_GROUP_TOKENS) -> mx.array:
    """(8 T, n_mels) -> (T, dim), `group` tokens a call."""
    state = network.make_state(1)
    parts = [network.encode([(state, mel[i : i + 8 * group])])[0] for i in range(0, len(mel), 8 * group)]
    return mx.concatenate(parts)


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
    state = network.make_state(n_delay_tokens, first_token=first_token)
    parts = [
        network.decode([embeds[i : i + chunk]], [tokens[i : i + chunk].tolist()], [state])
        for i in range(0, len(tokens), chunk)
    ]
    return np.array(mx.concatenate(parts).astype(mx.float32))


def greedy_tokens(network: VoxtralRealtime, samples: Floats, delay_ms: int, *, eos: int | None = 2) -> list[int]:
    """The sampled ids, one for each audio embedding from the prompt's last on."""
    n_delay_tokens = delay_ms // 80
    embeds = audio_embeds(network, padded_mel(samples, n_delay_tokens))
    state = network.make_state(n_delay_tokens)
    given = prompt(n_delay_tokens)
    for start in range(0, len(given), DECODER_CHUNK_TOKENS):
        part = given[start : start + DECODER_CHUNK_TOKENS]
        step = network.decode([embeds[start : start + len(part)]], [part], [state])
    sampled = [_best(step)]
    for position in range(len(given), len(embeds)):
        if sampled[-1] == eos:
            break
        step = network.decode([embeds[position : position + 1]], [[sampled[-1]]], [state])
        sampled.append(_best(step))
    return sampled


def _best(logits: mx.array) -> int:
    return int(np.array(logits[-1].astype(mx.float32)).argmax())
