"""Mosaics: synthetic utterances retold with pieces of recorded speech.

There is little recorded speech, and every sentence of it is soon known by heart; synthetic speech never ends, but all of it has
one synthesiser's sound. A mosaic takes what is said, and when, from a synthetic utterance, and each sound of it from
recordings: for every 20 ms a piece that the lower layers of a large recogniser hear as the same, where going on in a recording
costs nothing and changing to another one, or to another speaker, has its price (unit selection). The recordings, a cast of one
or of several speakers, are drawn anew for every batch.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .collect import read_list
from .teacher import HOP, Teacher, teach

LAYERS = 3  # of the recogniser; further up, features tell the place in a sentence rather than the sound
JUMP_COST = 0.15  # in cosines
SPEAKER_COST = 0.5  # besides, where the speaker changes
CAST_FRAMES = 30_000  # 10 minutes
FADE = 80  # samples on either side of a join
LEVEL = 0.07 * 32768  # RMS of a recording
QUIET = 30.0  # RMS below which levels are not told apart
MOST_GAIN = 2.5
LATTICE_BYTES = 2_000_000_000


@dataclass
class Cast:
    """The recordings to take pieces from, one behind the other.

    Attributes:
        frames: (N,) of the archive.
        fresh: (N,) bool, the first of a recording.
        speakers: (N,) numbers from 0.
    """

    frames: Tensor
    fresh: Tensor
    speakers: Tensor


class Mosaic:
    """An archive of recorded speech on the teacher's device, and what the teacher's first `LAYERS` make of every 20 ms."""

    def __init__(self, teacher: Teacher, directory: Path, lists: list[str]) -> None:
        self.teacher, self.device = teacher, teacher.device
        self.recordings: dict[str, list[range]] = defaultdict(list)  # frames, by speaker
        audio: list[np.ndarray] = []
        n_frames = 0
        for name in lists:
            for clip in read_list(directory, name):
                level = max(QUIET, float(np.sqrt(np.mean(np.square(clip.samples, dtype=np.float32)))))
                span = range(n_frames, n_frames := n_frames + -(-len(clip.samples) // HOP))
                samples = np.clip(clip.samples * (LEVEL / level), -32767, 32767).astype(np.int16)
                audio.append(np.pad(samples, (0, len(span) * HOP - len(samples))))
                self.recordings[f"{name}/{clip.speaker}"].append(span)
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

    def draw_cast(self, choose: random.Random) -> Cast:
        """Draw recordings of one speaker, or of as many as it takes, up to `CAST_FRAMES`."""
        chosen: list[tuple[range, int]] = []
        names, left = list(self.recordings), CAST_FRAMES
        choose.shuffle(names)
        for speaker, name in enumerate(names):
            for span in choose.sample(self.recordings[name], len(self.recordings[name])):
                if left > 0:
                    chosen.append((span, speaker))
                    left -= len(span)
        frames = np.concatenate([np.arange(span.start, span.stop) for span, _ in chosen])
        fresh = np.concatenate([np.arange(len(span)) == 0 for span, _ in chosen])
        speakers = np.concatenate([np.full(len(span), speaker) for span, speaker in chosen])
        return Cast(*(torch.from_numpy(array).to(self.device) for array in (frames, fresh, speakers)))

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
        speakers = cast.speakers.expand(B, -1)
        nowhere = torch.full((B, int(cast.speakers.max()) + 1), -torch.inf, device=self.device)

        def ways(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the score behind each frame (B, N) of going on, of a jump, and of a change of speaker."""
            on = score.roll(1, 1).masked_fill(cast.fresh, -torch.inf)
            best = nowhere.scatter_reduce(1, speakers, score, "amax")
            return on, best.gather(1, speakers) - JUMP_COST, best.amax(1, keepdim=True) - JUMP_COST - SPEAKER_COST

        scores = torch.empty(T, B, pieces.shape[1], device=self.device)
        scores[0] = goal[:, 0] @ pieces
        for t in range(1, T):
            on, jump, change = ways(scores[t - 1])
            torch.add(torch.maximum(torch.maximum(on, jump), change), (goal[:, t] @ pieces).float(), out=scores[t])
        path = torch.empty(B, T, dtype=torch.long, device=self.device)
        path[:, -1] = scores[-1].argmax(1)
        for t in range(T - 1, 0, -1):  # the ways are found again, which takes less memory than to keep them
            here = path[:, t : t + 1]
            on, jump, change = (way.expand(B, -1) for way in ways(scores[t - 1]))
            on, jump = on.gather(1, here), jump.gather(1, here)
            own = speakers == cast.speakers[here]
            same = torch.where(own, scores[t - 1], -torch.inf).argmax(1, keepdim=True)
            other = scores[t - 1].argmax(1, keepdim=True)
            before = torch.where(
                (on >= jump) & (on >= change[:, :1]), here - 1, torch.where(jump >= change[:, :1], same, other)
            )
            path[:, t - 1] = before[:, 0]
        likeness = torch.einsum("btd,dbt->bt", goal.float(), pieces[:, path].float()).mean(1)
        return path, likeness

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
