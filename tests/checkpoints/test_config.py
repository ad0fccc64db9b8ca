"""Three dialects of JSON say the same, and what cannot be obeyed is refused."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.random_checkpoints import AWKWARD, Sizes, hugging_face_json, mlx_audio_json, params_json
from voxpipe.config import (
    DELAYS_MS,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    delay_tokens,
)
from voxpipe.errors import EX_CONFIG, EX_USAGE, ModelError, UsageError

S = AWKWARD
EXPECTED = ModelConfig(
    encoder=EncoderConfig(
        dim=40,
        n_layers=2,
        n_heads=3,
        n_kv_heads=3,
        head_dim=16,
        hidden_dim=72,
        norm_eps=1e-5,
        rope_theta=1e6,
        sliding_window=22,
        n_mels=128,
        log_mel_max=1.5,
        downsample_factor=4,
    ),
    decoder=DecoderConfig(
        dim=56,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=12,
        hidden_dim=88,
        norm_eps=1e-5,
        rope_theta=1e6,
        sliding_window=30,
        vocab_size=300,
        ada_dim=32,
    ),
)
DIALECTS = {"mistral": params_json, "mlx-audio": mlx_audio_json, "hugging-face": hugging_face_json}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_say_the_same(dialect: str) -> None:
    assert ModelConfig.from_json(DIALECTS[dialect]()) == EXPECTED


@pytest.mark.parametrize("dialect", DIALECTS)
def test_round_trip(dialect: str) -> None:
    config = ModelConfig.from_json(DIALECTS[dialect]())
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_round_trip_of_everything_else() -> None:
    config = replace(
        EXPECTED,
        transcription_delay_ms=2_400,
        bos_id=5,
        eos_id=6,
        streaming_pad_id=7,
        n_left_pad_tokens=8,
        encoder=replace(EXPECTED.encoder, log_mel_max=2.0, n_mels=80, norm_eps=1e-6, rope_theta=1e4),
        quantization={"group_size": 64, "bits": 4, "decoder.norm": {"bits": 8}},
    )
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_real_params() -> None:
    """The sizes of Voxtral-Mini-4B-Realtime-2602."""
    sizes = Sizes(
        encoder_dim=1_280,
        encoder_layers=32,
        encoder_heads=32,
        encoder_head_dim=64,
        encoder_hidden=5_120,
        encoder_window=750,
        decoder_dim=3_072,
        decoder_layers=26,
        decoder_heads=32,
        decoder_kv_heads=8,
        decoder_head_dim=128,
        decoder_hidden=9_216,
        decoder_window=8_192,
        vocab_size=131_072,
    )
    config = ModelConfig.from_json(params_json(sizes))
    assert config.encoder.dim == 1_280
    assert config.decoder.sliding_window == 8_192
    assert config.transcription_delay_ms == 480


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced, or removed where it is `...`."""
    raw = copy.deepcopy(raw)
    *parents, key = path.split("/")
    holder = raw
    for parent in parents:
        holder = holder[parent]
    if value is ...:
        del holder[key]
    else:
        holder[key] = value
    return raw


def test_window_as_a_string() -> None:
    assert ModelConfig.from_json(changed(params_json(), "sliding_window", "30")) == EXPECTED


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_quantization_under_either_key(key: str) -> None:
    raw = {**mlx_audio_json(), key: {"group_size": 64, "bits": 4}}
    assert ModelConfig.from_json(raw).quantization == {"group_size": 64, "bits": 4}


def test_hugging_face_delay_is_in_tokens() -> None:
    raw = changed(hugging_face_json(), "default_num_delay_tokens", 30)
    assert ModelConfig.from_json(raw).transcription_delay_ms == 2_400


def test_hugging_face_older_rope_key() -> None:
    raw = hugging_face_json()
    for part in ("audio_config", "text_config"):
        del raw[part]["rope_parameters"]
        raw[part]["rope_theta"] = 1e6
    assert ModelConfig.from_json(raw) == EXPECTED


WHISPER = "multimodal/whisper_model_args/encoder_args/"
REFUSED = [
    ("mistral", WHISPER + "causal", False),
    ("mistral", WHISPER + "use_biases", False),
    ("mistral", WHISPER + "pos_embed", "sinusoidal"),
    ("mistral", WHISPER + "ffn_type", "mlp"),
    ("mistral", WHISPER + "norm_type", "layer_norm"),
    ("mistral", WHISPER + "audio_encoding_args/sampling_rate", 8_000),
    ("mistral", WHISPER + "audio_encoding_args/frame_rate", 25.0),
    ("mistral", WHISPER + "audio_encoding_args/hop_length", 80),
    ("mistral", WHISPER + "audio_encoding_args/window_size", 512),
    ("mistral", "use_biases", True),
    ("mistral", "causal", False),
    ("mistral", "tied_embeddings", False),
    ("mistral", "ada_rms_norm_t_cond", False),
    ("mlx-audio", "encoder_args/causal", False),
    ("mlx-audio", "encoder_args/use_biases", False),
    ("mlx-audio", "decoder/tied_embeddings", False),
    ("mlx-audio", "decoder/ada_rms_norm_t_cond", False),
    ("hugging-face", "audio_config/hidden_act", "gelu"),
    ("hugging-face", "audio_config/activation_function", "relu"),
    ("hugging-face", "text_config/hidden_act", "gelu"),
    ("hugging-face", "text_config/tie_word_embeddings", False),
    ("hugging-face", "text_config/rope_parameters/rope_type", "yarn"),
    ("hugging-face", "projector_hidden_act", "relu"),
    ("hugging-face", "audio_length_per_tok", 4),
]


@pytest.mark.parametrize(("dialect", "path", "value"), REFUSED)
def test_what_cannot_be_obeyed_is_refused(dialect: str, path: str, value: Any) -> None:
    key = path.rpartition("/")[2]
    with pytest.raises(
        ModelError, match=rf"^the model's configuration has {key} = {value!r}; only .* is known$"
    ) as error:
        ModelConfig.from_json(changed(DIALECTS[dialect](), path, value))
    assert error.value.status == EX_CONFIG


@pytest.mark.parametrize(
    ("dialect", "path", "value"),
    [
        ("mistral", "n_heads", 5),
        ("mistral", "head_dim", 7),
        ("mistral", "dim", 0),
        ("mistral", "sliding_window", -1),
        ("mistral", WHISPER + "n_layers", 0),
        ("hugging-face", "text_config/num_key_value_heads", 4),
    ],
)
def test_sizes_that_do_not_fit(dialect: str, path: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"^the (encoder|decoder)'s sizes in the configuration do not fit together: "):
        ModelConfig.from_json(changed(DIALECTS[dialect](), path, value))


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("mistral", "multimodal/whisper_model_args/downsample_args/downsample_factor"),
        ("mlx-audio", "encoder_args/downsample_factor"),
        ("hugging-face", "downsample_factor"),
    ],
)
def test_downsampling_is_by_four(dialect: str, path: str) -> None:
    with pytest.raises(ModelError, match=r"^downsample_factor is 2; only 4 \(80 ms per token\) is known$"):
        ModelConfig.from_json(changed(DIALECTS[dialect](), path, 2))


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("mistral", "dim"),
        ("mistral", "vocab_size"),
        ("mistral", WHISPER + "dim"),
        ("mistral", WHISPER + "audio_encoding_args"),
        ("mistral", "multimodal/whisper_model_args"),
        ("mlx-audio", "encoder_args/downsample_factor"),
        ("mlx-audio", "decoder/ada_rms_norm_t_cond_dim"),
        ("hugging-face", "audio_config/num_mel_bins"),
        ("hugging-face", "text_config/head_dim"),
    ],
)
def test_missing_key(dialect: str, path: str) -> None:
    key = path.rpartition("/")[2]
    with pytest.raises(ModelError, match=rf"^the model's configuration lacks the key '{key}'$"):
        ModelConfig.from_json(changed(DIALECTS[dialect](), path, ...))


@pytest.mark.parametrize(
    ("dialect", "path", "value"),
    [
        ("mistral", "multimodal", 3),
        ("mistral", "multimodal", None),
        ("mistral", "dim", "wide"),
        ("mistral", "sliding_window", None),
        ("mistral", "sliding_window", "all"),
        ("mlx-audio", "decoder", []),
        ("mlx-audio", "decoder/vocab_size", 300.5),
        ("mlx-audio", "encoder_args/audio_encoding_args/global_log_mel_max", "loud"),
        ("hugging-face", "text_config", None),
    ],
)
def test_malformed(dialect: str, path: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"^the model's configuration is malformed: [^\n]*$"):
        ModelConfig.from_json(changed(DIALECTS[dialect](), path, value))


@pytest.mark.parametrize("raw", [{}, {"model_type": "whisper"}, {"encoder_args": {}}, {"audio_config": {}}])
def test_another_model(raw: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^this is not the configuration of a Voxtral Realtime model: [^\n]*$"):
        ModelConfig.from_json(raw)


@pytest.mark.parametrize("delay_ms", [500, 0, 1_280, None])
def test_checkpoint_with_an_impossible_delay(delay_ms: int) -> None:
    raw = {**mlx_audio_json(), "transcription_delay_ms": delay_ms}
    with pytest.raises(ModelError, match=f"^the model's configuration has the impossible delay {delay_ms} ms$"):
        ModelConfig.from_json(raw)


# --- delays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay_ms", "n_tokens"), [(80, 1), (160, 2), (240, 3), (480, 6), (960, 12), (1_200, 15), (2_400, 30)]
)
def test_delay_tokens(delay_ms: int, n_tokens: int) -> None:
    assert delay_tokens(delay_ms) == n_tokens


def test_possible_delays() -> None:
    assert DELAYS_MS == (80, 160, 240, 320, 400, 480, 560, 640, 720, 800, 880, 960, 1040, 1120, 1200, 2400)


@pytest.mark.parametrize("delay_ms", [-80, 0, 1, 79, 81, 500, 1_280, 2_320, 2_480, 480.5])
def test_impossible_delay(delay_ms: float) -> None:
    with pytest.raises(UsageError) as error:
        delay_tokens(delay_ms)  # type: ignore[arg-type]
    assert str(error.value) == (
        f"a transcription delay of {delay_ms} ms is not possible; choose one of 80, 160, 240, 320, 400, 480, 560, 640, "
        "720, 800, 880, 960, 1040, 1120, 1200, 2400"
    )
    assert error.value.status == EX_USAGE
