"""Depth video for nets that watch without having learnt it, and learn to read what they watched (models/motion.py).

Each clip is augmented a few times and watched to its end; what that gives is kept. An epoch reads one of them for each
clip. Of a MotionNet only what it remembers at the end is kept, which is all that the last frame's decision depends on:
some fifty times cheaper than going through all frames in every epoch, and the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from export.data import Split
from export.sequences import VideoTask, join
from export.tasks import Batch, Decisions, Run, at_the_end, trace
from models.catalogue import Shape
from models.motion import DepthNet, MotionNet
from models.views import Shake

Watcher = MotionNet | DepthNet


@dataclass(frozen=True, kw_only=True)
class WatchTask(VideoTask):
    """Clips for a net that watches and reads. Augmentation, `copies` times a clip: rotation and shear of the picture;
    the person measured wrongly by `zoom`, `shift` (rows of a view) and, of the distance, `nearer`; half of the copies
    at twice the speed; up to `cut` of the clip missing at each end. Never mirrored: left and right are labels.
    """

    together = 4  # the memory after every step of a clip takes room
    copies: int = 12
    nearer: float = 0.0  # share
    cut: float = 0.0  # share
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # written by _watched

    def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
        order = rng.permutation(len(split))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            copies = rng.integers(1, self.copies + 1, len(chosen))
            seen = [self._watched(split.x[i], shape, int(copy)) for i, copy in zip(chosen, copies, strict=True)]
            yield join(seen, split.y[chosen])

    def logits(self, net: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(net, Watcher)
        state = {name: value.to(x.device) for name, value in net.initial_state(len(x)).items()}
        return net.read(x.float(), state)[0]

    def judge(self, net: nn.Module, run: Run, split: Split) -> Decisions:
        def read(x: np.ndarray) -> np.ndarray:
            net.eval()
            with torch.no_grad():
                y: np.ndarray = self.logits(net, torch.from_numpy(x).to(device)).cpu().numpy()
            return y

        device, shape = next(net.parameters()).device, self.shape(split, 0)
        seen = [self._watched(clip, shape, 0) for clip in split.x]
        return at_the_end(trace(read, seen, 64), split)

    def _watched(self, clip: np.ndarray, shape: Shape, copy: int) -> np.ndarray:
        """(T, …) float16, T 1 where the end is enough: what the net saw of a copy of `clip`; copy 0 is the clip."""
        content = zlib.crc32(np.ascontiguousarray(clip))
        key = (content, len(clip), copy)
        if key not in self.kept:
            net = self._watcher(shape)
            frames, shake = (clip, None) if copy == 0 else self._otherwise(clip, np.random.default_rng((content, copy)))
            with torch.no_grad():
                x, state = torch.from_numpy(frames)[None], net.initial_state(1)
                self.kept[key] = net.watch(x, state, last=net.at_end, shake=shake)[0][0].half().numpy()
        kept: np.ndarray = self.kept[key]
        return kept

    def _watcher(self, shape: Shape) -> Watcher:
        if "net" not in self.kept:
            with torch.random.fork_rng(devices=[]):  # its weights are not used, and must not change what is drawn later
                self.kept["net"] = self.net.build(shape._replace(classes=max(1, shape.classes))).eval()
        net = self.kept["net"]
        assert isinstance(net, Watcher)
        return net

    def _otherwise(self, clip: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Shake]:
        height, width = clip.shape[1:3]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), self.rotation * rng.uniform(-1, 1), 1.0)
        slant = self.shear * rng.uniform(-1, 1)
        turn[0, 1] += slant
        turn[0, 2] -= slant * height / 2
        edges = (rng.uniform(0, self.cut, 2) * len(clip)).astype(int)
        clip = clip[edges[0] : len(clip) - edges[1]]
        if rng.random() < 0.5 and len(clip) > 3:
            clip = clip[int(rng.integers(2)) :: 2]
        moved = np.stack([cv2.warpAffine(frame, turn, (width, height)) for frame in clip])
        zoom, shift, nearer = rng.uniform(-1, 1, (3, 2)) * np.array([[self.zoom], [self.shift], [self.nearer]])
        return moved.reshape(clip.shape), Shake(*zoom.tolist(), *shift.tolist(), float(nearer[0]))
