"""What a step must read, at least: the yardstick that a measured time is held against.

A decoder call reads all of the decoder's weights but the delay's modulation, which is computed once, and the tied
embedding, which it multiplies by; an encoder call reads the encoder's and the adapter's. Both read of every stream the
keys and values that its windows can see. Bytes by the memory's bandwidth are a floor of the time, and the floor by the
time taken is the share of the roofline. Many streams on a CPU are bound by arithmetic, and stay far below it.

Source: the specification's cost model, section 9.
"""

from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from voxpipe.config import MS_PER_TOKEN, AttentionConfig
from voxpipe.model.encoder import FRAMES_PER_TOKEN
from voxpipe.model.voxtral import VoxtralRealtime


@dataclass(frozen=True)
class Cost:
    """Bytes that the calls of one network read.

    Attributes:
        n_parameters: numbers in the checkpoint, quantized ones counted as what they stand for.
        decoder_bytes, encoder_bytes: weights that one call reads.
        decoder_position_bytes, encoder_frame_bytes: of keys and values.
    """

    n_parameters: int
    decoder_bytes: int
    encoder_bytes: int
    decoder_position_bytes: int
    encoder_frame_bytes: int
    decoder_window: int
    encoder_window: int

    def read_bytes(
        self, *, n_streams: int, heard_s: float, decoder_calls: float = 1.0, encoder_calls: float = 1.0
    ) -> float:
        """Bytes read for one token of each of `n_streams`, at so many calls per token."""
        weights = decoder_calls * self.decoder_bytes + encoder_calls * self.encoder_bytes
        n_tokens = heard_s * 1000 / MS_PER_TOKEN
        positions = decoder_calls * min(n_tokens, self.decoder_window) * self.decoder_position_bytes
        frames = encoder_calls * min(n_tokens * FRAMES_PER_TOKEN, self.encoder_window) * self.encoder_frame_bytes
        return weights + n_streams * (positions + frames)


def cost_of(network: VoxtralRealtime) -> Cost:
    """The cost of a network that is ready to run."""
    decoder = [(name, array) for name, array in tree_flatten(network.decoder.parameters()) if ".ada." not in name]
    encoder = tree_flatten(network.encoder.parameters())
    config = network.config
    return Cost(
        n_parameters=_n_parameters(network),
        decoder_bytes=sum(array.nbytes for _, array in decoder),
        encoder_bytes=sum(array.nbytes for _, array in encoder),
        decoder_position_bytes=_key_value_bytes(config.decoder, network.dtype),
        encoder_frame_bytes=_key_value_bytes(config.encoder, network.dtype),
        decoder_window=config.decoder.sliding_window,
        encoder_window=config.encoder.sliding_window,
    )


def _key_value_bytes(config: AttentionConfig, dtype: mx.Dtype) -> int:
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * dtype.size


def _n_parameters(network: VoxtralRealtime) -> int:
    n = 0
    for _, module in network.named_modules():
        for name, array in module.items():
            if not isinstance(array, mx.array) or name in ("scales", "biases"):
                continue
            bits = module.bits if name == "weight" and "scales" in module else None
            n += array.size if bits is None else array.size * 32 // bits
    return n
