"""The training run: load all speech into a bank on the accelerator, train until the clock says stop, keep the average.

Runs on one device or, under torchrun, on several of one host: every process has its own bank and batches, gradients are
averaged. The learning rate falls linearly to zero at `--until`, so the end of the run must be known at its start. A moving
average of the weights is what gets evaluated and saved: it is usable at any moment of the run.

    torchrun --nproc-per-node N -m training.train --synthetic DIR --recorded DIR --lists ... --begin T0 --until T1 ...

The loss: cross entropy of the owed tokens (padding weighs 0.6) + 1e-4 z-loss + 0.3 phonemes of a middle layer
(synthetic speech only) + 0.3 CTC over word pieces.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from .augment import coloured_noise, corrupt_inputs, degrade, fetch_audio, music, warp_and_mask
from .bank import Bank, load_recorded, load_synthetic
from .evaluate import read_audio, transcribe, word_error_rate
from .export import load_tensors, read_state, save_state
from .network import (
    LEFT_PAD,
    PAD,
    TOKEN_SAMPLES,
    Attend,
    LogMel,
    Network,
    NetworkConfig,
    masked_attention,
    window_mask,
)
from .optimizer import Muon
from .targets import SequencePlanner
from .text import WordPieces, read_sentences

WATCHED = ["dev-librispeech", "dev-ljspeech", "dev-kokoro-unseen", "dev-commands"]
EMA_DECAY = 0.998


class Trainer:
    """One process of the run: its device, bank, network, optimisers and log."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rank, self.n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.n_ranks > 1:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=20))
        torch.manual_seed(options.seed + self.rank)
        self.began = time.time()
        self.pieces = WordPieces.load(options.pieces)
        config = NetworkConfig()
        if options.toy:
            config = NetworkConfig(
                dim=64,
                enc_layers=2,
                enc_heads=1,
                enc_ffn=128,
                dec_dim=64,
                dec_layers=2,
                dec_heads=2,
                dec_kv=1,
                dec_ffn=128,
                phoneme_layer=1,
            )
        self.network = Network(config).to(self.device)
        if options.initial and options.initial.suffix == ".pt":
            self.network.load_state_dict(read_state(options.initial)[0].state_dict())
        elif options.initial:
            load_tensors(self.network, load_file(options.initial))
        if self.n_ranks > 1:
            for weight in self.network.parameters():
                dist.broadcast(weight.data, 0)
        self.average = Network(config).to(self.device).eval()
        self.average.load_state_dict(self.network.state_dict())
        self.mel = LogMel(self.device)
        self.encoder_attention = self._attention(4 * options.n_tokens, config.enc_window)
        self.decoder_attention = self._attention(options.n_tokens, config.dec_window)
        if cuda:
            for layer in [*self.network.encoder.transformer_layers, *self.network.decoder.layers]:
                layer.compile(dynamic=False)
        named = [(name, weight) for name, weight in self.network.named_parameters()]
        matrices = [
            weight
            for name, weight in named
            if weight.dim() == 2 and not name.startswith("aux.") and "tok_emb" not in name and "ada" not in name
        ]
        chosen = {id(weight) for weight in matrices}
        self.others = [weight for _, weight in named if id(weight) not in chosen]
        self.muon = Muon(matrices, compile_update=cuda)
        self.adam = torch.optim.AdamW(self.others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=cuda)
        self.weights = [weight for _, weight in named]
        self.bank = Bank(int(options.bank_hours * 3600 * 16000), self.device)
        self.dev_lists: dict[str, tuple[list[Tensor], list[str]]] = {}
        self.curve: list[dict[str, Any]] = []

    def log(self, text: str) -> None:
        if self.rank == 0:
            line = f"[{time.time() - self.began:7.1f}] {text}"
            print(line, flush=True)
            with open(self.options.out / "train.log", "a") as file:
                file.write(line + "\n")

    def _attention(self, length: int, window: int) -> Attend:
        """Return windowed causal attention for sequences of one length."""
        if self.device.type != "cuda":
            return masked_attention(window_mask(length, length, window, self.device))
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key > query - window)

        mask = create_block_mask(visible, None, None, length, length, device=self.device)
        return lambda q, k, v: flex_attention(q, k, v, block_mask=mask)

    # ---- steps

    def batches(self) -> Iterator[dict[str, Tensor]]:
        options = self.options
        planner = SequencePlanner(
            self.bank.utterances,
            options.mix,
            set(options.lists),
            batch_size=options.batch_size,
            n_tokens=options.n_tokens,
            seed=options.seed + self.rank,
        )
        loader = DataLoader(
            planner,
            batch_size=None,
            num_workers=options.workers,
            prefetch_factor=4 if options.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        for plan in loader:
            n_ctc = plan["n_ctc"]
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in plan.items()}
            batch["n_ctc"] = n_ctc  # ctc_loss wants lengths on the CPU
            self.prepare(batch)
            yield batch

    @torch.no_grad()
    def prepare(self, batch: dict[str, Tensor]) -> None:
        """Add features, labels and spoiled inputs to a batch of plans."""
        samples, labels, warp, speech = fetch_audio(batch, self.bank, self.options.n_tokens)
        audio = degrade(samples, speech, batch)
        features = self.mel(F.pad(audio, (LEFT_PAD * TOKEN_SAMPLES, 0)))
        batch["features"] = warp_and_mask(features, warp, 8 * LEFT_PAD)
        batch["labels"] = labels
        batch["spoiled"] = corrupt_inputs(batch["inputs"], batch["delay"], self.network.c.vocab)
        batch["keep"] = (torch.rand(len(samples), device=self.device) > 0.04).float()  # rows that see previous tokens

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return cross entropy, phoneme loss, CTC loss and the accuracy of text tokens."""
        network, targets = self.network, batch["targets"]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            audio_embeds, last, middle = network.encoder(batch["features"], self.encoder_attention)
            text = network.decoder.tok_embeddings(batch["spoiled"]).to(audio_embeds.dtype)
            text = text * batch["keep"][:, None, None].to(text.dtype)
            t_cond = network.delay_vector(batch["delay"])
            h = network.decoder(audio_embeds + text, self.decoder_attention, t_cond)
            logits = network.decoder.logits(h).float()
            heard = network.aux.phonemes(network.aux.norm(middle[:, 4 * LEFT_PAD :])).float()
            pairs = last[:, 4 * LEFT_PAD :].reshape(len(last), -1, 2 * network.c.dim)  # 25 Hz
            spelled = network.aux.ctc(pairs).float().log_softmax(-1)
        weight = torch.where(targets == PAD, 0.6, 1.0) * (targets >= 0)
        norm = torch.logsumexp(logits, -1)
        wrong = norm - logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        cross_entropy = ((wrong + 1e-4 * norm.square()) * weight).sum() / weight.sum()
        phonemes = F.cross_entropy(heard.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        frames = torch.full((len(spelled),), spelled.shape[1], dtype=torch.long)
        ctc = F.ctc_loss(
            spelled.transpose(0, 1),
            batch["ctc"],
            frames,
            batch["n_ctc"],
            blank=network.c.vocab,
            reduction="sum",
            zero_infinity=True,
        ) / batch["n_ctc"].sum().clamp_min(1)
        is_text = targets >= 64
        accuracy = ((logits.argmax(-1) == targets) & is_text).sum() / is_text.sum().clamp_min(1)
        return cross_entropy, phonemes, ctc, accuracy

    def step(self, batch: dict[str, Tensor], learning_rate: float) -> Tensor:
        """Take one optimiser step; return the losses, the accuracy and the gradient norm."""
        cross_entropy, phonemes, ctc, accuracy = self.losses(batch)
        (cross_entropy + 0.3 * torch.nan_to_num(phonemes) + 0.3 * ctc).backward()
        if self.n_ranks > 1:
            flat = torch.cat([weight.grad.flatten() for weight in self.weights])
            dist.all_reduce(flat)
            flat /= self.n_ranks
            parts = flat.split([weight.numel() for weight in self.weights])
            torch._foreach_copy_(
                [weight.grad for weight in self.weights],
                [part.view_as(weight) for part, weight in zip(parts, self.weights, strict=True)],
            )
        norm = torch.nn.utils.clip_grad_norm_(self.others, 1.0, foreach=True)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * 0.5
        self.muon.step(learning_rate)
        self.adam.step()
        for weight in self.weights:
            weight.grad = None
        return torch.stack([cross_entropy.detach(), phonemes.detach(), ctc.detach(), accuracy, norm.detach()])

    def compile(self) -> None:
        """Run a step on noise at rate zero, so that compilation overlaps with synthesis."""
        B, L = self.options.batch_size, self.options.n_tokens
        batch = {
            "features": torch.randn(B, 128, 8 * L, device=self.device),
            "spoiled": torch.full((B, L), PAD, device=self.device),
            "targets": torch.full((B, L), PAD, device=self.device),
            "delay": torch.full((B,), 6.0, device=self.device),
            "keep": torch.ones(B, device=self.device),
            "labels": torch.zeros(B, 4 * (L - LEFT_PAD), dtype=torch.long, device=self.device),
            "ctc": torch.zeros(B, 200, dtype=torch.long, device=self.device),
            "n_ctc": torch.full((B,), 100),
        }
        for _ in range(2):
            self.step(batch, 0.0)
        self.adam.state.clear()
        self.muon.reset()

    def agree_on_progress(self) -> float:
        """Return the share of the run that is over, the same for all processes (rank 0's clock)."""
        span = self.options.until - self.options.begin
        progress = torch.tensor([(time.time() - self.options.begin) / span], device=self.device)
        if self.n_ranks > 1:
            dist.broadcast(progress, 0)
        return float(progress)

    def run(self) -> None:
        """Train until the clock says stop."""
        options, totals, n_totals, step = self.options, torch.zeros(5, device=self.device), 0, 0
        progress, since, last_evaluation = 0.0, time.time(), time.time()
        averaged = list(self.average.parameters())
        self.network.train()
        for batch in self.batches():
            if step % 10 == 0:  # a broadcast that waits for the device: not at every step
                progress = self.agree_on_progress()
                if progress >= 1 or (options.steps and step >= options.steps):
                    break
            learning_rate = options.learning_rate * min(1.0, (step + 1) / options.warm_up) * (1 - progress)
            totals += self.step(batch, learning_rate)
            n_totals += 1
            step += 1
            decay = min(EMA_DECAY, step / (step + 20))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, self.weights, 1 - decay)
            if step % options.log_steps == 0:
                ce, phonemes, ctc, accuracy, norm = (totals / n_totals).tolist()
                speed = (time.time() - since) / n_totals * 1000
                self.log(
                    f"step {step} ce {ce:.3f} phonemes {phonemes:.3f} ctc {ctc:.3f} accuracy {accuracy:.3f} "
                    f"norm {norm:.2f} rate {learning_rate:.2e} {speed:.1f} ms/step"
                )
                totals.zero_()
                n_totals, since = 0, time.time()
            if self.rank == 0 and time.time() - last_evaluation > options.evaluate_s:
                self.evaluate(step, WATCHED, [6])
                self.save(f"step{step}.pt")
                last_evaluation = since = time.time()
        self.log(f"done after {step} steps")
        if self.rank == 0:
            self.save("final.pt")
            optimisers = {"momentum": self.muon.state(), "adam": self.adam.state_dict()}
            torch.save(optimisers, options.out / "optimisers.pt")
            self.finish(step)

    # ---- results

    def evaluate(self, step: int, names: list[str], delays: list[int], *, keep: bool = False) -> None:
        """Add WER of the averaged weights to the curve; with `keep`, write what was heard."""
        entry: dict[str, Any] = {"step": step, "s": round(time.time() - self.began, 1)}
        for name in names:
            if not (self.options.recorded / f"{name}.opus").exists():
                continue
            audio, texts = self._dev_list(name)
            for delay, streams in transcribe(self.average, self.mel, audio, delays).items():
                heard = [self.pieces.decode(tokens) for tokens in streams]
                entry[f"{name}@{80 * delay}"] = round(word_error_rate(texts, heard), 2)
                if keep:
                    with open(self.options.out / "heard.jsonl", "a") as file:
                        file.write(json.dumps({"list": name, "ms": 80 * delay, "said": texts, "heard": heard}) + "\n")
        self.curve.append(entry)
        (self.options.out / "curve.json").write_text(json.dumps(self.curve, indent=0))
        self.log(f"WER {json.dumps(entry)}")

    def _dev_list(self, name: str) -> tuple[list[Tensor], list[str]]:
        if name not in self.dev_lists:
            self.dev_lists[name] = read_audio(self.options.recorded, name)
        return self.dev_lists[name]

    def save(self, name: str) -> None:
        save_state(self.options.out / name, self.average, {"curve": json.dumps(self.curve)})

    def finish(self, step: int) -> None:
        """Write the WER of every list, of the delays, and what 60 s without speech give."""
        lists = sorted(path.stem for path in self.options.recorded.glob("dev-*.opus"))
        self.evaluate(step, lists, [6], keep=True)
        self.evaluate(step, WATCHED[:3], [1, 3, 12, 30], keep=True)
        n_samples = 60 * 16000
        noise = coloured_noise(4, n_samples, self.device) * torch.tensor(
            [[0.003], [0.01], [0.03], [0.1]], device=self.device
        )
        tune = music(4, n_samples, self.device) * 0.05
        for label, clips in (("silence", torch.zeros(1, n_samples)), ("noise", noise), ("music", tune)):
            streams = transcribe(self.average, self.mel, list(clips), [6])[6]
            self.log(f"60 s of {label}: {[self.pieces.decode(tokens) for tokens in streams]}")
        (self.options.out / "all_done").write_text("1")


def main() -> None:
    parser = argparse.ArgumentParser(description="train tiny")
    parser.add_argument("--synthetic", type=Path, required=True, help="folder the synthesiser writes to")
    parser.add_argument("--recorded", type=Path, required=True, help="folder of index.tsv, Opus files, words.json")
    parser.add_argument("--lists", nargs="*", default=[], help="lists in --recorded to train on")
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--symbols", type=Path, required=True, help="the synthesiser's vocab.json")
    parser.add_argument("--pieces", type=Path, required=True, help="BPE merges")
    parser.add_argument("--mix", type=Path, required=True, help="JSON {source: share of the time}")
    parser.add_argument("--initial", type=Path, help="model.safetensors or training state (.pt) to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin", type=float, required=True, help="Unix time at which training starts")
    parser.add_argument("--until", type=float, required=True, help="Unix time at which it ends")
    parser.add_argument("--learning-rate", type=float, default=2.4e-3)
    parser.add_argument("--warm-up", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=64, help="sequences a step and process")
    parser.add_argument("--n-tokens", type=int, default=384)
    parser.add_argument("--bank-hours", type=float, default=130)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--evaluate-s", type=float, default=140)
    parser.add_argument("--log-steps", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0, help="stop earlier, for a rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a very small network, for a rehearsal")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    load_recorded(trainer.bank, options.recorded, options.lists, trainer.pieces, trainer.log)
    if trainer.device.type == "cuda":
        trainer.compile()
        trainer.log("compiled")
    load_synthetic(
        trainer.bank,
        options.synthetic,
        read_sentences(options.sentences),
        trainer.pieces,
        symbols=options.symbols,
        until=options.begin,
        report=trainer.log,
    )
    trainer.run()
    if trainer.n_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
