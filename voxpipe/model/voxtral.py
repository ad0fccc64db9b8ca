"""Voxtral Realtime: encoder and decoder joined by addition.

At position t the decoder sees audio embedding t plus the embedding of the token it chose at t - 1, and chooses the next.
This module holds weights and makes states; which audio and which tokens meet at a position is the session's business.

Source: the specification of Voxtral-Mini-4B-Realtime-2602.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from voxpipe.config import MEL_FRAMES_PER_TOKEN, ModelConfig
from voxpipe.model.cache import Ring, Tray
from voxpipe.model.decoder import Decoder
from voxpipe.model.dense import n_computed
from voxpipe.model.encoder import Encoder, EncoderState
from voxpipe.model.kernels import GpuKernels, Kernels
from voxpipe.model.layers import Attention, SwiGLU
from voxpipe.model.mel import silent_frames

ENCODER_GROUP_TOKENS = 16  # most audio embeddings of one stream made by one encoder call: 1.28 s
DECODER_CHUNK_TOKENS = 32  # most positions of one stream in one decoder call
MAX_LANES = 4
FEW_TOKENS = 5  # of a call, which one lane works off as fast as several, for less processor time
MAX_ROWS_CPU = 16  # streams in a call: beyond it a batch gains nothing on a CPU, and everybody waits longer
MAX_ROWS_GPU = 128
TOKENS_BESIDE_LIVE_CPU = 8  # encoded in a call while live streams wait for the next one
TOKENS_BESIDE_LIVE_GPU = 4 * MAX_ROWS_GPU
SPARE_ROWS_CPU = 8  # a GPU's trays are made when streams come: their windows are large, and its memory is dear
WIDE_BYTES = 4 << 20  # a matrix that several cores read together; below it, each core reads its own streams' matrices
Floats = NDArray[np.float32]


@dataclass
class StreamState:
    """Everything that one stream remembers; the weights remember nothing."""

    encoder: EncoderState
    decoder: Ring
    n_delay_tokens: int

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self.encoder.ring.nbytes + self.decoder.nbytes


@dataclass
class Trays:
    """The caches of a few streams, encoder's and decoder's."""

    encoder: Tray
    decoder: Tray

    @property
    def n_rows(self) -> int:
        return self.encoder.n_rows

    @property
    def n_used(self) -> int:
        return self.n_rows - min(len(self.encoder.free_rows), len(self.decoder.free_rows))

    @property
    def lane(self) -> int:
        return self.encoder.lane


class VoxtralRealtime(nn.Module):
    """The network; `fuse` makes it ready to run once its weights are loaded.

    Attributes:
        kernels: how attention and activation are computed.
        lanes: MLX streams that share the work of a call: on the CPU each is a thread.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.encoder = Encoder(config.encoder, config.decoder.dim)
        self.decoder = Decoder(config.decoder)
        on_cpu = mx.default_device() == mx.cpu
        self._kernels = Kernels() if on_cpu else GpuKernels(folded=mx.cuda.is_available())
        self._n_cores = _n_cores() if on_cpu else 0
        self._lanes = _lanes(self._n_cores)
        self._scales: dict[int, mx.array] = {}
        self._beginnings: dict[int, StreamState] = {}
        self._trays: list[Trays] = []
        self._rows_per_tray = 1

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def lanes(self) -> list[mx.Stream]:
        return self._lanes

    @property
    def dtype(self) -> mx.Dtype:
        """Type of activations and caches."""
        return self.decoder.norm.weight.dtype

    @property
    def kernels(self) -> Kernels:
        return self._kernels

    def fuse(self) -> None:
        """Join the projections that read the same input. Loading comes before, running after."""
        for module in self.modules():
            if isinstance(module, Attention | SwiGLU):
                module.fuse()

    def use_kernels(self, kernels: Kernels) -> None:
        """Compute attention and activation in another way from now on."""
        self._kernels = kernels
        self.encoder.forget_calls()
        self.decoder.forget_calls()
        self._beginnings.clear()
        self._trays.clear()

    @property
    def n_constant_tokens(self) -> int:
        """Tokens of the left padding that see nothing of the audio: all but the last, which looks 2.5 ms ahead."""
        return max(0, self._config.n_left_pad_tokens - 1)

    def make_state(self, n_delay_tokens: int, *, first_token: int = 0) -> StreamState:
        """State of a new stream that has heard nothing, in a tray of its own, whose positions count from `first_token`."""
        pair = self._make_trays(n_rows=1, lane=0)
        return StreamState(
            encoder=self.encoder.make_state(pair.encoder, first_token=first_token),
            decoder=pair.decoder.take_row(first_token),
            n_delay_tokens=n_delay_tokens,
        )

    @property
    def stream_bytes(self) -> int:
        """Bytes of the caches of a stream whose windows are full."""
        pair = self._make_trays(n_rows=1, lane=0)  # has no room yet
        return pair.encoder.full_row_bytes + pair.decoder.full_row_bytes

    def begin(self, n_delay_tokens: int, *, first_token: int = 0) -> StreamState:
        """State of a new stream behind the constant part of its left padding.

        That is the same for every stream of a delay, so it is computed once and forked.
        """
        if first_token:
            return self._begin(n_delay_tokens, first_token)
        if n_delay_tokens not in self._beginnings:
            self._beginnings[n_delay_tokens] = self._begin(n_delay_tokens, 0)
        beginning = self._beginnings[n_delay_tokens]
        trays = self._trays_with_room()
        return StreamState(beginning.encoder.fork(trays.encoder), beginning.decoder.fork(trays.decoder), n_delay_tokens)

    def expect_streams(self, n: int) -> None:
        """Lay out the caches of streams that are to come for `n` of them at a time; a tray is attended at once."""
        n_lanes = len(self._lanes)
        self._rows_per_tray = max(1, min(self._most_rows, -(-n // n_lanes)))

    @property
    def max_rows(self) -> int:
        """Streams that one call should have at most."""
        return MAX_ROWS_CPU if mx.default_device() == mx.cpu else MAX_ROWS_GPU

    @property
    def tokens_beside_live(self) -> int:
        """Audio embeddings that one call should make at most while live streams wait for the next."""
        return TOKENS_BESIDE_LIVE_CPU if mx.default_device() == mx.cpu else TOKENS_BESIDE_LIVE_GPU

    @property
    def n_spare(self) -> int:
        """Streams that should be expected beside those that are known."""
        return SPARE_ROWS_CPU if mx.default_device() == mx.cpu else 1

    @property
    def _most_rows(self) -> int:
        """Of a tray: on a GPU, as many as fit into its memory beside the weights when all windows are full."""
        most = self.max_rows // len(self._lanes)
        if mx.default_device() == mx.cpu:
            return most
        facts: dict[str, Any] = mx.device_info()
        memory = facts.get("total_memory") or facts.get("max_recommended_working_set_size")
        if memory is None:
            return most
        left = int(memory) - sum(array.nbytes for _, array in tree_flatten(self.parameters()))
        return min(most, left // self.stream_bytes)

    def _trays_with_room(self) -> "Trays":
        """Trays with a free row, on the lane that has the fewest streams."""
        self._trays = [trays for trays in self._trays if trays.n_used or trays.n_rows == self._rows_per_tray]
        load = [sum(trays.n_used for trays in self._trays if trays.lane == lane) for lane in range(len(self._lanes))]
        lane = load.index(min(load))
        for trays in self._trays:
            if trays.lane == lane and trays.n_used < trays.n_rows:
                return trays
        n_rows = self._rows_per_tray
        if isinstance(
            self._kernels, GpuKernels
        ):  # every tray is some work for the host: few of them, and no row too many
            n_rows = max(n_rows, min(self._most_rows, sum(trays.n_rows for trays in self._trays)))
        self._trays.append(self._make_trays(n_rows=n_rows, lane=lane))
        return self._trays[-1]

    def _make_trays(self, *, n_rows: int, lane: int) -> "Trays":
        return Trays(
            self.encoder.make_tray(self._kernels, max_tokens=ENCODER_GROUP_TOKENS, n_rows=n_rows, lane=lane),
            self.decoder.make_tray(self._kernels, max_tokens=DECODER_CHUNK_TOKENS, n_rows=n_rows, lane=lane),
        )

    def _begin(self, n_delay_tokens: int, first_token: int) -> StreamState:
        config = self._config
        state = self.make_state(n_delay_tokens, first_token=first_token)
        previous = config.bos_id
        left = self.n_constant_tokens
        while left:
            n = min(left, ENCODER_GROUP_TOKENS)
            mel = silent_frames(n * MEL_FRAMES_PER_TOKEN, config.encoder.n_mels, config.encoder.log_mel_max)
            (embeds,) = self.encode([(state, mel)])
            tokens = [previous] + [config.streaming_pad_id] * (n - 1)
            mx.eval(self.decode([embeds], [tokens], [state]))
            previous = config.streaming_pad_id
            left -= n
        return state

    def delay_scales(self, n_delay_tokens: int) -> mx.array:
        """(n_layers, dim) modulation of one delay, computed once."""
        if n_delay_tokens not in self._scales:
            scales = self.decoder.delay_scales(n_delay_tokens)
            mx.eval(scales)
            self._scales[n_delay_tokens] = scales
        return self._scales[n_delay_tokens]

    def encode(self, pieces: Sequence[tuple[StreamState, Floats]]) -> list[mx.array]:
        """Encode the next mel frames of several streams; that may be under way when this returns.

        Args:
            pieces: each stream's state, which is advanced, and (8 T, n_mels) frames, T at most ENCODER_GROUP_TOKENS.

        Returns:
            (T, dim) audio embeddings of each piece.
        """
        for _, mel in pieces:
            if len(mel) % MEL_FRAMES_PER_TOKEN:
                raise ValueError(f"{len(mel)} mel frames are not whole tokens of {MEL_FRAMES_PER_TOKEN}")
        parts: list[list[mx.array]] = [[] for _ in pieces]
        sizes = [len(mel) // MEL_FRAMES_PER_TOKEN for _, mel in pieces]
        shares = (
            _halves(sizes[0], len(self._lanes))
            if len(pieces) == 1
            else _by_lane([state.encoder.ring for state, _ in pieces], sizes, self._n_lanes(sum(sizes)))
        )
        for state, mel in pieces:  # a ring that grew for one share would not fit the mask of another
            state.encoder.ring.reserve(len(mel) // 2)
        runs = [
            self.encoder(
                [(pieces[i][0].encoder, _tokens_of(pieces[i][1], first, stop)) for i, first, stop in share],
                self._kernels,
            )
            for share in shares
        ]
        for embeds, share in zip(self._side_by_side(runs), shares, strict=True):
            begin = 0
            for i, first, stop in share:
                parts[i].append(embeds[begin : begin + stop - first])
                begin += stop - first
        return [part[0] if len(part) == 1 else mx.concatenate(part) for part in parts]

    def decode(
        self, embeds: Sequence[mx.array], tokens: Sequence[Sequence[int]], states: Sequence[StreamState]
    ) -> mx.array:
        """Process the next positions of several streams; that may be under way when this returns.

        Args:
            embeds: each stream's next (L, dim) audio embeddings, L at most DECODER_CHUNK_TOKENS.
            tokens: the L ids before those positions.
            states: are advanced by L.

        Returns:
            (sum of all L, vocab_size) logits of the tokens after the positions.
        """
        n_lanes = 1 if self._is_wide() else self._n_lanes(sum(map(len, tokens)))
        shares = _by_lane([state.decoder for state in states], [len(ids) for ids in tokens], n_lanes)
        runs, order = [], []
        firsts = np.cumsum([0] + [len(ids) for ids in tokens])
        for share in shares:
            pieces = [i for i, _, _ in share]
            runs.append(
                self._decode([embeds[i] for i in pieces], [tokens[i] for i in pieces], [states[i] for i in pieces])
            )
            order += [row for i in pieces for row in range(firsts[i], firsts[i + 1])]
        parts = self._side_by_side(runs)
        logits = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        return logits if order == sorted(order) else logits[mx.array(np.argsort(order))]

    def n_computed(self, n_positions: Sequence[int], states: Sequence[StreamState]) -> int:
        """Positions that `decode` computes where the streams bring so many: on a GPU, all rows as many as the longest."""
        return n_computed(self._kernels, [(state.decoder, n) for state, n in zip(states, n_positions, strict=True)])

    def _side_by_side(self, runs: Sequence[Iterator[mx.array]]) -> list[mx.array]:
        """Lay out calls layer by layer, each on a lane, and return what each yields last.

        Laying out takes a CPU as long as computing: a core that no lane needs lays out a layer while the one before is
        computed.
        """
        is_ahead = len(runs) < self._n_cores
        results: tuple[mx.array, ...] = ()
        for results in zip(*map(_on_lane, self._lanes, runs), strict=True):
            if is_ahead:
                mx.async_eval(*results)  # type: ignore[no-untyped-call]
        return list(results)

    def _decode(
        self, embeds: Sequence[mx.array], tokens: Sequence[Sequence[int]], states: Sequence[StreamState]
    ) -> Iterator[mx.array]:
        audio = embeds[0] if len(embeds) == 1 else mx.concatenate(list(embeds))
        ids = mx.array(np.concatenate(tokens).astype(np.int32))
        n_positions = [len(part) for part in tokens]
        scales = self._scale_rows([state.n_delay_tokens for state in states], n_positions)
        pieces = [(state.decoder, n) for state, n in zip(states, n_positions, strict=True)]
        for hidden in self.decoder(audio + self.decoder.embed_tokens(ids), scales, pieces, self._kernels):
            yield hidden
        yield self.decoder.logits(hidden)

    def _scale_rows(self, delays: Sequence[int], n_positions: Sequence[int]) -> mx.array:
        """(n_layers, 1, dim) where all streams have one delay, else (n_layers, N, dim)."""
        distinct = sorted(set(delays))
        tables = [self.delay_scales(delay) for delay in distinct]
        if len(distinct) == 1:
            return tables[0][:, None]
        rows = mx.array(np.repeat([distinct.index(delay) for delay in delays], n_positions))
        return mx.stack(tables, axis=1)[:, rows]

    def _n_lanes(self, n_tokens: int) -> int:
        return 1 if n_tokens <= FEW_TOKENS and not self._is_wide() else len(self._lanes)

    def _is_wide(self) -> bool:
        return bool(self.decoder.layers[0].mlp.down_proj.weight.nbytes >= WIDE_BYTES)


def _n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lanes(n_cores: int) -> list[mx.Stream]:
    """MLX streams: the default one, and on a CPU one for each further core."""
    device = mx.default_device()
    return [mx.default_stream(device)] + [mx.new_stream(device) for _ in range(1, min(n_cores, MAX_LANES))]


def _on_lane(lane: mx.Stream, run: Iterator[mx.array]) -> Iterator[mx.array]:
    """What a call yields, laid out on a lane."""
    while True:
        with mx.stream(lane):
            layer = next(run, None)
        if layer is None:
            return
        yield layer


def _halves(n_tokens: int, n_shares: int) -> list[list[tuple[int, int, int]]]:
    """The tokens of a single piece in up to `n_shares` shares of (0, first, stop): each layer of the next share begins
    when the one before has stored its keys."""
    bounds = sorted({round(n_tokens * i / n_shares) for i in range(n_shares + 1)})
    return [[(0, first, stop)] for first, stop in pairwise(bounds)]


def _by_lane(rings: Sequence[Ring], sizes: Sequence[int], n_lanes: int) -> list[list[tuple[int, int, int]]]:
    """Whole pieces (i, 0, size) in shares, each on its tray's lane and in the order of the rows; empty ones are left out."""
    shares: list[list[tuple[int, int, int]]] = [[] for _ in range(n_lanes)]
    for i in sorted(range(len(rings)), key=lambda i: (id(rings[i].tray), rings[i].row)):
        shares[rings[i].tray.lane % n_lanes].append((i, 0, sizes[i]))
    return [share for share in shares if share]


def _tokens_of(mel: Floats, first: int, stop: int) -> Floats:
    return mel[first * MEL_FRAMES_PER_TOKEN : stop * MEL_FRAMES_PER_TOKEN]
