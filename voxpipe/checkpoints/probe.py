"""What a model directory holds, found out by looking: every tensor is put into its place, and none is read.

Nothing is taken from a name or a card. What a checkpoint does not say is left out.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from voxpipe.checkpoints.files import matches_published_hash, model_files
from voxpipe.checkpoints.load import assemble_network, load_tokenizer, quantization_of, read_checkpoint
from voxpipe.config import AttentionConfig


@dataclass(frozen=True)
class Facts:
    """A model that can be loaded.

    Attributes:
        layout: whose names and arrangement its tensors have.
        dtype: of what is not quantized.
        bits, most_bits, group_size: of what is, which can differ from module to module; None in a plain checkpoint.
        n_parameters: weights of the network, each counted once, however it is stored.
        vocabulary: entries of the embedding.
        delay_ms: the default.
        file_bytes: of its files on the disk.
        memory_bytes: of its weights once loaded, by this machine's backend.
        stream_bytes: of the caches of a stream whose windows are full.
    """

    directory: Path
    layout: str
    dtype: str
    bits: int | None
    most_bits: int | None
    group_size: int | None
    n_parameters: int
    vocabulary: int
    delay_ms: int
    encoder: str
    decoder: str
    file_bytes: int
    memory_bytes: int
    stream_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Its fields, without what there is not."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return {**facts, "directory": str(self.directory)}


def probe(directory: Path) -> Facts:
    """Look at a model without reading its weights.

    Raises:
        ModelError: it could not be loaded.
    """
    checkpoint = read_checkpoint(directory)
    network = assemble_network(checkpoint)
    load_tokenizer(checkpoint)
    memory = dict(tree_flatten(network.parameters()))
    plain = dict(tree_flatten(assemble_network(checkpoint, dequantize=True).parameters()))
    config = checkpoint.config
    bits, most_bits, group_size = quantization_of(checkpoint) or (None, None, None)
    return Facts(
        directory=directory,
        layout=checkpoint.layout.name,
        dtype=_name(checkpoint.dtype),
        bits=bits,
        most_bits=most_bits,
        group_size=group_size,
        n_parameters=sum(tensor.size for tensor in plain.values()),
        vocabulary=config.decoder.vocab_size,
        delay_ms=config.transcription_delay_ms,
        encoder=_sizes(config.encoder),
        decoder=_sizes(config.decoder),
        file_bytes=sum(path.stat().st_size for path in model_files(directory)),
        memory_bytes=sum(tensor.nbytes for tensor in memory.values()),
        stream_bytes=network.stream_bytes,
    )


def check_hashes(directory: Path) -> tuple[int, list[Path]]:
    """(files whose published hash is known, those of them that do not have it); reads the whole model."""
    verdicts = {path: matches_published_hash(path) for path in model_files(directory)}
    known = [path for path, verdict in verdicts.items() if verdict is not None]
    return len(known), [path for path in known if not verdicts[path]]


def _sizes(part: AttentionConfig) -> str:
    return f"{part.n_layers} layers of {part.dim}, {part.n_heads} heads, window {part.sliding_window}"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
