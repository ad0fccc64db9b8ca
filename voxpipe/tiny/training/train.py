"""The training run: speech in a bank on the accelerator, renewed while training goes on, until the clock says stop.

Runs on one device or, under torchrun, on several of one host: every process has its own bank and batches, gradients are
averaged. The learning rate falls linearly to zero at `--until`, so the end of the run must be known at its start. A moving
average of the weights is what gets saved: it is usable at any moment of the run, and `watch` evaluates it. `late.pt` is the
mean of that average over the last part of the run.

    torchrun --nproc-per-node N -m training.train --synthetic DIR --recorded DIR --lists ... --begin T0 --until T1 ...

The loss: cross entropy of the owed tokens (padding weighs 0.6) + 1e-4 z-loss + 0.3 phonemes of a middle layer
(synthetic speech only) + 0.3 CTC over word pieces + the squared distance from the teacher's features, if there is one
+ the disagreement of two augmentations of the same speech about words and spelling + 0.15 cross entropy of the pieces of texts
that are read without hearing anything.
"""

import argparse
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from .augment import black_out, corrupt_inputs, degrade, fetch_audio, views, warp_and_mask
from .bank import SAMPLE_RATE, Bank, load_recorded
from .export import read_checkpoint, read_state, save_state, widen
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
from .reading import Texts
from .ring import Ring
from .targets import SequencePlanner
from .teacher import HOP, Teacher
from .text import WordPieces, read_rows

EMA_DECAY = 0.998
LATE = 0.6  # share of the run after which the mean of the last part begins
TEACHER_DECAY = 0.7  # share of the teacher's weight that is gone at the end of the run
EASE_FROM, EASE_OVER = 0.66, 0.1  # share of the run after which the augmentation gets lighter, and how long that takes
READING_WEIGHT = 0.15
MOST_DEVIATION = 4.0  # the teacher's features are cut at so many standard deviations


def divergence(log_p: Tensor) -> Tensor:
    """Return how far the first and the second half of the rows (2 B, L, K) are apart: the mean of both divergences, (B, L).

    Each half learns from the other as a fixed target.
    """
    one, other = log_p.chunk(2)
    forward = (one.detach().exp() * (one.detach() - other)).sum(-1)
    backward = (other.detach().exp() * (other.detach() - one)).sum(-1)
    return 0.5 * (forward + backward)


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
        teacher = Teacher.load(options.teacher, self.device) if options.teacher else None
        config.teacher_dim = teacher.dim if teacher else config.teacher_dim
        network = Network(config)
        if options.initial:
            is_state = options.initial.suffix == ".pt"
            network = read_state(options.initial)[0] if is_state else read_checkpoint(options.initial)
        if options.decoder_ffn > network.c.dec_ffn:
            network = widen(network, options.decoder_ffn)
        self.network, config = network.to(self.device), network.c
        if self.n_ranks > 1:
            for weight in self.network.parameters():
                dist.broadcast(weight.data, 0)
        self.average = Network(config).to(self.device).eval()
        self.average.load_state_dict(self.network.state_dict())
        self.late, self.n_late = Network(config).to(self.device).eval(), 0
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
        heads = [weight for name, weight in named if name.startswith("aux.")]
        body = [weight for name, weight in named if id(weight) not in chosen and not name.startswith("aux.")]
        self.others = [*heads, *body]
        self.muon = Muon(matrices, compile_update=cuda)
        self.adam = torch.optim.AdamW(
            [{"params": heads}, {"params": body}], lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=cuda
        )
        self.weights = [weight for _, weight in named]
        self.bank = Bank(int(options.bank_hours * 3600 * 16000), self.device, teacher)
        self.ring: Ring | None = None
        self.texts: Texts | None = None
        if options.texts:
            self.texts = Texts((row[1] for path in options.texts for row in read_rows(path)), self.pieces)
        self.teacher_weight = options.teacher_weight
        self.ease = 0.0
        self.feature_mean = torch.zeros(config.teacher_dim, device=self.device)
        self.feature_std = torch.ones(config.teacher_dim, device=self.device)

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

    def open_ring(self) -> None:
        """Read synthetic speech until the run begins, and learn the teacher's scale."""
        options = self.options
        index = options.out / f"index{self.rank}"
        self.ring = Ring(
            self.bank,
            options.synthetic,
            index,
            part=self.rank,
            n_parts=self.n_ranks,
            keep_files=options.toy or options.keep_speech,
        )
        self.ring.fill(options.begin, self.log)
        if self.bank.teacher:
            chosen = torch.randint(0, self.ring.next // HOP, (200_000,), device=self.device)
            features = self.bank.features[chosen].float()
            features = features[features.square().sum(1) > 0]
            self.feature_mean, self.feature_std = features.mean(0), features.std(0)

    def hours_spoken(self) -> float:
        return self.ring.n_samples / SAMPLE_RATE / 3600 if self.ring else 0.0

    # ---- steps

    def batches(self) -> Iterator[dict[str, Tensor]]:
        options = self.options
        planner = SequencePlanner(
            self.bank.utterances,
            options.out / f"index{self.rank}",
            options.mix,
            batch_size=options.batch_size,
            n_tokens=options.n_tokens,
            seed=options.seed + self.rank,
            texts=self.texts,
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
        """Add features, labels and spoiled inputs to a batch of plans; every plan becomes one row for each view."""
        reading = {name: batch.pop(name) for name in list(batch) if name.startswith("read_")}
        batch |= views(batch, self.options.views) | reading
        fetched = fetch_audio(batch, self.bank, self.options.n_tokens)
        audio = degrade(fetched.samples, fetched.speech, batch, self.ease)
        features = self.mel(F.pad(audio, (LEFT_PAD * TOKEN_SAMPLES, 0)))
        batch["features"] = warp_and_mask(features, fetched.warp, 8 * LEFT_PAD, self.ease)
        batch["labels"], batch["taught"], batch["lesson"] = fetched.phonemes, fetched.taught, fetched.features
        batch["spoiled"] = corrupt_inputs(batch["inputs"], batch["delay"], self.network.c.vocab)
        batch["heard"] = black_out(len(audio), self.options.n_tokens, self.device)
        batch["keep"] = (torch.rand(len(audio), device=self.device) > 0.04).float()  # rows that see previous tokens

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and its parts: cross entropy, phoneme loss, CTC loss, distance from the teacher,
        disagreement of the views, cross entropy of reading, accuracy of text tokens."""
        network, targets = self.network, batch["targets"]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            audio_embeds, last, middle = network.encoder(batch["features"], self.encoder_attention)
            text = network.decoder.tok_embeddings(batch["spoiled"]).to(audio_embeds.dtype)
            text = text * batch["keep"][:, None, None].to(text.dtype)
            text = text + audio_embeds * batch["heard"][..., None].to(text.dtype)
            read = network.decoder.tok_embeddings(batch["read_inputs"]).to(text.dtype)
            t_cond = network.delay_vector(torch.cat((batch["delay"], batch["read_delay"])))
            h = network.decoder(torch.cat((text, read)), self.decoder_attention, t_cond)
            logits, read_logits = network.decoder.logits(h).float().split((len(text), len(read)))
            heard = network.aux.phonemes(network.aux.norm(middle[:, 4 * LEFT_PAD :])).float()
            pairs = last[:, 4 * LEFT_PAD :].reshape(len(last), -1, 2 * network.c.dim)  # 25 Hz
            spelled = network.aux.ctc(pairs).float().log_softmax(-1)
            foretold = network.aux.teacher(last[:, 4 * LEFT_PAD :]).float()
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
        distance = self.distance(foretold, batch["lesson"], batch["taught"])
        owed = batch["read_targets"]
        owed = torch.where(owed >= 64, owed, -100)  # when a word is spoken cannot be read
        reading = torch.zeros((), device=self.device)
        if len(read):
            reading = F.cross_entropy(read_logits.flatten(0, 1), owed.flatten(), ignore_index=-100)
        disagreement = torch.zeros((), device=self.device)
        if self.options.views == 2:
            words = (divergence(logits - norm[..., None]) * weight.chunk(2)[0]).sum() / weight.chunk(2)[0].sum()
            spelling = divergence(spelled).sum() / batch["n_ctc"].sum().clamp_min(1) * 2
            disagreement = 0.3 * words + 0.06 * spelling
        is_text = targets >= 64
        accuracy = ((logits.argmax(-1) == targets) & is_text).sum() / is_text.sum().clamp_min(1)
        loss = cross_entropy + 0.3 * torch.nan_to_num(phonemes) + 0.3 * ctc + self.teacher_weight * distance
        parts = torch.stack([cross_entropy, phonemes, ctc, distance, disagreement, reading, accuracy]).detach()
        return loss + disagreement + READING_WEIGHT * reading, parts

    def distance(self, foretold: Tensor, lesson: Tensor, taught: Tensor) -> Tensor:
        """Return the mean squared distance from the teacher's features, each dimension at unit variance."""
        if not lesson.shape[-1]:
            return 0.0 * foretold.sum()
        wanted = ((lesson.float() - self.feature_mean) / self.feature_std).clamp(-MOST_DEVIATION, MOST_DEVIATION)
        return ((foretold - wanted).square().mean(-1) * taught).sum() / taught.sum().clamp_min(1)

    def step(self, batch: dict[str, Tensor], learning_rate: float, *, heads_alone: bool = False) -> Tensor:
        """Take one optimiser step, of the auxiliary heads alone if so; return the parts of the loss and the gradient norm."""
        loss, parts = self.losses(batch)
        loss.backward()
        if self.n_ranks > 1:
            flat = torch.cat([weight.grad.flatten() for weight in self.weights])
            dist.all_reduce(flat)
            flat /= self.n_ranks
            shares = flat.split([weight.numel() for weight in self.weights])
            torch._foreach_copy_(
                [weight.grad for weight in self.weights],
                [share.view_as(weight) for share, weight in zip(shares, self.weights, strict=True)],
            )
        norm = torch.nn.utils.clip_grad_norm_(self.others, 1.0, foreach=True)
        heads, body = self.adam.param_groups
        heads["lr"], body["lr"] = learning_rate * 0.5, 0.0 if heads_alone else learning_rate * 0.5
        if not heads_alone:
            self.muon.step(learning_rate)
        self.adam.step()
        for weight in self.weights:
            weight.grad = None
        return torch.cat([parts, norm.detach()[None]])

    def compile(self) -> None:
        """Run a step on noise at rate zero, so that compilation overlaps with synthesis."""
        B, L = self.options.batch_size * self.options.views, self.options.n_tokens
        n_read = self.options.batch_size if self.texts else 0
        batch = {
            "features": torch.randn(B, 128, 8 * L, device=self.device),
            "spoiled": torch.full((B, L), PAD, device=self.device),
            "targets": torch.full((B, L), PAD, device=self.device),
            "delay": torch.full((B,), 6.0, device=self.device),
            "keep": torch.ones(B, device=self.device),
            "heard": torch.ones(B, L, device=self.device),
            "read_inputs": torch.full((n_read, L), PAD, device=self.device),
            "read_targets": torch.full((n_read, L), 64, device=self.device),
            "read_delay": torch.full((n_read,), 6.0, device=self.device),
            "labels": torch.zeros(B, 4 * (L - LEFT_PAD), dtype=torch.long, device=self.device),
            "lesson": torch.zeros(B, 4 * (L - LEFT_PAD), self.bank.features.shape[1], device=self.device).half(),
            "taught": torch.ones(B, 4 * (L - LEFT_PAD), dtype=torch.bool, device=self.device),
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
        options, totals, n_totals, step = self.options, torch.zeros(8, device=self.device), 0, 0
        progress, since, last_save = 0.0, time.time(), time.time()
        averaged, late = list(self.average.parameters()), list(self.late.parameters())
        self.network.train()
        for batch in self.batches():
            if step == 0 and self.ring:  # only now: the planners' processes exist, and a thread may start
                self.ring.start()
            if step % 10 == 0:  # a broadcast that waits for the device: not at every step
                progress = self.agree_on_progress()
                if progress >= 1 or (options.steps and step >= options.steps):
                    break
            heads_alone = step < options.heads_alone
            ramp = 1.0 if heads_alone else min(1.0, (step + 1 - options.heads_alone) / options.warm_up)
            learning_rate = options.learning_rate * ramp * (1 - progress)
            self.teacher_weight = options.teacher_weight * (1 - TEACHER_DECAY * progress)
            self.ease = options.ease * min(1.0, max(0.0, (progress - EASE_FROM) / EASE_OVER))
            totals += self.step(batch, learning_rate, heads_alone=heads_alone)
            n_totals += 1
            step += 1
            decay = min(EMA_DECAY, step / (step + 20))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, self.weights, 1 - decay)
                if step % 20 == 0 and progress > LATE:
                    self.n_late += 1
                    torch._foreach_lerp_(late, averaged, 1 / self.n_late)
            if step % options.log_steps == 0:
                ce, phonemes, ctc, distance, disagreement, reading, accuracy, norm = (totals / n_totals).tolist()
                speed = (time.time() - since) / n_totals * 1000
                self.log(
                    f"step {step} ce {ce:.3f} phonemes {phonemes:.3f} ctc {ctc:.3f} teacher {distance:.3f} "
                    f"views {disagreement:.3f} reading {reading:.3f} accuracy {accuracy:.3f} norm {norm:.2f} "
                    f"rate {learning_rate:.2e} {speed:.1f} ms/step, {self.hours_spoken():.0f} h spoken"
                )
                totals.zero_()
                n_totals, since = 0, time.time()
            if self.rank == 0 and time.time() - last_save > options.save_s:
                self.save(f"step{step}.pt", self.average)
                last_save = time.time()
        self.log(f"done after {step} steps")
        if self.ring:
            self.ring.stop.set()
        if self.rank == 0:
            if self.n_late:
                self.save("late.pt", self.late)
            self.save("final.pt", self.average)

    def save(self, name: str, network: Network) -> None:
        save_state(self.options.out / name, network, {})


def main() -> None:
    parser = argparse.ArgumentParser(description="train tiny")
    parser.add_argument("--synthetic", type=Path, required=True, help="folder the synthesiser writes to")
    parser.add_argument("--recorded", type=Path, required=True, help="folder of index.tsv, Opus files, words.json")
    parser.add_argument("--lists", nargs="*", default=[], help="lists in --recorded to train on")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help=".tsv.xz of source and text, to read")
    parser.add_argument("--teacher", type=Path, help="Whisper's encoder (.safetensors), for its features")
    parser.add_argument("--teacher-weight", type=float, default=0.5)
    parser.add_argument("--pieces", type=Path, required=True, help="BPE merges")
    parser.add_argument("--mix", type=Path, required=True, help="JSON {source: share of the time}")
    parser.add_argument("--initial", type=Path, help="checkpoint folder or training state (.pt) to start from")
    parser.add_argument("--decoder-ffn", type=int, default=0, help="widen the decoder's feed-forward layers to this")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin", type=float, required=True, help="Unix time at which training starts")
    parser.add_argument("--until", type=float, required=True, help="Unix time at which it ends")
    parser.add_argument("--learning-rate", type=float, default=2.4e-3)
    parser.add_argument(
        "--heads-alone",
        type=int,
        default=0,
        help="steps in which the auxiliary heads learn alone: a checkpoint has none, and what fresh ones send back harms it",
    )
    parser.add_argument("--warm-up", type=int, default=150)
    parser.add_argument(
        "--ease", type=float, default=0.0, help="0 to 1: how much lighter the augmentation gets at the end"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step and process")
    parser.add_argument("--views", type=int, default=2, choices=(1, 2), help="augmentations of each sequence")
    parser.add_argument("--n-tokens", type=int, default=384)
    parser.add_argument("--bank-hours", type=float, default=100)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--save-s", type=float, default=120, help="seconds between saved states")
    parser.add_argument("--log-steps", type=int, default=100)
    parser.add_argument("--keep-speech", action="store_true", help="leave the shards for another run beside this one")
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
    trainer.open_ring()
    trainer.run()
    if trainer.n_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
