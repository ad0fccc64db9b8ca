"""Voxtral Realtime: encoder and decoder joined by addition.

At position t the decoder sees audio embedding t plus the embedding of the token it chose at t - 1, and chooses the next.
This module holds weights and makes states; which audio and which tokens meet at a position is the session's business.

Source: the specification of Voxtral-Mini-4B-Realtime-2602.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from voxpipe.config import ModelConfig
from voxpipe.model.cache import RingCache
from voxpipe.model.decoder import Decoder
from voxpipe.model.encoder import Encoder, EncoderState

ENCODER_GROUP_TOKENS = 16  # most audio embeddings made by one encoder call: 1.28 s
DECODER_CHUNK_TOKENS = 32  # most positions of one decoder call: the prompt goes in two


@dataclass
class StreamState:
    """Everything that B streams remember; the weights remember nothing."""

    encoder: EncoderState
    decoder: RingCache


class VoxtralRealtime(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.encoder = Encoder(config.encoder, config.decoder.dim)
        self.decoder = Decoder(config.decoder)
        self._scales: dict[int, mx.array] = {}
        # on the CPU a stream is a thread: the next group of a file is encoded while this one is decoded
        self._encoder_stream = mx.new_stream(mx.cpu) if mx.default_device() == mx.cpu else mx.default_stream(mx.gpu)

    @property
    def config(self) -> ModelConfig:
        return self._config

    def make_state(self, *, batch: int = 1, first_token: int = 0) -> StreamState:
        """State of `batch` new streams whose positions count from `first_token`."""
        return StreamState(
            encoder=self.encoder.make_state(batch=batch, max_tokens=ENCODER_GROUP_TOKENS, first_token=first_token),
            decoder=self.decoder.make_state(batch=batch, max_tokens=DECODER_CHUNK_TOKENS, first_token=first_token),
        )

    def delay_scales(self, n_delay_tokens: int) -> mx.array:
        """(n_layers, 1, 1, dim) modulation of one delay, computed once."""
        if n_delay_tokens not in self._scales:
            scales = self.decoder.delay_scales(n_delay_tokens)
            mx.eval(scales)
            self._scales[n_delay_tokens] = scales
        return self._scales[n_delay_tokens]

    def encode(self, mel: mx.array, state: StreamState) -> mx.array:
        """(B, 8 T, n_mels) -> (B, T, dim) audio embeddings, T at most ENCODER_GROUP_TOKENS."""
        with mx.stream(self._encoder_stream):
            return self.encoder(mel, state.encoder)

    def decode(self, audio_embeds: mx.array, tokens: mx.array, scales: mx.array, state: StreamState) -> mx.array:
        """Process new positions and return the logits of the last one.

        Args:
            audio_embeds: (B, L, dim), L at most DECODER_CHUNK_TOKENS.
            tokens: (B, L) integer ids, each the token before its position.
            scales: from `delay_scales`; rows of different delays are concatenated on axis 1.

        Returns:
            (B, vocab_size) logits of the token after the last position.
        """
        x = audio_embeds + self.decoder.embed_tokens(tokens)
        hidden = self.decoder(x, scales, state.decoder)
        return self.decoder.logits(hidden[:, -1:])[:, 0]
