"""At bf16 and fp16 nothing but rotations and the insides of norms is float32; the walker is tried on leaks first."""

import copy
import copyreg
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.model.graph_types import Graph, leaks, trace, wide_islands
from tests.model.offline import load_network
from tests.random_checkpoints import AWKWARD, EVEN, Quantization, write_checkpoint
from voxpipe.model import cache as cache_module
from voxpipe.model.decoder import Decoder, DelayModulation
from voxpipe.model.encoder import Encoder
from voxpipe.model.voxtral import StreamState, VoxtralRealtime

copyreg.pickle(mx.Dtype, str)  # a type is its own deep copy
LOW = [mx.bfloat16, mx.float16]
TOKENS = 3


@pytest.fixture(params=LOW, ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> mx.Dtype:
    chosen: mx.Dtype = request.param
    return chosen


@pytest.fixture
def low(dtype: mx.Dtype, tmp_path: Path) -> VoxtralRealtime:
    """A float32 checkpoint, loaded in 16 bits."""
    return load_network(write_checkpoint(tmp_path / "model", sizes=AWKWARD), dtype=dtype)


def encode_graph(network: VoxtralRealtime, state: StreamState | None = None) -> Graph:
    state = copy.deepcopy(state) if state else network.make_state()  # a trace leaves its tracers in the state
    return trace(lambda mel: network.encode(mel, state), mx.zeros((1, 8 * TOKENS, 128)))


def decode_graph(network: VoxtralRealtime, state: StreamState | None = None) -> Graph:
    state = copy.deepcopy(state) if state else network.make_state()
    scales = network.delay_scales(6)
    embeds = mx.zeros(
        (len(state.decoder.lengths), TOKENS, network.config.decoder.dim), network.decoder.norm.weight.dtype
    )
    tokens = mx.zeros(embeds.shape[:2], mx.int32)
    return trace(lambda x, y: network.decode(x, y, scales, state), embeds, tokens)


def matrix_products(graph: Graph) -> list[str]:
    names = ("Matmul", "AddMM", "QuantizedMatmul", "Convolution", "ScaledDotProductAttention")
    return [primitive.name for primitive in graph.primitives if primitive.name in names]


def test_walk_sees_the_whole_network(low: VoxtralRealtime, dtype: mx.Dtype) -> None:
    """As many islands as there are rotations (2 a layer) and norms (2 a layer and 1), and no matrix product lost."""
    encoder, decoder = encode_graph(low), decode_graph(low)
    assert leaks(encoder) == []
    assert leaks(decoder) == []
    for graph, sizes, others in ((encoder, low.config.encoder, 2 + 2), (decoder, low.config.decoder, 1)):
        names = {primitive.name for primitive in graph.primitives}
        n_norms = 0 if "RMSNorm" in names else 2 * sizes.n_layers + 1  # a GPU has a kernel for all of it
        n_input_casts = 1 if graph is encoder else 0
        assert len(wide_islands(graph)) == 2 * sizes.n_layers + n_norms + n_input_casts
        attention = 1 if "ScaledDotProductAttention" in names else 2
        assert len(matrix_products(graph)) == (7 + attention) * sizes.n_layers + others
        assert {graph.types[name] for name in graph.outputs} == {dtype}


def test_full_and_wrapped_caches(dtype: mx.Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices, scattered writes and growth are other code than the first step."""
    monkeypatch.setattr(cache_module, "GROWTH", 4)
    sizes = replace(AWKWARD, encoder_window=6, decoder_window=2)
    network = load_network(write_checkpoint(tmp_path / "model", sizes=sizes), dtype=dtype)
    state, names = network.make_state(batch=2), set()
    embeds, tokens = mx.zeros((2, TOKENS, sizes.decoder_dim), dtype), mx.zeros((2, TOKENS), mx.int32)
    for step in range(20):
        graph = decode_graph(network, state)
        names |= {primitive.name for primitive in graph.primitives}
        assert leaks(graph) == [], step
        mx.eval(network.decode(embeds, tokens, network.delay_scales(6), state))
        if step == 10:
            state.decoder.lengths[1] -= 1  # the rows part: another way of writing
    assert {"ScatterAxis", "SliceUpdate"} <= names
    encoder_state = network.make_state()
    for _ in range(10):
        assert leaks(encode_graph(network, encoder_state)) == []
        mx.eval(network.encode(mx.zeros((1, 8 * TOKENS, 128)), encoder_state))


@pytest.mark.parametrize("modules", ["old", "new", "voxmlx"])
@pytest.mark.parametrize("stored", [mx.float32, mx.float16])
def test_quantized(modules: str, stored: mx.Dtype, dtype: mx.Dtype, tmp_path: Path) -> None:
    """The published 4-bit repository holds some float32 tensors."""
    layout = "voxmlx" if modules == "voxmlx" else "mlx-audio"
    directory = write_checkpoint(
        tmp_path / "model", layout, sizes=EVEN, dtype=stored, quantization=Quantization(4, modules=modules)
    )
    network = load_network(directory, dtype=dtype, dequantize=False)
    graphs = encode_graph(network), decode_graph(network)
    assert [leaks(graph) for graph in graphs] == [[], []]
    products = matrix_products(graphs[1])
    layer_products = 7 * EVEN.decoder_layers
    assert products.count("QuantizedMatmul") == layer_products + (0 if modules == "old" else 1)


# --- the walker finds what it is for: one leak each, put in on purpose ------------------------------------------------


def float32_delay_scales(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = Decoder.delay_scales
    patch.setattr(Decoder, "delay_scales", lambda self, n: plain(self, n).astype(mx.float32))


def mel_not_cast(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = Encoder.make_state

    def make_state(self: Encoder, **options: Any) -> Any:
        state = plain(self, **options)
        state.conv1_tail = state.conv1_tail.astype(mx.float32)
        return state

    patch.setattr(Encoder, "make_state", make_state)


def float32_cache(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = cache_module.RingCache.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **{**options, "dtype": mx.float32})

    patch.setattr(cache_module.RingCache, "__init__", init)


def float32_rotation(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    def rotate(x: mx.array, turn: mx.array) -> mx.array:
        return (x.astype(mx.float32).view(mx.complex64) * turn).view(mx.float32)

    patch.setattr("voxpipe.model.layers.rotate", rotate)


def float32_bias(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    linear = network.encoder.layers[1].mlp.down_proj
    linear.bias = linear.bias.astype(mx.float32)


def float32_norm(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    norm = network.decoder.layers[1].ffn_norm
    norm.weight = norm.weight.astype(mx.float32)


def float32_embedding(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    embedding = network.decoder.embed_tokens
    embedding.weight = embedding.weight.astype(mx.float32)


def float32_feed_forward(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = nn.silu
    patch.setattr(nn, "silu", lambda x: plain(x.astype(mx.float32)).astype(x.dtype))


def float32_logits(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = Decoder.logits
    patch.setattr(Decoder, "logits", lambda self, hidden: plain(self, hidden).astype(mx.float32))


LEAKS = [
    float32_delay_scales,
    mel_not_cast,
    float32_cache,
    float32_rotation,
    float32_bias,
    float32_norm,
    float32_embedding,
    float32_feed_forward,
    float32_logits,
]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_leak_is_found(
    low: VoxtralRealtime,
    leak: Callable[[VoxtralRealtime, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leak(low, monkeypatch)
    assert leaks(encode_graph(low)) + leaks(decode_graph(low)) != []


def test_delay_modulation_itself_is_float32(low: VoxtralRealtime, dtype: mx.Dtype) -> None:
    """It is computed once per stream, exactly, and rounded at its end."""
    module: DelayModulation = low.decoder.layers[0].ada
    assert module(mx.ones(AWKWARD.decoder_dim)).dtype == mx.float32
    assert low.delay_scales(6).dtype == dtype
