"""How a user's own data is learnt: the task that fits it, and which family and size does best on it.

The families and sizes tried are few and small: what a stream can carry. `choose` trains each for a short while and
keeps the best by validation; the test examples are never looked at. Where time allows, the one chosen learns several
times, from different beginnings, and the package answers by their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
import numpy as np

from export.data import Data, Split, folds
from export.deadline import Deadline
from export.own import FOLDS
from export.sequences import SequenceTask, VideoTask
from export.tasks import FrameTask, Task
from models.catalogue import Net, causal, images, patterns, recurrent, together, video
from models.rocket import KERNEL
from service.contracts import GapPolicy, RollingSettings

Family = Literal["lstm", "gru", "rnn", "cnn1d", "rocket", "auto"]
FAMILIES: Final = get_args(Family)
STEPS: Final = 1500  # of the optimiser, about: how long a net learns
TRIAL_STEPS: Final = 300  # in a trial
GLANCE_STEPS: Final = 20  # in the trial of an only candidate, which is only to tell how long an epoch takes
TRIAL_SHARE: Final = 0.4  # of the time budget goes into trials
MARGIN: Final = 0.9  # of what is left is planned for: an epoch may take longer than it did
COPIES: Final = 2000  # examples, about, from which a net is solved, disturbed copies among them
COPIED_ROWS: Final = 2_000_000  # and their rows: they are made before the first is looked at
MEMBERS: Final = 3  # nets that answer together, where they all can learn in the time that is left
CHOICE: Final = "choice.json"


class Found(NamedTuple):
    """What a trial gave on what it had not seen: accuracy, and how little the truth surprised the net (minus the mean
    log loss); and for how many epochs it learnt."""

    accuracy: float
    unsurprised: float
    epochs: int


# Trains for `task.epochs`, or until time is up, on the first split; what is found on the other. Its checkpoint's path.
Trial = Callable[[Task, Split, Split, Deadline, Path], Found]


class Candidate(NamedTuple):
    family: str
    width: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.width}"


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, and by what. Kept in the run's folder, so that a run that goes on goes on with it."""

    family: str
    width: int
    epochs: int
    tried: dict[str, float]  # candidate -> accuracy in validation
    members: int = 1  # nets that answer together


ROWS: Final = [
    Candidate(family, width) for width in (32, 64) for family in ("rocket", "gru", "lstm", "cnn1d")
] + [Candidate("rnn", 32)]  # fmt: skip
FRAMES: Final = [Candidate(family, 64) for family in ("gru", "lstm", "rnn")]


def own_task(name: str, data: Data, hz: float | None, choice: Candidate, members: int = 1) -> Task:
    """A task for data of one's own: by what its examples are, and the net of `choice`, so many of it together."""
    common: dict[str, Any] = {
        "name": name,
        "load": lambda folder: data,
        "weights_terms": "the owner's",
        "limits": "Learnt from the owner's examples alone.",
        "batch": 32,
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "smoothing": 0.05,
        "average": 0.97,
        "folds": 0 if data.validation is not None else FOLDS,
        "early": True,
        "rolling": RollingSettings(half_life_s=0.5 if hz is None else max(0.5, 2 / hz), enter=0.6, exit=0.4),
        "gap": GapPolicy("carry", max(10.0, 0.0 if hz is None else 10 / hz)),
        "epochs": 1,
    }
    if isinstance(data.train.x, np.ndarray):
        net = Net("cnn2d", partial(images, width=16))
        task: Task = FrameTask(
            description="Own images.", unit="a test image", own=net, rotation=8, zoom=0.1, shift=2, **common
        )
    elif data.train.x[0].ndim == 4:
        net = Net(f"cnn-{choice.family}", partial(video, cell=choice.family, width=choice.width))
        more = common | {"batch": 8, "learning_rate": 3e-3}
        task = VideoTask(
            description="Own clips.",
            unit="a clip's last frame",
            own=net,
            hz=hz or 25.0,
            zoom=0.1,
            shift=3,
            speed=0.1,
            **more,
        )
    else:
        task = SequenceTask(
            description="Own sequences of rows." + left_out_of(data),
            unit="a sequence's last row",
            own=together(_row_net(choice, [len(x) for x in data.train.x]), members),
            hz=hz or 1.0,
            columns=data.features,
            noise=0.05,
            scale=0.05,
            speed=0.1,
            sway=0.2,
            **common,
        )
        if choice.family == "rocket":
            rows = sum(map(len, data.train.x))
            return replace(task, copies=min(8, max(1, min(COPIES // len(data.train), COPIED_ROWS // rows))))
    return with_epochs(task, data.train, STEPS)


def with_epochs(task: Task, split: Split, steps: int) -> Task:
    """As many epochs as make about so many steps of the optimiser; it gives up after a third without a better one."""
    if getattr(task, "copies", 0):
        return task  # solved at once
    epochs = min(300, max(2, math.ceil(steps / task.steps(split))))
    return replace(task, epochs=epochs, patience=max(5, epochs // 3))


def candidates(data: Data, family: str) -> list[Candidate]:
    """What there is to choose from. Images alone have one net."""
    if isinstance(data.train.x, np.ndarray):
        return [Candidate("cnn2d", 16)]
    known = ROWS if _is_rows(data) else FRAMES
    return [each for each in known if family in ("auto", each.family)]


def choose(
    name: str, data: Data, hz: float | None, family: str, until: Deadline, folder: Path, trial: Trial
) -> tuple[Task, Choice]:
    """Trains the candidates briefly, in turn, until their share of the time is spent; then the best is to learn in
    what is left. A choice made before in this folder is kept."""
    kept = folder / CHOICE
    if kept.is_file():
        choice = msgspec.json.decode(kept.read_bytes(), type=Choice)
    else:
        choice = _try(name, data, hz, candidates(data, family), until, folder, trial)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(msgspec.json.encode(choice))
    task = own_task(name, data, hz, Candidate(choice.family, choice.width), choice.members)
    return replace(task, epochs=choice.epochs, patience=max(5, choice.epochs // 3)), choice


def _try(
    name: str, data: Data, hz: float | None, offered: list[Candidate], until: Deadline, folder: Path, trial: Trial
) -> Choice:
    """In rounds, a fold each where there are folds: all candidates, then the better half on another fold, and so on.
    The trials of a round have equal shares of what is left for trials."""
    cuts = [(data.train, data.validation)] if data.validation is not None else folds(data.train, FOLDS, 0)
    trying = until.share(1 / TRIAL_SHARE)
    found: dict[Candidate, list[Found]] = {}
    epoch_s: dict[Candidate, float] = {}
    least_s: dict[str, float] = {}  # of families whose trial took more than it had: what it took
    left = offered
    for number, (rest, held) in enumerate(cuts):
        for place, candidate in enumerate(left):
            if found and trying.over():
                break
            if found and trying.over(least_s.get(candidate.family, 0.0)):
                continue  # it would take as long again, or longer: widths grow
            steps = TRIAL_STEPS if len(offered) > 1 else GLANCE_STEPS
            task = with_epochs(own_task(name, data, hz, candidate), rest, steps)
            before = until.left_s()
            path = folder / f"try-{candidate.name}{f'-{number + 1}' if number else ''}.pt"
            share = trying.share(len(left) - place)
            result = trial(task, rest, held, share, path)
            found.setdefault(candidate, []).append(result)
            took_s = before - until.left_s()
            epoch_s[candidate] = took_s / result.epochs
            if share.over():
                least_s[candidate.family] = took_s
        judged = [each for each in left if len(found.get(each, [])) > number]  # a round that was broken off
        left = _best(found, judged or left)
        if len(left) == 1:
            break
    best = left[0]
    full = own_task(name, data, hz, best).epochs
    trainings = 1 if data.validation is not None else FOLDS + 1
    left_s, each_s = until.left_s(), max(1e-6, epoch_s[best] * trainings)
    epochs = int(
        min(full, max(1, MARGIN * left_s / each_s, min(5, 1 / each_s)))
    )  # five, if they are a matter of a second
    members = (
        MEMBERS if each_s * epochs * MEMBERS < MARGIN * left_s and _is_rows(data) and best.family != "rocket" else 1
    )
    tried = {
        each.name: round(float(np.mean([result.accuracy for result in results])), 4) for each, results in found.items()
    }
    return Choice(best.family, best.width, epochs, tried, members)


def left_out_of(data: Data) -> str:
    return f" Left out, as no signal: {', '.join(data.left_out)}." if data.left_out else ""


def _best(found: dict[Candidate, list[Found]], judged: list[Candidate]) -> list[Candidate]:
    """The better half, best first; of equals the first: the smaller."""
    ranked = sorted(judged, key=lambda each: tuple(np.mean([result[:2] for result in found[each]], 0)), reverse=True)
    return ranked[: math.ceil(len(ranked) / 2)]


def _is_rows(data: Data) -> bool:
    return not isinstance(data.train.x, np.ndarray) and data.train.x[0].ndim == 2


def _row_net(choice: Candidate, lengths: list[int]) -> Net:
    if choice.family == "cnn1d":
        return Net("cnn1d", partial(causal, width=choice.width))
    if choice.family == "rocket":
        usual = float(np.median(lengths))
        dilations = [2**i for i in range(6) if (KERNEL - 1) * 2**i < usual] or [1]
        width = 16 * choice.width // len(dilations)  # the shorter, the fewer dilations: as many patterns
        return Net("rocket", partial(patterns, width=width, dilations=dilations, halves=(max(2.0, usual / 6),)))
    return Net(choice.family, partial(recurrent, cell=choice.family, width=choice.width))
