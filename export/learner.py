"""One net that learns from one split: its epochs, its steps, what is kept of it, and when it ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from export.data import Split
from export.deadline import Deadline
from export.metrics import accuracy
from export.runs import History, Settings, restore, save
from export.sequences import SequenceTask
from export.tasks import Batch, Run, Task
from models.rocket import Rocket

console = Console(stderr=True)
PERFECT = 5  # epochs with every validation example right are enough


class Learner:
    """One net that learns from one split: everything a checkpoint holds."""

    def __init__(
        self, task: Task, split: Split, labels: int, settings: Settings, path: Path, fingerprint: dict[str, Any]
    ) -> None:
        torch.manual_seed(settings.seed)
        self.task, self.split, self.settings, self.path = task, split, settings, path
        self.shape = task.shape(split, labels)
        self.net = task.net.build(self.shape).to(settings.device)
        self.average = AveragedModel(self.net, multi_avg_fn=_averaging(task), use_buffers=True)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), task.learning_rate, weight_decay=task.weight_decay)
        steps = settings.epochs * task.steps(split)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, task.learning_rate, total_steps=steps)
        self.fingerprint = fingerprint | {"parameters": sum(p.numel() for p in self.net.parameters())}
        self.judging_s = 0.0  # how long it took last: so much earlier an epoch ends where time is short
        self.history: History = []
        self.kept: dict[str, Any] = {"epoch": 0, "score": (-1.0, 0.0), "weights": {}}

    @property
    def parts(self) -> dict[str, Any]:
        return {"net": self.net, "average": self.average, "optimiser": self.optimiser, "schedule": self.schedule}

    def learn(
        self,
        validation: Split | None,
        patience: int,
        resume: bool,
        until: Deadline | None = None,
        epochs: int | None = None,
    ) -> History:
        """Keeps the averaged weights of the best validation; without one, those of the last epoch.

        Where time is up in the middle of an epoch, that epoch ends there, and counts. It is in no checkpoint: who goes
        on later goes on after the last whole one.
        """
        until = until or Deadline()
        if resume and self.path.is_file():
            stored = restore(self.path, self.fingerprint, self.parts)
            self.history, self.kept = stored["history"], stored["kept"]
            console.print(f"going on after epoch {len(self.history)} of {self.path}")
        with _progress() as bar:
            for epoch in range(len(self.history), epochs or self.settings.epochs):
                if reason := self._reason_to_stop(patience, until):
                    console.print(reason)
                    break
                began, busy = time.monotonic(), time.process_time()
                row = bar.add_task(f"epoch {epoch + 1}/{self.settings.epochs}", total=self._steps(), note="")
                loss, whole = self._epoch(epoch, bar, row, until)
                entry = {"loss": loss}
                score = (float(epoch), 0.0)
                if validation is not None:
                    asked = until.now()
                    run = torch_run(self.average.module, self.settings.device)
                    entry["validation"] = accuracy(self.task.judge(self.average.module, run, validation))
                    score = (entry["validation"], -entry["loss"])
                    self.judging_s = until.now() - asked
                entry |= {"seconds": round(time.monotonic() - began, 2), "cpu_s": round(time.process_time() - busy, 2)}
                self.history.append(entry)
                if score > tuple(self.kept["score"]):
                    weights = {name: value.cpu().clone() for name, value in self.average.module.state_dict().items()}
                    self.kept = {"epoch": epoch + 1, "score": score, "weights": weights}
                if whole:
                    values = {"fingerprint": self.fingerprint, "history": self.history, "kept": self.kept}
                    save(self.path, values, self.parts)
                notes = [f"{name} {entry[name]:.4f}" for name in ("loss", "validation") if name in entry]
                notes += [note for note in (until.told(), "" if whole else "broken off: time is up") if note]
                bar.remove_task(row)
                text = f"epoch {epoch + 1}/{self.settings.epochs}  {'  '.join(notes)}"
                console.print(text, highlight=False, soft_wrap=True)
        return self.history

    def last(self) -> nn.Module:
        """The net as it stands after the last epoch, on the CPU, in eval mode."""
        net = self.task.net.build(self.shape)
        net.load_state_dict(self.average.module.state_dict())
        return net.eval()

    def _reason_to_stop(self, patience: int, until: Deadline) -> str:
        """Before another epoch; empty: there is none."""
        done = len(self.history)
        if done - self.kept["epoch"] >= patience:
            return f"stopped early: no better validation for {patience} epochs"
        scores = [entry["validation"] for entry in self.history if "validation" in entry]
        if self.task.early and scores[-PERFECT:] == [1.0] * PERFECT:
            return f"stopped early: every validation example right for {PERFECT} epochs"
        standing = max(2 * PERFECT, self.settings.epochs // 2)
        if self.task.early and scores and done - scores.index(max(scores)) > standing:
            return f"stopped early: not one more validation example right for {standing} epochs"
        up = bool(done) and until.over(self.judging_s)
        return f"time is up after epoch {done}: what was learnt so far is kept" if up else ""

    def _epoch(self, epoch: int, bar: Progress, row: TaskID, until: Deadline) -> tuple[float, bool]:
        """All batches once, or the first ones, one at least, where time is up. Returns the mean loss, and whether it
        was all of them."""
        rng = _seed(self.settings.seed, epoch)
        losses: list[float] = []
        for batch in self.task.batches(self.split, self.shape, rng):
            losses.append(_step(self.net, batch, self.task, self.settings, self.optimiser, until))
            self._pace(until)
            self.average.update_parameters(self.net)
            bar.update(row, advance=1, note=f"loss {losses[-1]:.4f}  {until.told()}")
            if until.over(self.judging_s):
                break
        return float(np.mean(losses)), len(losses) == self._steps()

    def _pace(self, until: Deadline) -> None:
        """The next rate of learning, or that which belongs to the share of the time that is over: a training that will
        be broken off comes to rest, too."""
        total, done = self.schedule.total_steps, self.schedule.last_epoch
        for _ in range(done, min(total, max(done + 1, int(until.gone() * total)))):
            self.schedule.step()

    def _steps(self) -> int:
        return self.task.steps(self.split)


def _averaging(task: Task) -> Callable[..., None]:
    """Of weights over steps. Where training may be short, the first steps weigh less: else the average would be that of
    the beginning."""
    if not task.early:
        return get_ema_multi_avg_fn(task.average)

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(task.average, (1 + float(count)) / (10 + float(count)))
        get_ema_multi_avg_fn(keep)(averaged, current, count)

    return average


def _step(
    net: nn.Module, batch: Batch, task: Task, settings: Settings, optimiser: torch.optim.Optimizer, until: Deadline
) -> float:
    """One batch from fresh states. A net that is solved, not descended to, takes all of it in one."""
    if isinstance(net, Rocket):
        return _solve(net, batch, task, settings, optimiser, until)
    x, y, weight = (part.to(settings.device) for part in batch[:3])
    net.train()
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        logits = task.logits(net, x)  # (B, T, K)
    loss = surprise_of(logits, y, weight, task.smoothing)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _solve(
    net: Rocket, batch: Batch, task: Task, settings: Settings, optimiser: torch.optim.Optimizer, until: Deadline
) -> float:
    """All examples at once, on the CPU, where it is a matter of seconds. Half of the time may go into looking at them,
    the recorded first, then their disturbed copies; what is not looked at by then is left out, and so is what cannot be
    solved for in the rest, and penalties that were not tried when time is up."""
    assert isinstance(task, SequenceTask)
    assert batch.group is not None
    optimiser.step()  # without gradients: nothing but what its schedule waits for
    loss = net.cpu().fit(
        batch.x, batch.y[:, 0], (batch.weight > 0).sum(1), batch.group, task.thin,
        enough=until.share(2).over, left_s=until.left_s,
    )  # fmt: skip
    net.to(settings.device)
    return loss


def surprise_of(logits: Tensor, y: Tensor, weight: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of every step that counts, log(1 / probability of the true label), as a weighted mean.

    y and weight (B, T). An ensemble's members answer behind each other along the batch, (members · B, T, K): each has
    the same loss to make small.
    """
    members = len(logits) // len(y)
    y, weight = y.repeat(members, 1), weight.repeat(members, 1)
    each = F.cross_entropy(
        as_logits(logits).float().flatten(0, 1), y.flatten(), reduction="none", label_smoothing=smoothing
    )  # (members · B · T,)
    return (each * weight.flatten()).sum() / weight.sum()


def torch_run(net: nn.Module, device: str = "cpu") -> Run:
    """The net as a function of whole sequences, each from a fresh state."""

    def run(x: np.ndarray) -> np.ndarray:
        net.eval()
        state = {name: value.to(device) for name, value in net.initial_state(len(x)).items()}
        with torch.no_grad():
            logits, _ = net(torch.from_numpy(x).to(device), state)
        return as_logits(logits).float().softmax(-1).cpu().numpy()

    return run


def as_logits(y: Tensor) -> Tensor:
    """(B, T, K) logits as they are; one neuron's as two: the softmax of (0, y) is (1 − sigmoid(y), sigmoid(y))."""
    return y if y.shape[-1] > 1 else torch.cat([torch.zeros_like(y), y], -1)


def _seed(seed: int, epoch: int) -> np.random.Generator:
    """Every epoch draws from generators of its own: torch's, for dropout and augmentation, and the one returned."""
    torch.manual_seed(random.Random(f"{seed}:{epoch}").getrandbits(63))
    return np.random.default_rng((seed, epoch))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
