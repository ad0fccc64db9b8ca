"""The ring: synthetic speech that is replaced while training goes on, so that little of it is heard often.

The synthesiser writes shards (SHARD.npy, SHARD.pkl); a thread of the training process puts them into the bank behind the
recorded speech, the newest over the oldest, and deletes the files. What lies there is told to the planners, which are
processes of their own, through a folder: one pickle for each segment and a list of the segments in use. A segment is struck
from that list GRACE_S before its place is written again, longer than any plan is under way.
"""

import json
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .bank import FRAME_SAMPLES, SAMPLE_RATE, TWIN, Bank, Speech, Utterance, room_for

GRACE_S = 12.0


@dataclass
class Segment:
    """The utterances of one shard in the bank."""

    name: str
    begin: int
    end: int


def read_shard(rows_path: Path) -> list[Speech]:
    """Return the utterances of a shard, each with its source (`source_of`); a twin follows its utterance."""
    audio, at, speech, failed = np.load(rows_path.with_suffix(".npy")), 0, [], False
    for n_frames, labels, words, source in pickle.loads(rows_path.read_bytes()):
        samples = audio[at : at + n_frames * FRAME_SAMPLES]
        at += n_frames * FRAME_SAMPLES
        failed = np.abs(samples[::7]).max() < 300 or (failed and source == TWIN)  # the synthesiser failed
        if not failed:
            speech.append(Speech(samples, labels, words, source))
    return speech


class Ring:
    """Segments behind the recorded speech of a bank.

    Args:
        shards: folder the synthesiser writes to; with several training processes each takes its share of the shards.
        index: folder through which the planners learn what is there.
    """

    def __init__(
        self, bank: Bank, shards: Path, index: Path, *, part: int = 0, n_parts: int = 1, keep_files: bool = False
    ) -> None:
        self.bank, self.shards, self.index = bank, shards, index
        self.part, self.n_parts, self.keep_files = part, n_parts, keep_files
        self.segments: list[Segment] = []
        self.next = bank.filled
        self.retired: dict[str, float] = {}
        self.seen: set[Path] = set()
        self.n_samples, self.lock = 0, threading.Lock()
        self.stop = threading.Event()
        index.mkdir(parents=True, exist_ok=True)
        self.publish()

    def publish(self) -> None:
        temporary = self.index / "segments.tmp"
        temporary.write_text(json.dumps([segment.name for segment in self.segments]))
        temporary.rename(self.index / "segments.json")

    def make_room(self, n_samples: int) -> float:
        """Strike the oldest segments from the list until `n_samples` fit; return when they may be overwritten."""
        if self.next + n_samples > len(self.bank.samples):
            self.next = self.bank.filled
        wanted = range(self.next, self.next + n_samples)
        gone = [s for s in self.segments if s.begin < wanted.stop and wanted.start < s.end]
        if gone:
            self.segments = [segment for segment in self.segments if segment not in gone]
            self.publish()
            for segment in gone:
                self.retired[segment.name] = time.time() + GRACE_S
                (self.index / segment.name).unlink()
        return max(self.retired.values(), default=0.0)

    def add(self, name: str, speech: list[Speech]) -> None:
        """Put one shard's utterances into the bank and tell the planners."""
        n_samples = sum(map(room_for, speech))
        time.sleep(max(0.0, self.make_room(n_samples) - time.time()))
        self.retired.clear()
        utterances: list[Utterance] = self.bank.write(self.next, speech)
        if self.bank.samples.is_cuda:
            torch.cuda.current_stream().synchronize()
        (self.index / name).write_bytes(pickle.dumps(utterances, protocol=5))
        self.segments.append(Segment(name, self.next, self.next + n_samples))
        self.next += n_samples
        self.n_samples += n_samples
        self.publish()
        self.make_room(n_samples)  # ahead of the next shard, which is about as long

    def look(self) -> int:
        """Add the shards that have appeared; return how many."""
        found = 0
        for rows_path in sorted(set(self.shards.glob("*.pkl")) - self.seen, key=lambda path: path.stat().st_mtime):
            self.seen.add(rows_path)
            if hash_of(rows_path.stem) % self.n_parts != self.part:
                continue
            self.add(f"{rows_path.stem}.index", read_shard(rows_path))
            if not self.keep_files:
                rows_path.with_suffix(".npy").unlink()
                rows_path.unlink()
            found += 1
        return found

    def fill(self, until: float, report: Callable[[str], None]) -> None:
        """Add shards until the Unix time `until`, at least one."""
        while time.time() < until or not self.segments:
            if not self.look():
                time.sleep(0.3)
        report(f"synthetic: {len(self.segments)} shards, {self.n_samples / SAMPLE_RATE / 3600:.2f} h")

    def start(self) -> None:
        """Go on adding shards in a thread."""

        def work() -> None:
            if self.bank.samples.is_cuda:
                torch.cuda.set_device(self.bank.samples.device)
                torch.cuda.set_stream(torch.cuda.Stream())
            while not self.stop.is_set():
                if not self.look():
                    self.stop.wait(0.5)

        threading.Thread(target=work, daemon=True).start()


def hash_of(stem: str) -> int:
    """Return a number that spreads shard names such as s1_2_17 evenly."""
    return sum(map(int, stem.removeprefix("s").split("_")))


class SegmentReader:
    """What the ring holds, as a planner sees it: read again whenever the list of segments changes."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.time = -1
        self.segments: dict[str, list[Utterance]] = {}

    def changed(self) -> bool:
        """Read what is new; return whether anything changed."""
        path = self.index / "segments.json"
        time_ns = path.stat().st_mtime_ns
        if time_ns == self.time:
            return False
        self.time = time_ns
        names = json.loads(path.read_text())
        kept = {name: self.segments[name] for name in names if name in self.segments}
        for name in names:
            if name not in kept:
                try:
                    kept[name] = pickle.loads((self.index / name).read_bytes())
                except FileNotFoundError:  # struck from the list meanwhile
                    self.time = -1
        self.segments = kept
        return True

    def utterances(self) -> list[Utterance]:
        return [utterance for segment in self.segments.values() for utterance in segment]
