"""The shape of a checkpoint, read from its JSON into frozen dataclasses.

Three dialects say the same things (spec: Mistral `params.json`, which voxmlx copies into `config.json`; mlx-audio's
`config.json`; Hugging Face's `config.json`); `ModelConfig.from_json` tells them apart by their keys. What this
implementation cannot obey (another activation, biases where there are none, ...) is refused instead of ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from voxpipe.errors import ModelError, UsageError

SAMPLE_RATE = 16_000
HOP_LENGTH = 160  # 10 ms
MS_PER_TOKEN = 80
SAMPLES_PER_TOKEN = 1_280  # hop 160 x conv stride 2 x 4 frames stacked: 80 ms
MEL_FRAMES_PER_TOKEN = 8
DELAYS_MS = (*range(80, 1_201, 80), 2_400)  # the model card's set; nothing else was trained


def delay_tokens(delay_ms: int) -> int:
    """Return the delay in tokens of 80 ms.

    Raises:
        UsageError: `delay_ms` is not one of `DELAYS_MS`.
    """
    if delay_ms not in DELAYS_MS:
        allowed = ", ".join(str(ms) for ms in DELAYS_MS)
        raise UsageError(f"a transcription delay of {delay_ms} ms is not possible; choose one of {allowed}")
    return int(delay_ms) // MS_PER_TOKEN


@dataclass(frozen=True)
class AttentionConfig:
    """The sizes that encoder and decoder layers share."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    norm_eps: float
    rope_theta: float
    sliding_window: int  # keys seen by a query, itself included


@dataclass(frozen=True)
class EncoderConfig(AttentionConfig):
    n_mels: int = 128
    log_mel_max: float = 1.5
    downsample_factor: int = 4


@dataclass(frozen=True)
class DecoderConfig(AttentionConfig):
    vocab_size: int = 131_072
    ada_dim: int = 32


@dataclass(frozen=True)
class ModelConfig:
    encoder: EncoderConfig
    decoder: DecoderConfig
    transcription_delay_ms: int = 480
    bos_id: int = 1
    eos_id: int = 2
    streaming_pad_id: int = 32
    streaming_word_id: int = 33
    n_left_pad_tokens: int = 32
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Read any of the three dialects.

        Raises:
            ModelError: a key is missing, or asks for something this model does not have.
        """
        try:
            if "multimodal" in raw:
                config = _from_params(raw)
            elif "encoder_args" in raw and "decoder" in raw:
                config = _from_mlx_audio(raw)
            elif "audio_config" in raw and "text_config" in raw:
                config = _from_hugging_face(raw)
            else:
                raise ModelError(
                    "this is not the configuration of a Voxtral Realtime model: it has none of the keys "
                    "'multimodal', 'encoder_args' and 'decoder', or 'audio_config' and 'text_config'"
                )
            config.check()
        except ModelError:
            raise
        except KeyError as exc:
            raise ModelError(f"the model's configuration lacks the key {exc}") from exc
        except (TypeError, AttributeError, ValueError) as exc:
            raise ModelError(f"the model's configuration is malformed: {exc}") from exc
        return config

    def check(self) -> None:
        """Raise ModelError where the sizes contradict each other or the delay is impossible, TypeError where no number is."""
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            for size in fields(part):
                if size.type is int and type(getattr(part, size.name)) is not int:
                    raise TypeError(f"the {name}'s {size.name} is {getattr(part, size.name)!r}, not an integer")
            sizes = (
                part.dim,
                part.n_layers,
                part.n_heads,
                part.n_kv_heads,
                part.head_dim,
                part.hidden_dim,
                part.sliding_window,
            )
            if min(sizes) < 1 or part.n_heads % part.n_kv_heads or part.head_dim % 2:
                raise ModelError(f"the {name}'s sizes in the configuration do not fit together: {part}")
        if self.encoder.downsample_factor != 4:
            raise ModelError(
                f"downsample_factor is {self.encoder.downsample_factor}; only 4 (80 ms per token) is known"
            )
        if self.transcription_delay_ms not in DELAYS_MS:
            raise ModelError(f"the model's configuration has the impossible delay {self.transcription_delay_ms!r} ms")

    def to_json(self) -> dict[str, Any]:
        """Return the mlx-audio dialect, which `voxpipe convert` writes."""
        encoder, decoder = self.encoder, self.decoder
        raw: dict[str, Any] = {
            "model_type": "voxtral_realtime",
            "transcription_delay_ms": self.transcription_delay_ms,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            "streaming_pad_token_id": self.streaming_pad_id,
            "n_left_pad_tokens": self.n_left_pad_tokens,
            "encoder_args": {
                **_shared_json(encoder),
                "audio_encoding_args": {
                    "sampling_rate": SAMPLE_RATE,
                    "frame_rate": 12.5,
                    "num_mel_bins": encoder.n_mels,
                    "hop_length": HOP_LENGTH,
                    "window_size": 400,
                    "global_log_mel_max": encoder.log_mel_max,
                    "transcription_format": "streaming",
                },
                "causal": True,
                "use_biases": True,
                "downsample_factor": encoder.downsample_factor,
            },
            "decoder": {
                **_shared_json(decoder),
                "vocab_size": decoder.vocab_size,
                "tied_embeddings": True,
                "ada_rms_norm_t_cond": True,
                "ada_rms_norm_t_cond_dim": decoder.ada_dim,
            },
        }
        if self.quantization:
            raw["quantization"] = dict(self.quantization)
        return raw


SHARED_KEYS = (
    "dim",
    "n_layers",
    "head_dim",
    "hidden_dim",
    "n_heads",
    "n_kv_heads",
    "norm_eps",
    "rope_theta",
    "sliding_window",
)


def _shared_json(part: AttentionConfig) -> dict[str, Any]:
    return {key: getattr(part, key) for key in SHARED_KEYS}


def _shared(raw: Mapping[str, Any]) -> dict[str, Any]:
    shared: dict[str, Any] = {key: raw[key] for key in SHARED_KEYS}
    shared["sliding_window"] = int(shared["sliding_window"])  # some params.json files write it as a string
    return shared


def _expect(raw: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if raw.get(key, value) != value:
            raise ModelError(f"the model's configuration has {key} = {raw[key]!r}; only {value!r} is known")


def _audio(raw: Mapping[str, Any]) -> dict[str, Any]:
    _expect(raw, sampling_rate=SAMPLE_RATE, frame_rate=12.5, hop_length=HOP_LENGTH, window_size=400)
    return {"n_mels": raw["num_mel_bins"], "log_mel_max": float(raw.get("global_log_mel_max", 1.5))}


def _mistral_encoder(raw: Mapping[str, Any], downsample_factor: int) -> EncoderConfig:
    _expect(raw, causal=True, use_biases=True, pos_embed="rope", ffn_type="swiglu", norm_type="rms_norm")
    return EncoderConfig(**_shared(raw), **_audio(raw["audio_encoding_args"]), downsample_factor=downsample_factor)


def _mistral_decoder(raw: Mapping[str, Any]) -> DecoderConfig:
    _expect(raw, use_biases=False, causal=True, tied_embeddings=True, ada_rms_norm_t_cond=True)
    return DecoderConfig(**_shared(raw), vocab_size=raw["vocab_size"], ada_dim=raw["ada_rms_norm_t_cond_dim"])


def _from_params(raw: Mapping[str, Any]) -> ModelConfig:
    whisper = raw["multimodal"]["whisper_model_args"]
    return ModelConfig(
        encoder=_mistral_encoder(whisper["encoder_args"], whisper["downsample_args"]["downsample_factor"]),
        decoder=_mistral_decoder(raw),
        quantization=raw.get("quantization") or {},
    )


def _from_mlx_audio(raw: Mapping[str, Any]) -> ModelConfig:
    encoder = raw["encoder_args"]
    return ModelConfig(
        encoder=_mistral_encoder(encoder, encoder["downsample_factor"]),
        decoder=_mistral_decoder(raw["decoder"]),
        transcription_delay_ms=raw.get("transcription_delay_ms", 480),
        bos_id=raw.get("bos_token_id", 1),
        eos_id=raw.get("eos_token_id", 2),
        streaming_pad_id=raw.get("streaming_pad_token_id", 32),
        n_left_pad_tokens=raw.get("n_left_pad_tokens", 32),
        quantization=raw.get("quantization") or raw.get("quantization_config") or {},
    )


def _hugging_face_shared(raw: Mapping[str, Any]) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or raw
    _expect(rope, rope_type="default")
    return {
        "dim": raw["hidden_size"],
        "n_layers": raw["num_hidden_layers"],
        "n_heads": raw["num_attention_heads"],
        "n_kv_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "head_dim": raw["head_dim"],
        "hidden_dim": raw["intermediate_size"],
        "norm_eps": raw["rms_norm_eps"],
        "rope_theta": rope["rope_theta"],
        "sliding_window": int(raw["sliding_window"]),
    }


def _from_hugging_face(raw: Mapping[str, Any]) -> ModelConfig:
    audio, text = raw["audio_config"], raw["text_config"]
    _expect(audio, hidden_act="silu", activation_function="gelu")
    _expect(text, tie_word_embeddings=True, hidden_act="silu")
    _expect(raw, projector_hidden_act="gelu", audio_length_per_tok=MEL_FRAMES_PER_TOKEN)
    return ModelConfig(
        encoder=EncoderConfig(
            **_hugging_face_shared(audio), n_mels=audio["num_mel_bins"], downsample_factor=raw["downsample_factor"]
        ),
        decoder=DecoderConfig(**_hugging_face_shared(text), vocab_size=text["vocab_size"], ada_dim=32),
        transcription_delay_ms=raw.get("default_num_delay_tokens", 6) * MS_PER_TOKEN,
    )
