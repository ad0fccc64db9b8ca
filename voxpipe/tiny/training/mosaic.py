"""Mosaics: utterances retold with pieces of recorded speech.

There is little recorded speech, and every sentence of it is soon known by heart; synthetic speech never ends, but all of it has
one synthesiser's sound. A mosaic takes what is said, and when, from one utterance, synthetic or recorded, and each sound of it
from recordings of others: for every 20 ms a piece that the lower layers of a large recogniser hear as the same, where going on
in a recording costs nothing and changing to another one, or to another speaker, has its price (unit selection). The recordings,
a cast of one or of several speakers, are drawn anew for every batch.
"""

import random
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .collect import Clip, read_list
from .teacher import HOP, Teacher, teach

LAYERS = 3  # of the recogniser; further up, features tell the place in a sentence rather than the sound
JUMP_COST = 0.15  # in cosines
SPEAKER_COST = 0.5  # besides, where the speaker changes
CAST_FRAMES = 45_000  # 15 minutes
ALONE_FRAMES = 15_000  # 5 minutes: whoever has spoken that long can retell alone
ALONE_SHARE = 0.15  # of the casts
READERS_SHARE = 0.5  # of the casts have readers alone
BLOCK = 64  # frames of one speaker that are searched together
FADE = 80  # samples on either side of a join
LEVEL = 0.07 * 32768  # RMS of a recording
QUIET = 30.0  # RMS below which levels are not told apart
MOST_GAIN = 2.5
LATTICE_BYTES = 3_000_000_000


@dataclass
class Cast:
    """The recordings to take pieces from, one behind the other, in whole blocks of one speaker each.

    Attributes:
        frames: (N,) of the archive; N is a multiple of `BLOCK`.
        barred: (N,) 0, or minus infinity where a block is filled up, so that nobody goes there.
        on: (N,) 0, or minus infinity at the first frame of a recording, which goes on from nothing.
        speakers: (N / BLOCK,) numbers from 0.
    """

    frames: Tensor
    barred: Tensor
    on: Tensor
    speakers: Tensor


def speaker_of(name: str, clip: Clip) -> str:
    """Return the name of a speaker of list `name` in an archive."""
    return f"{name}/{clip.speaker}"


class Mosaic:
    """An archive of recorded speech on the teacher's device, and what the teacher's first `LAYERS` make of every 20 ms.

    Args:
        directory: folder of `lists`, those recordings to take pieces from.
        readers: those of `lists` with native speakers who read whole sentences; all by default.
    """

    def __init__(self, teacher: Teacher, directory: Path, lists: list[str], readers: Collection[str] = ()) -> None:
        self.teacher, self.device = teacher, teacher.device
        self.readers = tuple(f"{name}/" for name in readers or lists)
        self.recordings: dict[str, list[range]] = defaultdict(list)  # frames, by speaker
        audio: list[np.ndarray] = []
        n_frames = 0
        for name in lists:
            for clip in read_list(directory, name):
                level = max(QUIET, float(np.sqrt(np.mean(np.square(clip.samples, dtype=np.float32)))))
                span = range(n_frames, n_frames := n_frames + -(-len(clip.samples) // HOP))
                samples = np.clip(clip.samples * (LEVEL / level), -32767, 32767).astype(np.int16)
                audio.append(np.pad(samples, (0, len(span) * HOP - len(samples))))
                self.recordings[speaker_of(name, clip)].append(span)
        self.samples = torch.from_numpy(np.concatenate(audio)).to(self.device)
        spans = sorted((span for spans in self.recordings.values() for span in spans), key=lambda span: span.start)
        heard = self._hear(self.samples, [span.start * HOP for span in spans], [len(span) * HOP for span in spans])
        self.mean, self.deviation = heard.mean(0), heard.std(0)
        self.features = self._directions(heard)

    def _hear(self, samples: Tensor, starts: list[int], lengths: list[int]) -> Tensor:
        return teach(self.teacher, samples, starts, lengths).float()

    def _directions(self, heard: Tensor) -> Tensor:
        """Return features of length 1, so that their products are cosines."""
        return F.normalize((heard - self.mean) / self.deviation, dim=-1).to(self.teacher.type)

    def draw_cast(self, choose: random.Random, without: Collection[str] = ()) -> Cast:
        """Draw recordings of one speaker, or of as many as it takes, up to `CAST_FRAMES`; nobody named in `without`."""
        chosen: list[tuple[range, int]] = []
        names, left = [name for name in self.recordings if name not in without], CAST_FRAMES
        if choose.random() < READERS_SHARE:
            names = [name for name in names if name.startswith(self.readers)]
        choose.shuffle(names)
        alone = [name for name in names if sum(map(len, self.recordings[name])) >= ALONE_FRAMES]
        if alone and choose.random() < ALONE_SHARE:
            names = alone[:1]
        for speaker, name in enumerate(names):
            for span in choose.sample(self.recordings[name], len(self.recordings[name])):
                if left > 0:
                    chosen.append((span, speaker))
                    left -= len(span)
        frames, barred, on, speakers = [], [], [], []
        for speaker in range(chosen[-1][1] + 1):
            spans = [span for span, whose in chosen if whose == speaker]
            filling = -sum(map(len, spans)) % BLOCK
            frames += [np.arange(span.start, span.stop) for span in spans] + [np.zeros(filling, np.int64)]
            on += [np.where(np.arange(len(span)) == 0, -np.inf, 0.0) for span in spans] + [np.full(filling, -np.inf)]
            barred += [np.zeros(sum(map(len, spans))), np.full(filling, -np.inf)]
            speakers += [speaker] * ((sum(map(len, spans)) + filling) // BLOCK)
        return Cast(
            torch.from_numpy(np.concatenate(frames)).to(self.device),
            torch.from_numpy(np.concatenate(barred)).float().to(self.device),
            torch.from_numpy(np.concatenate(on)).float().to(self.device),
            torch.tensor(speakers, device=self.device),
        )

    @torch.inference_mode()
    def retell(self, audio: np.ndarray, cast: Cast) -> tuple[np.ndarray, np.ndarray]:
        """Let a cast say what is said in (B, S) int16; return that, and how like its pieces are, (B,) mean cosines."""
        B, S = audio.shape
        n_frames = -(-S // HOP)
        model = F.pad(torch.from_numpy(audio).to(self.device), (0, n_frames * HOP - S))
        starts = list(range(0, B * n_frames * HOP, n_frames * HOP))
        goal = self._directions(self._hear(model.flatten(), starts, [n_frames * HOP] * B)).view(B, n_frames, -1)
        size = max(1, LATTICE_BYTES // (4 * n_frames * len(cast.frames)))
        found = [self.search(goal[first : first + size], cast) for first in range(0, B, size)]
        path = torch.cat([path for path, _ in found])
        said = self.join(cast.frames[path], model.view(B, n_frames, HOP).float())
        return said[:, :S].cpu().numpy(), torch.cat([likeness for _, likeness in found]).cpu().numpy()

    def search(self, goal: Tensor, cast: Cast) -> tuple[Tensor, Tensor]:
        """Return the best way (B, T) through a cast for features (B, T, dim), and its mean cosine (B,); Viterbi's search."""
        B, T, _ = goal.shape
        pieces = self.features[cast.frames].mT.contiguous()
        N, n_speakers = pieces.shape[1], int(cast.speakers[-1]) + 1
        blocks = cast.speakers.expand(B, -1)
        nowhere = torch.full((B, n_speakers), -torch.inf, device=self.device)

        def likeness(t: int) -> Tensor:
            return (goal[:, t] @ pieces).float()

        scores = torch.empty(T, B, N, device=self.device)
        scores[0] = likeness(0) + cast.barred
        for t in range(1, T):
            before = scores[t - 1]
            best = nowhere.scatter_reduce(1, blocks, before.view(B, -1, BLOCK).amax(-1), "amax")  # of each speaker
            enter = torch.maximum(best, best.amax(1, keepdim=True) - SPEAKER_COST).sub_(JUMP_COST).gather(1, blocks)
            score = before.roll(1, 1).add_(cast.on).view(B, -1, BLOCK)
            torch.maximum(score, enter[..., None], out=score)
            torch.add(score.view(B, N), likeness(t), out=scores[t]).add_(cast.barred)
        path = torch.empty(B, T, dtype=torch.long, device=self.device)
        path[:, -1] = scores[-1].argmax(1)
        own = torch.arange(n_speakers, device=self.device)[:, None] == cast.speakers.repeat_interleave(BLOCK)
        elsewhere = torch.zeros(own.shape, device=self.device).masked_fill_(~own, -torch.inf)
        for t in range(T - 1, 0, -1):  # the ways are found again, which takes less memory than to keep them
            before, here = scores[t - 1], path[:, t : t + 1]
            on = before.gather(1, (here - 1).clamp_min(0)) + cast.on[here]
            jump, same = (before + elsewhere[cast.speakers[here[:, 0] // BLOCK]]).max(1, keepdim=True)
            change, other = before.max(1, keepdim=True)
            jump, change = jump - JUMP_COST, change - JUMP_COST - SPEAKER_COST
            chosen = torch.where((on >= jump) & (on >= change), here - 1, torch.where(jump >= change, same, other))
            path[:, t - 1] = chosen[:, 0]
        found = torch.einsum("btd,dbt->bt", goal.float(), pieces[:, path].float()).mean(1)
        return path, found

    def join(self, frames: Tensor, model: Tensor) -> Tensor:
        """Return (B, T * HOP) int16: the archive's frames (B, T) cross-faded where they jump, as loud as `model` (B, T, HOP)."""
        T = frames.shape[1]
        step = torch.arange(HOP, device=self.device)
        end = len(self.samples) - 1

        def read(first: Tensor) -> Tensor:
            return self.samples[(first[..., None] * HOP + step).clamp(0, end)].float()

        said = read(frames)
        rise = torch.sin((torch.arange(2 * FADE, device=self.device) + 0.5) * (torch.pi / 4 / FADE)).square()
        jumps = (frames[:, 1:] != frames[:, :-1] + 1)[..., None]
        tail, head = read(frames[:, :-1] + 1)[..., :FADE], read(frames[:, 1:] - 1)[..., -FADE:]
        said[:, 1:, :FADE] = torch.where(jumps, torch.lerp(tail, said[:, 1:, :FADE], rise[FADE:]), said[:, 1:, :FADE])
        said[:, :-1, -FADE:] = torch.where(
            jumps, torch.lerp(said[:, :-1, -FADE:], head, rise[:FADE]), said[:, :-1, -FADE:]
        )
        gain = (level(model) - level(said)).exp().clamp(1 / MOST_GAIN, MOST_GAIN)
        gain = F.interpolate(gain[:, None], size=T * HOP, mode="linear")[:, 0]
        return (said.flatten(1) * gain).clamp(-32767, 32767).to(torch.int16)


def level(samples: Tensor) -> Tensor:
    """Return the logarithm of the level (B, T) of (B, T, HOP), smoothed over 60 ms."""
    log_rms = (samples.square().mean(-1).sqrt() + QUIET).log()
    weights = torch.tensor([[[0.25, 0.5, 0.25]]], device=samples.device)
    return F.conv1d(F.pad(log_rms[:, None], (1, 1), mode="replicate"), weights)[:, 0]
