"""Tasks whose examples are whole sequences of different lengths: gestures, clips, sentences, and a user's own rows.

They are padded to the longest of a batch and masked: what follows an end cannot change what stands before it, and
nothing is asked of it. The loss weighs a step by how much of its sequence has been seen, squared: early steps, where
little can be known, count little; the last one counts most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.data import Data, Split
from export.tasks import Batch, FrameTask, RowTask, Run, Task, Trace, pad, trace
from export.to_onnx import Output
from models.catalogue import Shape
from service.contracts import FrameInput, TextInput

MOST_SOLVED = 4000  # examples of a user's, of which a net is solved: a matter of seconds


def weigh(lengths: Sequence[int]) -> np.ndarray:
    """(B, T) float32, of each sequence the sum is 1; 0 behind its end."""
    weight = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, length in zip(weight, lengths, strict=True):
        seen = np.arange(1, length + 1, dtype=np.float32) / length
        row[:length] = seen**2 / (seen**2).sum()
    return weight


def join(sequences: Sequence[np.ndarray], y: np.ndarray) -> Batch:
    x, weight = pad(sequences), weigh([len(sequence) for sequence in sequences])
    return Batch(torch.from_numpy(x), torch.from_numpy(np.repeat(y[:, None], x.shape[1], 1)), torch.from_numpy(weight))


def surprise(run: Run, split: Split, size: int = 16) -> float:
    """log(1 / probability of the true label) at the last step, averaged over the examples. Images are one step."""
    sequences = split.x if isinstance(split.x, list) else list(split.x[:, None])
    said = trace(run, sequences, size)
    truth = np.array([y[-1, label] for y, label in zip(said, split.y, strict=True)])
    return float(-np.log(np.maximum(truth, 1e-9)).mean())


def golden_cut(data: Data, count: int = 4) -> np.ndarray:
    """The beginnings of some of the longer sequences, (B, T, …), T at most 64."""
    x = (data.train if data.validation is None else data.validation).x
    order = np.random.default_rng(0).permutation(len(x))
    longer = sorted(order, key=lambda i: -min(64, len(x[i])))[:count]  # stable: drawn among those long enough
    steps = min(64, *(len(x[i]) for i in longer))
    return np.stack([x[i][:steps] for i in longer])


def moving_blobs(frame: tuple[int, int, int], count: int = 2, steps: int = 24, seed: int = 0) -> np.ndarray:
    """Frames made up (count, steps, H, W, C) uint8: a still, upright body with soft edges before black, and two nearer
    blobs that swing around it."""
    rng = np.random.default_rng(seed)
    height, width, channels = frame
    y, x = np.mgrid[:height, :width].astype(np.float32)
    made = np.zeros((count, steps, height, width, channels), np.float32)
    for clip in made:
        colour = rng.uniform(160, 190, channels)
        middle = height * rng.uniform(0.5, 0.6), width * rng.uniform(0.4, 0.6)
        phase, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.1, 0.4, 2)
        for t, picture in enumerate(clip):
            body = ((y - middle[0]) / (0.35 * height)) ** 2 + ((x - middle[1]) / (0.1 * width)) ** 2
            picture += _soft(body)[..., None] * colour
            for angle in phase + speed * t:
                up, across = middle[0] + 0.25 * height * np.sin(angle), middle[1] + 0.2 * width * np.cos(angle)
                blob = ((y - up) / (0.1 * height)) ** 2 + ((x - across) / (0.06 * width)) ** 2
                picture[:] = np.where(blob[..., None] < 1, _soft(blob)[..., None] * 0.85 * colour, picture)
    return made.round().astype(np.uint8)


def in_turn(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All places of `y`, one of each label, one of each label again, and so on; those of a label at random."""
    order = rng.permutation(len(y))
    rank = np.empty(len(y), np.int64)
    for label in np.unique(y):
        mine = order[y[order] == label]
        rank[mine] = np.arange(len(mine))
    return order[np.argsort(rank[order], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class SequenceTask(RowTask):
    """Rows, a whole sequence an example. Augmentation, besides that of rows: another speed, the same one all along or
    one that varies; beginning and end cut off; and sensors turned."""

    speed: float = 0.0  # share by which a sequence is stretched or squeezed, at most
    sway: float = 0.0  # share by which its speed varies on the way, at most
    crop: float = 0.0  # share cut off at either end, at most
    copies: int = 0  # for nets that are solved: all examples in one batch so many times, all but the first disturbed
    thin: int = 1  # and of their responses one in so many
    turn: float = 0.0  # degrees, at most, by which each three columns are turned in space: a sensor worn otherwise

    def steps(self, split: Split) -> int:
        return 1 if self.copies else math.ceil(len(split) / self.batch)

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        mean, std = np.asarray(shape.mean, np.float32), np.asarray(shape.std, np.float32)
        if self.copies:
            if self.early:  # time may be up before all are looked at, and a kernel matrix has as many rows and columns
                split = split.take(in_turn(split.y, rng)[:MOST_SOLVED])
            rows = [self._turned(self._paced(x, rng), rng) for _ in range(self.copies - 1) for x in split.x]
            rows = [*split.x, *(self._disturbed(each, mean, std, rng).astype(np.float32) for each in rows)]
            group = torch.from_numpy(np.tile(split.group, self.copies))
            yield join(rows, np.tile(split.y, self.copies))._replace(group=group)
            return
        order = rng.permutation(len(split))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            rows = [self._turned(self._paced(split.x[i], rng), rng) for i in chosen]
            yield join([self._disturbed(each, mean, std, rng).astype(np.float32) for each in rows], split.y[chosen])

    def golden(self, data: Data) -> np.ndarray:
        return super().golden(data) if self.synthetic else golden_cut(data)

    def _paced(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """At another speed, between the rows linearly; without some rows at its ends."""
        if not (self.speed or self.sway or self.crop) or len(rows) < 2:
            return rows
        length = max(2, round(len(rows) * (1 + self.speed * rng.uniform(-1, 1))))
        begin, end = self.crop * rng.random(2) * [1, -1] + [0, 1]
        way = np.linspace(begin, end, max(2, round(length * (end - begin))))  # as shares of the sequence
        waves = np.pi * rng.integers(1, 4)
        way += self.sway * rng.uniform(-1, 1) * np.sin(waves * way) / waves  # ends stay ends; its slope is the speed
        at = way.clip(0, 1) * (len(rows) - 1)
        low = np.minimum(at.astype(int), len(rows) - 2)
        share = (at - low)[:, None].astype(np.float32)
        return rows[low] * (1 - share) + rows[low + 1] * share

    def _turned(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.turn or rows.shape[1] % 3:
            return rows
        turned = _rotation(rng.normal(size=3), math.radians(self.turn) * rng.random())
        return (rows.reshape(len(rows), -1, 3) @ turned.T).reshape(rows.shape).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class VideoTask(FrameTask):
    """Clips, a whole one an example. Augmentation: one movement of the picture for a clip, and another speed."""

    together = 16
    hz: float
    speed: float = 0.0

    def shape(self, split: Split, labels: int) -> Shape:
        height, width, channels = np.shape(split.x[0])[1:]
        return Shape(labels, (height, width, channels))

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(split))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            yield join([self._seen_otherwise(split.x[i], rng) for i in chosen], split.y[chosen])

    def trace(self, run: Run, split: Split) -> Trace:
        return trace(run, list(split.x), self.together)

    def golden(self, data: Data) -> np.ndarray:
        return moving_blobs(self.shape(data.train, len(data.labels)).frame)  # recordings of people are not passed on

    def describe_input(self, data: Data) -> dict[str, Any]:
        height, width, channels = self.shape(data.train, len(data.labels)).frame
        colour = "gray" if channels == 1 else "rgb"
        frames = FrameInput(height=height, width=width, channels=channels, colour=colour, rate_hz=self.hz)
        return {"frames": frames}

    def rate_hz(self) -> float:
        return self.hz

    def write_sample(self, folder: Path, split: Split, index: int) -> str:
        """The clip's middle frame."""
        middle = [clip[len(clip) // 2] for clip in (split.x[index],)]
        return super().write_sample(folder, Split(np.stack(middle), *_only(split, index)), 0)

    def _seen_otherwise(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.speed:
            length = max(2, round(len(clip) * (1 + self.speed * rng.uniform(-1, 1))))
            clip = clip[np.linspace(0, len(clip) - 1, length).round().astype(int)]
        T, H, W, C = clip.shape
        flat = torch.from_numpy(np.ascontiguousarray(clip)).permute(1, 2, 0, 3).reshape(1, H, W, T * C)
        moved = self._moved(flat).reshape(H, W, T, C).permute(2, 0, 1, 3)
        return moved.round().to(torch.uint8).numpy()


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Sentences as token ids, classified at every word. Augmentation: a share of the words becomes the unknown one."""

    kind = "text"
    together = 128
    forget: float = 0.0

    def shape(self, split: Split, labels: int) -> Shape:
        return Shape(labels, tokens=1 + max(int(x.max()) for x in split.x))

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(split))
        chunk = 8 * self.batch  # sentences of like length are batched together, out of so many drawn at random
        groups = []
        for start in range(0, len(order), chunk):
            near = sorted(order[start : start + chunk], key=lambda i: len(split.x[i]))
            groups += [np.array(near[at : at + self.batch]) for at in range(0, len(near), self.batch)]
        for place in rng.permutation(len(groups)):
            chosen = groups[place]
            x = [np.where(rng.random(len(split.x[i])) < self.forget, 0, split.x[i]) for i in chosen]
            yield join(x, split.y[chosen])

    def steps(self, split: Split) -> int:
        whole, rest = divmod(len(split), 8 * self.batch)
        return whole * 8 + math.ceil(rest / self.batch)

    def golden(self, data: Data) -> np.ndarray:
        return golden_cut(data)

    def describe_input(self, data: Data) -> dict[str, Any]:
        return {"text": TextInput()}

    def write_sample(self, folder: Path, split: Split, index: int) -> str:
        name = f"{split.y[index]}-{index:05d}.txt"
        (folder / name).write_text(split.names[index] + "\n")
        return name

    def output(self, labels: int) -> Output:
        return "logit" if labels == 2 else "logits"


def _soft(distance: np.ndarray) -> np.ndarray:
    """1 inside an ellipse, 0 outside, with a soft edge."""
    return np.clip((1 - distance) * 5, 0, 1)


def _only(split: Split, index: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    return split.y[index : index + 1], [split.names[index]], split.group[index : index + 1]


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3), by Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
