"""Word error rate of a network on lists of clips: greedy decoding that equals streaming, token by token.

The encoder is causal with a fixed window, so encoding a clip at once gives what streaming gives. The clip stands after
LEFT_PAD tokens of silence and before `delay + 11` tokens of digital zeros, as at the end of a stream.

    python -m training.evaluate CHECKPOINT_DIR REAL_DIR --lists dev-librispeech,dev-ljspeech --delays 1,3,6,12,30
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from .collect import read_clips
from .export import read_checkpoint
from .network import (
    BOS,
    LEFT_PAD,
    PAD,
    TOKEN_SAMPLES,
    KeyValueCache,
    LogMel,
    Network,
    masked_attention,
    window_mask,
)
from .text import WordPieces

END_TOKENS = 11  # tokens after the delay in which the last words come out


@torch.no_grad()
def transcribe(
    network: Network, mel: LogMel, clips: list[Tensor], delays: list[int], *, batch_size: int = 128
) -> dict[int, list[list[int]]]:
    """Return the token stream of every clip for each delay; the encoder runs once for all delays.

    Args:
        clips: float32 samples in [-1, 1], 16 kHz, any device.
        delays: tokens of 80 ms.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    streams: dict[int, list[list[int]]] = {delay: [[] for _ in clips] for delay in delays}
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        n_tokens = [LEFT_PAD + -(-len(clips[i]) // TOKEN_SAMPLES) + END_TOKENS for i in chosen]  # without the delay
        audio = torch.zeros(len(chosen), (max(n_tokens) + max(delays)) * TOKEN_SAMPLES, device=device)
        for row, i in enumerate(chosen):
            audio[row, LEFT_PAD * TOKEN_SAMPLES :][: len(clips[i])] = clips[i].to(device)
        n_frames = audio.shape[1] // TOKEN_SAMPLES * 4
        mask = window_mask(n_frames, n_frames, network.c.enc_window, device)
        audio_embeds, _, _ = network.encoder(mel(audio), masked_attention(mask))
        for delay in delays:
            tokens = _decode(network, audio_embeds[:, : max(n_tokens) + delay], delay)
            for row, i in enumerate(chosen):
                streams[delay][i] = tokens[row][: n_tokens[row] - LEFT_PAD]
    network.train(was_training)
    return streams


def _decode(network: Network, audio_embeds: Tensor, delay: int) -> list[list[int]]:
    """Return the tokens after the prompt for audio embeddings (B, L, dec_dim)."""
    c, device = network.c, audio_embeds.device
    B, L, _ = audio_embeds.shape
    t_cond = network.delay_vector(torch.full((B,), float(delay), device=device))
    caches = [KeyValueCache(B, c.dec_kv, L, c.head_dim, device) for _ in range(c.dec_layers)]
    n_prompt = 1 + LEFT_PAD + delay
    prompt = torch.full((B, n_prompt), PAD, device=device)
    prompt[:, 0] = BOS
    embed = network.decoder.tok_embeddings
    mask = window_mask(n_prompt, n_prompt, c.dec_window, device)
    x = audio_embeds[:, :n_prompt] + embed(prompt)
    h = network.decoder(x, masked_attention(mask), t_cond, caches)
    token = network.decoder.logits(h[:, -1]).argmax(-1)
    tokens = [token]
    for position in range(n_prompt, L):
        mask = window_mask(1, position + 1, c.dec_window, device)
        x = audio_embeds[:, position : position + 1] + embed(token)[:, None]
        h = network.decoder(x, masked_attention(mask), t_cond, caches)
        token = network.decoder.logits(h[:, -1]).argmax(-1)
        tokens.append(token)
    return torch.stack(tokens, 1).cpu().tolist()


def normalise(text: str) -> list[str]:
    """Return the words that WER compares: lower case, letters, digits and inner apostrophes, hyphens as blanks."""
    text = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("’", "'").replace("-", " "))
    return text.replace(" '", " ").replace("' ", " ").split()


def count_edits(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference):
        new = [i + 1]
        for j, other in enumerate(hypothesis):
            new.append(min(row[j] + (word != other), row[j + 1] + 1, new[j] + 1))
        row = new
    return row[-1]


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Return the WER in percent over all clips together."""
    n_edits = n_words = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words = normalise(reference)
        n_edits += count_edits(words, normalise(hypothesis))
        n_words += len(words)
    return 100 * n_edits / max(1, n_words)


def read_audio(directory: Path, name: str) -> tuple[list[Tensor], list[str]]:
    """Return the clips of a list as float32 tensors, and their texts."""
    clips = read_clips(directory, name)
    audio = [torch.from_numpy(clip.samples.astype(np.float32) / 32768) for clip in clips]
    return audio, [clip.text for clip in clips]


def main() -> None:
    parser = argparse.ArgumentParser(description="WER of a checkpoint")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("directory", type=Path, help="folder of index.tsv and the Opus files")
    parser.add_argument("--lists", default="dev-librispeech,dev-ljspeech,dev-kokoro-unseen")
    parser.add_argument("--delays", default="6", help="in tokens of 80 ms")
    parser.add_argument("--wav", type=Path, help="transcribe this file instead (16 kHz, mono)")
    parser.add_argument("--bits", type=int, default=0, help="round weights as 8-bit storage would")
    parser.add_argument("--save", type=Path, help="write references and hypotheses as JSON")
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = read_checkpoint(options.checkpoint, bits=options.bits).to(device)
    pieces = WordPieces.from_tekken(options.checkpoint / "tekken.json")
    mel = LogMel(device)
    delays = [int(delay) for delay in options.delays.split(",")]
    if options.wav:
        samples, _ = soundfile.read(options.wav, dtype="float32")
        for delay, streams in transcribe(network, mel, [torch.from_numpy(samples)], delays).items():
            print(f"{80 * delay} ms: {pieces.decode(streams[0])}")
        return
    results = {}
    batch_size = 16 if device.type == "cpu" else 128
    for name in options.lists.split(","):
        audio, texts = read_audio(options.directory, name)
        for delay, streams in transcribe(network, mel, audio, delays, batch_size=batch_size).items():
            heard = [pieces.decode(tokens) for tokens in streams]
            pairs = list(zip(texts, heard, strict=True))
            results[f"{name}@{80 * delay}"] = pairs
            print(f"{name} {80 * delay} ms: WER {word_error_rate(texts, heard):.2f} %", flush=True)
            for text, words in pairs[: options.show]:
                print(f"    said  {text}\n    heard {words}")
    if options.save:
        options.save.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
