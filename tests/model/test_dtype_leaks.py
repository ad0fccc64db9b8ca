"""At bf16 and fp16 nothing but rotations and the insides of norms is float32; the walker is tried on leaks first."""

import copy
import copyreg
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.model.graph_types import Graph, leaks, trace, wide_islands, wide_weights
from tests.model.offline import load_network
from tests.random_checkpoints import AWKWARD, EVEN, Quantization, write_checkpoint
from voxpipe.model import cache as cache_module
from voxpipe.model import encoder as encoder_module
from voxpipe.model import pack as pack_module
from voxpipe.model import rope
from voxpipe.model.decoder import Decoder, DelayModulation
from voxpipe.model.voxtral import StreamState, VoxtralRealtime

copyreg.pickle(mx.Dtype, str)  # a type is its own deep copy
LOW = [mx.bfloat16, mx.float16]
TOKENS = 3
BOS = 1
SILENCE = np.full((8 * TOKENS, 128), -0.625, np.float32)


@pytest.fixture(params=LOW, ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> mx.Dtype:
    chosen: mx.Dtype = request.param
    return chosen


@pytest.fixture
def low(dtype: mx.Dtype, tmp_path: Path) -> VoxtralRealtime:
    """A float32 checkpoint, loaded in 16 bits."""
    return load_low(write_checkpoint(tmp_path / "model", sizes=AWKWARD), dtype)


def load_low(directory: Path, dtype: mx.Dtype, *, dequantize: bool = True) -> VoxtralRealtime:
    """With one lane, so that a graph holds every layer once, and no core to work ahead: a traced graph has no values."""
    network = load_network(directory, dtype=dtype, dequantize=dequantize)
    network._lanes = network.lanes[:1]
    network._n_cores = 1
    return network


def encode_graph(network: VoxtralRealtime, states: Sequence[StreamState] = ()) -> Graph:
    """The mel frames come from the host: the input that all else follows from is the first convolution's bias."""
    states = copy.deepcopy(states) if states else [network.make_state(6)]  # a trace leaves its tracers in the state
    bias = network.encoder.conv1.bias

    def encode(traced: mx.array) -> list[mx.array]:
        network.encoder.conv1.bias = traced
        return network.encode([(state, SILENCE) for state in states])

    try:
        return trace(encode, bias)
    finally:
        network.encoder.conv1.bias = bias


def decode_graph(network: VoxtralRealtime, states: Sequence[StreamState] = (), *, n_new: int = TOKENS) -> Graph:
    states = copy.deepcopy(states) if states else [network.make_state(6)]
    for state in states:
        network.delay_scales(state.n_delay_tokens)
    embeds = mx.zeros((n_new, network.config.decoder.dim), network.dtype)
    return trace(lambda x: network.decode([x] * len(states), [[BOS] * n_new] * len(states), states), embeds)


def all_leaks(network: VoxtralRealtime) -> list[str]:
    """Of weights, of caches, and of both graphs."""
    state = network.make_state(6)
    mx.eval(network.decode(network.encode([(state, SILENCE)]), [[BOS] * TOKENS], [state]))
    weights = [array for _, array in tree_flatten(network.parameters())]
    caches = [array for ring in (state.encoder.ring, state.decoder) for array in ring.tray.arrays()]
    kept = [*weights, *caches, network.delay_scales(6)]
    return wide_weights(*kept) + leaks(encode_graph(network)) + leaks(decode_graph(network))


def matrix_products(graph: Graph) -> list[str]:
    names = ("Matmul", "AddMM", "QuantizedMatmul", "Convolution", "ScaledDotProductAttention")
    return [primitive.name for primitive in graph.primitives if primitive.name in names]


def test_walk_sees_the_whole_network(low: VoxtralRealtime, dtype: mx.Dtype) -> None:
    """As many islands as there are rotations (1 a layer) and norms (2 a layer and 1), and no matrix product lost."""
    encoder, decoder = encode_graph(low), decode_graph(low)
    assert all_leaks(low) == []
    for graph, sizes, others in ((encoder, low.config.encoder, 2 + 2), (decoder, low.config.decoder, 1)):
        names = {primitive.name for primitive in graph.primitives}
        n_norms = 0 if "RMSNorm" in names else 2 * sizes.n_layers + 1  # a GPU has a kernel for all of it
        assert len(wide_islands(graph)) == sizes.n_layers + n_norms
        attention = 1 if "ScaledDotProductAttention" in names else 2
        assert len(matrix_products(graph)) == (4 + attention) * sizes.n_layers + others
        assert {graph.types[name] for name in graph.outputs} == {dtype}


def test_full_and_wrapped_caches(dtype: mx.Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices, scattered writes, growth and delays that differ are other code than the first step."""
    monkeypatch.setattr(cache_module, "GROWTH", 4)
    sizes = replace(AWKWARD, encoder_window=6, decoder_window=2)
    network = load_low(write_checkpoint(tmp_path / "model", sizes=sizes), dtype)
    network.expect_streams(2)
    states, names = [network.begin(6), network.begin(1)], set()
    assert states[0].decoder.tray is states[1].decoder.tray
    embeds = [mx.zeros((TOKENS, sizes.decoder_dim), dtype)] * 2
    for step in range(20):
        graph = decode_graph(network, states)
        names |= {primitive.name for primitive in graph.primitives}
        assert leaks(graph) == [], step
        mx.eval(network.decode(embeds, [[BOS] * TOKENS] * 2, states))
        if step == 10:
            states[1].decoder.rollback(1)  # the rows part: another way of writing
    assert {"ScatterAxis", "SliceUpdate"} <= names
    for _ in range(10):
        assert leaks(encode_graph(network, states)) == []
        mx.eval(network.encode([(state, SILENCE) for state in states]))
    caches = [array for ring in (states[0].encoder.ring, states[0].decoder) for array in ring.tray.arrays()]
    assert wide_weights(*caches) == []


@pytest.mark.parametrize("modules", ["old", "new", "voxmlx"])
@pytest.mark.parametrize("stored", [mx.float32, mx.float16])
def test_quantized(modules: str, stored: mx.Dtype, dtype: mx.Dtype, tmp_path: Path) -> None:
    """The published 4-bit repository holds some float32 tensors."""
    layout = "voxmlx" if modules == "voxmlx" else "mlx-audio"
    directory = write_checkpoint(
        tmp_path / "model", layout, sizes=EVEN, dtype=stored, quantization=Quantization(4, modules=modules)
    )
    network = load_low(directory, dtype, dequantize=False)
    assert all_leaks(network) == []
    products = matrix_products(decode_graph(network))
    layer_products = 4 * EVEN.decoder_layers
    assert products.count("QuantizedMatmul") == layer_products + (0 if modules == "old" else 1)


# --- the walker finds what it is for: one leak each, put in on purpose ------------------------------------------------


def float32_delay_scales(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = Decoder.delay_scales
    patch.setattr(Decoder, "delay_scales", lambda self, n: plain(self, n).astype(mx.float32))


def mel_not_cast(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = encoder_module._product
    patch.setattr(encoder_module, "_product", lambda conv, windows: plain(conv, windows.astype(mx.float32)))


def float32_cache(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    plain = cache_module.Tray.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **{**options, "dtype": mx.float32})

    patch.setattr(cache_module.Tray, "__init__", init)


def float32_rotation(network: VoxtralRealtime, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pack_module, "rotate", lambda x, own, other: rope.rotate(x.astype(mx.float32), own, other))


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
    plain = mx.sigmoid
    patch.setattr(mx, "sigmoid", lambda x: plain(x.astype(mx.float32)).astype(x.dtype))


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
    assert all_leaks(low) != []


def test_delay_modulation_itself_is_float32(low: VoxtralRealtime, dtype: mx.Dtype) -> None:
    """It is computed once per stream, exactly, and rounded at its end."""
    module: DelayModulation = low.decoder.layers[0].ada
    assert module(mx.ones(AWKWARD.decoder_dim)).dtype == mx.float32
    assert low.delay_scales(6).dtype == dtype
