"""The four ways in which the same 711 tensors are named and laid out.

One table says how each layout calls each module; everything else follows from it. Ours are the module paths of
`voxpipe.model`: convolutions as MLX wants them, (out, kernel, in), and rotary pairs interleaved, as Mistral trained them.
Knows nothing of files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from voxpipe.config import AttentionConfig, ModelConfig

_WHISPER = "mm_streams_embeddings.embedding_module.whisper_encoder."
_PROJECTION = "mm_streams_embeddings.embedding_module.audio_language_projection."

# ours | Mistral | mlx-audio | voxmlx | Hugging Face
_MODULES = """
encoder.conv1 | W:conv_layers.0.conv | encoder.conv_layers_0_conv.conv | encoder.conv1 | audio_tower.embedder.conv1
encoder.conv2 | W:conv_layers.1.conv | encoder.conv_layers_1_conv.conv | encoder.conv2 | audio_tower.embedder.conv2
encoder.layers.#.attention_norm | W:transformer.layers.#.attention_norm | encoder.transformer_layers.#.attention_norm | encoder.layers.#.attn_norm | audio_tower.layers.#.self_attn_layer_norm
encoder.layers.#.attention.q_proj | W:transformer.layers.#.attention.wq | encoder.transformer_layers.#.attention.wq | encoder.layers.#.attention.q_proj | audio_tower.layers.#.self_attn.q_proj
encoder.layers.#.attention.k_proj | W:transformer.layers.#.attention.wk | encoder.transformer_layers.#.attention.wk | encoder.layers.#.attention.k_proj | audio_tower.layers.#.self_attn.k_proj
encoder.layers.#.attention.v_proj | W:transformer.layers.#.attention.wv | encoder.transformer_layers.#.attention.wv | encoder.layers.#.attention.v_proj | audio_tower.layers.#.self_attn.v_proj
encoder.layers.#.attention.o_proj | W:transformer.layers.#.attention.wo | encoder.transformer_layers.#.attention.wo | encoder.layers.#.attention.o_proj | audio_tower.layers.#.self_attn.o_proj
encoder.layers.#.ffn_norm | W:transformer.layers.#.ffn_norm | encoder.transformer_layers.#.ffn_norm | encoder.layers.#.ffn_norm | audio_tower.layers.#.final_layer_norm
encoder.layers.#.mlp.gate_proj | W:transformer.layers.#.feed_forward.w1 | encoder.transformer_layers.#.feed_forward_w1 | encoder.layers.#.mlp.gate_proj | audio_tower.layers.#.mlp.gate_proj
encoder.layers.#.mlp.up_proj | W:transformer.layers.#.feed_forward.w3 | encoder.transformer_layers.#.feed_forward_w3 | encoder.layers.#.mlp.up_proj | audio_tower.layers.#.mlp.up_proj
encoder.layers.#.mlp.down_proj | W:transformer.layers.#.feed_forward.w2 | encoder.transformer_layers.#.feed_forward_w2 | encoder.layers.#.mlp.down_proj | audio_tower.layers.#.mlp.down_proj
encoder.norm | W:transformer.norm | encoder.transformer_norm | encoder.norm | audio_tower.norm
encoder.adapter.linear_1 | P:0 | encoder.audio_language_projection_0 | adapter.w_in | multi_modal_projector.linear_1
encoder.adapter.linear_2 | P:2 | encoder.audio_language_projection_2 | adapter.w_out | multi_modal_projector.linear_2
decoder.embed_tokens | E: | decoder.tok_embeddings | language_model.embed_tokens | language_model.embed_tokens
decoder.layers.#.attention_norm | layers.#.attention_norm | decoder.layers.#.attention_norm | language_model.layers.#.attn_norm | language_model.layers.#.input_layernorm
decoder.layers.#.attention.q_proj | layers.#.attention.wq | decoder.layers.#.attention.wq | language_model.layers.#.attention.q_proj | language_model.layers.#.self_attn.q_proj
decoder.layers.#.attention.k_proj | layers.#.attention.wk | decoder.layers.#.attention.wk | language_model.layers.#.attention.k_proj | language_model.layers.#.self_attn.k_proj
decoder.layers.#.attention.v_proj | layers.#.attention.wv | decoder.layers.#.attention.wv | language_model.layers.#.attention.v_proj | language_model.layers.#.self_attn.v_proj
decoder.layers.#.attention.o_proj | layers.#.attention.wo | decoder.layers.#.attention.wo | language_model.layers.#.attention.o_proj | language_model.layers.#.self_attn.o_proj
decoder.layers.#.ffn_norm | layers.#.ffn_norm | decoder.layers.#.ffn_norm | language_model.layers.#.ffn_norm | language_model.layers.#.post_attention_layernorm
decoder.layers.#.ada.down | layers.#.ada_rms_norm_t_cond.0 | decoder.layers.#.ada_rms_norm_t_cond.ada_down | language_model.layers.#.ada_norm.linear_in | language_model.layers.#.ada_rms_norm.linear1
decoder.layers.#.ada.up | layers.#.ada_rms_norm_t_cond.2 | decoder.layers.#.ada_rms_norm_t_cond.ada_up | language_model.layers.#.ada_norm.linear_out | language_model.layers.#.ada_rms_norm.linear2
decoder.layers.#.mlp.gate_proj | layers.#.feed_forward.w1 | decoder.layers.#.feed_forward_w1 | language_model.layers.#.mlp.gate_proj | language_model.layers.#.mlp.gate_proj
decoder.layers.#.mlp.up_proj | layers.#.feed_forward.w3 | decoder.layers.#.feed_forward_w3 | language_model.layers.#.mlp.up_proj | language_model.layers.#.mlp.up_proj
decoder.layers.#.mlp.down_proj | layers.#.feed_forward.w2 | decoder.layers.#.feed_forward_w2 | language_model.layers.#.mlp.down_proj | language_model.layers.#.mlp.down_proj
decoder.norm | norm | decoder.norm | language_model.norm | language_model.norm
"""  # noqa: E501 - a table is read by its columns


def _table() -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in _MODULES.strip().splitlines()]
    for row in rows:
        row[1] = row[1].replace("W:", _WHISPER).replace("P:", _PROJECTION)
        row[1] = row[1].replace("E:", "mm_streams_embeddings.embedding_module.tok_embeddings")
    return rows


_TENSOR = re.compile(r"(?P<module>.+)\.(?P<kind>weight|bias|scales|biases)")
_LAYER = re.compile(r"(?<!conv_)layers\.(\d+)\.")


@dataclass(frozen=True)
class Layout:
    """One naming of the tensors.

    Attributes:
        column: of the table above.
        torch_convs: convolution weights are (out, in, kernel).
        split_rotary: query and key rows are ordered for rotating halves instead of interleaved pairs.
        aliases: prefixes that stand for others, tried first to last, each once.
        tied: copies of the embedding that some exports carry.
    """

    name: str
    column: int
    torch_convs: bool = False
    split_rotary: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    tied: tuple[str, ...] = ()

    @cached_property
    def _to_ours(self) -> dict[str, str]:
        return {row[self.column]: row[0] for row in _table()}

    @cached_property
    def _from_ours(self) -> dict[str, str]:
        return {row[0]: row[self.column] for row in _table()}

    def our_name(self, name: str) -> str | None:
        """Our name of a tensor of this layout, or None if the layout has no such tensor."""
        for prefix, replacement in self.aliases:
            if name.startswith(prefix):
                name = replacement + name[len(prefix) :]
        return _translate(name, self._to_ours)

    def their_name(self, our_name: str) -> str:
        """The reverse of `our_name`."""
        name = _translate(our_name, self._from_ours)
        if name is None:
            raise KeyError(our_name)
        return name

    def to_ours(self, our_name: str, tensor: mx.array, config: ModelConfig) -> mx.array:
        """Lay one tensor out as ours."""
        if self.torch_convs and ".conv" in our_name and our_name.endswith(".weight"):
            return tensor.transpose(0, 2, 1)
        n_heads = _rotary_heads(our_name, config) if self.split_rotary else 0
        if n_heads:
            rows = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, *tensor.shape[1:])
            return rows.swapaxes(1, 2).reshape(tensor.shape)
        return tensor


def _translate(name: str, modules: Mapping[str, str]) -> str | None:
    parts = _TENSOR.fullmatch(name)
    if parts is None:
        return None
    layer = _LAYER.search(parts["module"])
    module = modules.get(_LAYER.sub("layers.#.", parts["module"]))
    if module is None:
        return None
    return f"{module.replace('#', layer[1]) if layer else module}.{parts['kind']}"


def _rotary_heads(our_name: str, config: ModelConfig) -> int:
    part: AttentionConfig = config.encoder if our_name.startswith("encoder.") else config.decoder
    if ".q_proj." in our_name:
        return part.n_heads
    return part.n_kv_heads if ".k_proj." in our_name else 0


MISTRAL = Layout(
    "Mistral",
    column=1,
    torch_convs=True,
    aliases=(("mm_whisper_embeddings.", "mm_streams_embeddings.embedding_module."),),
    tied=("output.weight",),
)
MLX_AUDIO = Layout("mlx-audio", column=2)
VOXMLX = Layout("voxmlx", column=3)
HUGGING_FACE = Layout(
    "Hugging Face",
    column=4,
    torch_convs=True,
    split_rotary=True,
    aliases=(("model.", ""), ("language_model.model.", "language_model.")),
    tied=("lm_head.weight", "language_model.lm_head.weight"),
)
LAYOUTS = (MISTRAL, MLX_AUDIO, VOXMLX, HUGGING_FACE)


def recognise(names: Iterable[str]) -> Layout:
    """The layout that knows most of these tensor names (a checkpoint is named as it is, whatever its JSON looks like)."""
    names = list(names)
    return max(LAYOUTS, key=lambda layout: sum(layout.our_name(name) is not None for name in names))
