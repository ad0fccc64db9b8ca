"""Weights in blocks give what plain weights give, for any number of rows and any size."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from voxpipe import load
from voxpipe.accelerate import BLAS
from voxpipe.model import linear
from voxpipe.model.linear import BlockedEmbedding, BlockedLinear, use_blocks


@pytest.mark.parametrize("split_bytes", [0, linear.SPLIT_BYTES])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 34, 400])
@pytest.mark.parametrize("n_outputs", [64, 192])
def test_equals_plain(n_outputs: int, n_rows: int, split_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SPLIT_BYTES", split_bytes)
    mx.random.seed(n_outputs)
    plain = nn.Linear(48, n_outputs)
    x = mx.random.normal((n_rows, 48))
    expected = np.array(plain(x))
    blocked = BlockedLinear(plain, mx.new_stream(mx.cpu))
    np.testing.assert_allclose(np.array(blocked(x)), expected, atol=1e-5)


def test_embedding_equals_plain_both_ways() -> None:
    plain = nn.Embedding(192, 48)
    ids = mx.array([[0, 63, 64], [191, 5, 100]])
    x = mx.random.normal((2, 48))
    expected = np.array(plain(ids)), np.array(plain.as_linear(x))
    blocked = BlockedEmbedding(plain, mx.new_stream(mx.cpu))
    np.testing.assert_array_equal(np.array(blocked(ids)), expected[0])
    np.testing.assert_allclose(np.array(blocked.as_linear(x)), expected[1], atol=1e-5)


def test_network_keeps_what_does_not_divide() -> None:
    network = nn.Sequential(nn.Linear(8, 128), nn.Linear(128, 20), nn.Embedding(64, 8))
    x = mx.random.normal((1, 8))
    expected = np.array(network.layers[1](network.layers[0](x)))
    use_blocks(network, mx.new_stream(mx.cpu))
    assert [type(layer) for layer in network.layers] == [BlockedLinear, nn.Linear, BlockedEmbedding]
    np.testing.assert_allclose(np.array(network.layers[1](network.layers[0](x))), expected, atol=1e-5)


@pytest.mark.skipif(BLAS is None or mx.default_device() != mx.cpu, reason="only OpenBLAS gains from blocks")
def test_loading_uses_blocks_and_leaves_the_delay_modulation() -> None:
    network = load("tiny").network
    kinds = {path: type(module) for path, module in network.named_modules() if "weight" in module}
    plain = {path for path, kind in kinds.items() if kind in (nn.Linear, nn.Embedding)}
    assert plain == {path for path in kinds if ".ada." in path}
    assert kinds["decoder.embed_tokens"] is BlockedEmbedding
    assert kinds["encoder.layers.0.mlp.gate_up"] is BlockedLinear
