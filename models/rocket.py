"""Nets for rows that look for many short patterns and let every step vote.

After ROCKET and MiniRocket (Dempster, Petitjean, Webb 2020; Dempster, Schmidt, Webb 2021): random kernels of nine taps,
two thirds of them −1 and one third 2, over a few channels and at several dilations; what counts of each is how often
and how far its response lies above a threshold. The patterns stay as they were drawn. What is learnt, the dense layer
over them, is not descended to but solved: ridge regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cnn1d import RunningMean

KERNEL = 9
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # of ridge regression, as shares of the mean square of an example
USUAL_PENALTY = 1e-2  # tried first
GAINS = (2.0, 3.0, 4.5, 6.0, 9.0, 13.0, 20.0)  # from scores, which aim at 0 and 1, to logits
FOLDS = 4  # by which both are chosen
RATES = 2e10, 4e9  # multiplications a second, of 32 and of 64 bits, that a busy processor does
PART_STEPS = 64 * 384  # looked at together: 64 sequences, fewer where they are long


class Rocket(nn.Module):
    """Rows (B, T, F) to logits (B, T, K), the logits of a row knowing only it and the rows before it.

    Each step votes: a dense layer over what each pattern's response says there. Logits are the mean of all votes since
    the beginning, and, of votes of their own, a mean that forgets half in every so many steps of `halves`. Mean and
    dense layer change places without changing the sum, so that a stream keeps K votes and not a number a pattern.

    `mean` and `std` are the training data's, a number a feature. `spatial`: each three columns are x, y, z of one
    sensor; their length, which does not change when the sensor is turned, is a channel, too.

    State: `recent` (B, channels, reach), the channels of the steps before; `mean` (B, K) and `count` (B, 1) of the
    votes; `fading` (B, halves, K) if there are any. All zeros at the beginning of a stream.
    """

    def __init__(
        self,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 200,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        halves: Sequence[float] = (),
        spatial: bool = False,
    ) -> None:
        super().__init__()
        if spatial and len(mean) % 3:
            raise ValueError(f"{len(mean)} columns: expected x, y and z of each sensor")
        self.classes, self.dilations, self.spatial = classes, tuple(dilations), spatial
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        size = (self.mean**2 + self.std**2).reshape(-1, 3 if spatial else 1).sum(-1).sqrt()
        self.register_buffer("size", size)  # of a sensor's vector, typically
        self.channels = len(mean) + (len(mean) // 3 if spatial else 0)
        self.reach = (KERNEL - 1) * max(dilations)
        self.patterns = nn.ModuleList(_patterns(self.channels, width, d) for d in dilations)
        self.width = width * len(self.dilations)
        self.register_buffer("threshold", torch.zeros(self.width))
        self.register_buffer("spread", torch.ones(self.width))
        self.votes = nn.Linear(2 * self.width, classes * (1 + len(halves)))
        self.since = RunningMean(classes)
        self.fading = FadingMean(classes, halves) if halves else None

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        state = {"recent": torch.zeros(batch, self.channels, self.reach), **self.since.initial_state(batch)}
        return state if self.fading is None else state | {"fading": self.fading.initial_state(batch)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.cat([state["recent"], self._channels(x).transpose(1, 2)], -1)  # (B, channels, reach + T)
        votes = self.votes(self._said(self._responses(seen)).transpose(1, 2))  # (B, T, K · (1 + halves))
        logits, after = self.since(votes[..., : self.classes], state)
        after["recent"] = seen[..., -self.reach :]
        if self.fading is not None:
            late, after["fading"] = self.fading(votes[..., self.classes :], state["fading"], state["count"])
            logits = logits + late
        return logits, after

    # --- learning ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        y: Tensor,
        length: Tensor,
        group: Tensor,
        thin: int = 1,
        *,
        enough: Callable[[], bool] = lambda: False,
        left_s: Callable[[], float] = lambda: math.inf,
    ) -> float:
        """Solves for the votes: each sequence is to be told at its end. x (N, T, F), y (N,), length (N,), group (N,).

        Penalty and gain are chosen in folds, a group (a person, or a sequence and its disturbed copies) on one side of
        each: who was never met is what is asked. Of the responses one in `thin` is looked at: a mean needs no more.
        Once it is `enough`, no more sequences are looked at than one part, and two of each class where those in front
        take turns; no more are solved for than `left_s` allows; once that is 0, no other penalty is tried than one.
        Returns the mean log loss in the folds.
        """
        self._place_thresholds(x, length)
        pooled: list[Tensor] = []
        for part, ends in _parts(x, length):
            if enough() and sum(map(len, pooled)) >= 2 * self.classes:
                break
            pooled.append(self._pooled(part, ends, thin))
        seen = torch.cat(pooled)  # (N, features)
        seen = seen[: _solvable(*seen.shape, left_s(), max(64, 2 * self.classes))]
        y, group = y[: len(seen)], group[: len(seen)]
        mean, std = seen.double().mean(0).float(), seen.double().std(0).float() + 1e-3
        seen = (seen - mean) / std
        gram = (seen @ seen.T / seen.shape[1]).double()  # (N, N)
        wanted = F.one_hot(y, self.classes).double()
        penalty, gain, loss = _choose(gram, wanted, y, group, lambda: left_s() <= 0)
        level = wanted.mean(0)
        weight = gain * (seen.T / seen.shape[1]) @ _solve(gram, wanted - level, penalty).float()  # (features, K)
        weight = weight / std[:, None]
        bias = gain * level.float() - mean @ weight
        groups = weight.reshape(-1, 2 * self.width, self.classes)  # one for each kind of mean
        self.votes.weight.copy_(groups.transpose(1, 2).flatten(0, 1))
        self.votes.bias.zero_()
        self.votes.bias[: self.classes] = bias
        return loss

    def _place_thresholds(self, x: Tensor, length: Tensor) -> None:
        """Each at a quantile of its own of the responses to some of the sequences."""
        some = torch.randperm(len(x))[: _together(x)]
        y = self._responses(self._before(x[some]))  # (64 or fewer, width, T)
        there = torch.arange(y.shape[-1]) < length[some, None]
        values = y.transpose(0, 1)[:, there]  # (width, steps)
        values = values[:, torch.randperm(values.shape[1])[:2000]].sort(1).values
        at = (torch.rand(self.width, 1) * (values.shape[1] - 1)).long()
        self.threshold.copy_(values.gather(1, at)[:, 0])
        self.spread.copy_(values.double().std(1).float().clamp_min(1e-6))

    def _pooled(self, x: Tensor, length: Tensor, thin: int) -> Tensor:
        """(B, T, F) -> (B, 2 · width · (1 + halves)): each kind of mean of what is said, at each sequence's end."""
        said = self._said(self._responses(self._before(x), thin))  # (B, 2 · width, T / thin)
        ago = length[:, None] - 1 - thin * torch.arange(said.shape[-1])  # (B, T / thin)
        keeps = [1.0, *(self.fading.keep.tolist() if self.fading is not None else [])]
        weight = torch.stack([(ago >= 0) * keep ** ago.clamp(min=0) for keep in keeps], -1)  # (B, T / thin, kinds)
        return (said @ (weight / weight.sum(1, keepdim=True))).transpose(1, 2).flatten(1)

    # --- what a step sees ----------------------------------------------------------------------------------------

    def _before(self, x: Tensor) -> Tensor:
        return F.pad(self._channels(x).transpose(1, 2), (self.reach, 0))  # (B, channels, reach + T)

    def _responses(self, seen: Tensor, thin: int = 1) -> Tensor:
        """(B, channels, reach + T) -> (B, width, T / thin)."""
        found = [
            F.conv1d(seen[..., self.reach - (KERNEL - 1) * dilation :], conv.weight, stride=thin, dilation=dilation)
            for conv, dilation in zip(self.patterns, self.dilations, strict=True)
        ]
        return torch.cat(found, 1)

    def _said(self, responses: Tensor) -> Tensor:
        """(B, width, T) -> (B, 2 · width, T): is it there, a step smooth enough for 32 bits, and how far."""
        y = (responses - self.threshold[:, None]) / self.spread[:, None]
        return torch.cat([torch.sigmoid(10 * y), F.relu(y)], 1)

    def _channels(self, x: Tensor) -> Tensor:
        rows = (x - self.mean) / self.std
        if not self.spatial:
            return rows
        lengths = x.reshape(*x.shape[:2], -1, 3).square().sum(-1).add(1e-12).sqrt()  # (B, T, sensors)
        return torch.cat([rows, 2 * (lengths / self.size - 1)], -1)


def _choose(
    gram: Tensor, wanted: Tensor, y: Tensor, group: Tensor, over: Callable[[], bool] = lambda: False
) -> tuple[float, float, float]:
    """Penalty and gain of the smallest log loss in folds by group, and that loss; of those tried until it is `over`."""
    place = group.unique(return_inverse=True)[1]
    groups = int(place.max()) + 1
    fold = torch.randperm(groups)[place] % FOLDS if groups > 1 else torch.randperm(len(y)) % FOLDS
    found: list[tuple[float, float, float]] = []
    for penalty in sorted(PENALTIES, key=lambda each: abs(math.log(each / USUAL_PENALTY))):
        if found and over():
            break
        scores = torch.zeros_like(wanted)
        for number in fold.unique().tolist():
            rest, held = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
            level = wanted[rest].mean(0)
            solved = _solve(gram[rest][:, rest], wanted[rest] - level, penalty)
            scores[held] = level + gram[held][:, rest] @ solved
        found += [(float(F.cross_entropy(gain * scores, y)), penalty, gain) for gain in GAINS]
    loss, penalty, gain = min(found)
    return penalty, gain, loss


def _solve(gram: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """Ridge regression in its dual form: (N, N), (N, K) -> (N, K)."""
    lifted = gram + penalty * len(gram) * gram.diagonal().mean() / 100 * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(wanted, torch.linalg.cholesky(lifted))


def _solvable(count: int, features: int, left_s: float, least: int = 64) -> int:
    """How many of so many sequences half of the time is enough to solve for."""
    fast, slow = RATES
    while count > least:
        folds = FOLDS * (1 - 1 / FOLDS) ** 3 + 1
        if 2 * count**2 * features / fast + folds * count**3 / 3 / slow <= left_s / 2:
            break
        count = max(least, int(0.9 * count))
    return count


def _parts(x: Tensor, length: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Some sequences at a time, as long as their longest: time may be up after each."""
    size = _together(x)
    pairs = zip(x.split(size), length.split(size), strict=True)
    return [(part[:, : int(ends.max())], ends) for part, ends in pairs]


def _together(x: Tensor) -> int:
    return max(1, min(64, PART_STEPS // x.shape[1]))


class FadingMean(nn.Module):
    """Means that forget half of their weight in so many steps, of votes of their own each, added up."""

    def __init__(self, width: int, halves: Sequence[float]) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("keep", torch.tensor([0.5 ** (1 / steps) for steps in halves]))

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, len(self.keep), self.width)

    def forward(self, x: Tensor, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, halves · width), mean (B, halves, width), count (B, 1) of steps so far -> (B, T, width), the next
        mean. Takes T² numbers a half-life."""
        keep = self.keep[:, None]  # (halves, 1)
        step = torch.ones_like(x[0, :, 0]).cumsum(0)  # (T,): 1, 2, …
        ago = step[:, None] - step  # (T, T)
        share = torch.pow(keep[:, None], ago.clamp(min=0)) * (ago >= 0)  # (halves, T, T)
        fresh = x.reshape(*x.shape[:2], -1, self.width).transpose(1, 2)  # (B, halves, T, width)
        before = mean * self._weight(count)  # (B, halves, width): the sum that was kept
        total = share @ fresh + torch.pow(keep, step)[..., None] * before[:, :, None]  # (B, halves, T, width)
        means = total / self._weight(count + step)[..., None]
        return means.sum(1), means[:, :, -1]

    def _weight(self, count: Tensor) -> Tensor:
        """Numbers of steps (B, n) -> (B, halves, n): how much so many weigh together."""
        keep = self.keep[:, None]
        return (1 - torch.pow(keep, count[:, None])) / (1 - keep)


def _patterns(channels: int, width: int, dilation: int) -> nn.Conv1d:
    """Kernels as MiniRocket's, each over some of the channels, few more often than many."""
    conv = nn.Conv1d(channels, width, KERNEL, dilation=dilation, bias=False)
    with torch.no_grad():
        for kernel in conv.weight:  # (channels, KERNEL)
            taps = torch.full((KERNEL,), -1.0)
            taps[torch.randperm(KERNEL)[: KERNEL // 3]] = 2.0
            count = int(2 ** (float(torch.rand(())) * math.log2(channels + 1)))
            sign = torch.zeros(channels)
            sign[torch.randperm(channels)[:count]] = torch.randint(0, 2, (count,)) * 2.0 - 1
            kernel.copy_(sign[:, None] * taps / (3 * count**0.5))
    return conv
