"""Smoothing and the event automaton, folded over every step, vectorised over a batch.

One automaton a label. Outside, a label whose smoothed score stays at or above `enter` for `dwell_s` enters;
inside, it leaves as soon as the score falls below `exit`, and cannot enter again for `refractory_s`.
All decisions compare integer microseconds of event time, so that a sequence cut differently into entries
decides the same.

A stream's time is the highest that it has seen. A step counts for what it advances that; where it does not (it is
late, or has the time of the one before) it counts for the package's interval. Only a clock that was put back, by more
than the gap, sets the time back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from service.contracts import Event, GapPolicy, RollingSettings

NEVER: Final = np.iinfo(np.int64).min
FLOOR_US: Final = -(10**12)  # deadlines are not moved below it: those of a clock that stands still would fall for ever
ROW_FORMAT: Final = 1  # of the fields below; part of a package's schema


def row_fields(labels: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """The automaton's part of a state row, as numpy dtype fields; 8-byte fields first, so that all stay aligned."""
    return [
        ("since", "<i8", (labels,)),  # when the label rose above `enter` (us), or NEVER
        ("mark", "<i8", (labels,)),  # inside: time of the last report; outside: end of the refractory time (us)
        ("event_ms", "<u8", (labels,)),  # id of the entry in which the label entered
        ("event_seq", "<u8", (labels,)),
        ("smooth", "<f4", (labels,)),  # smoothed scores
        ("peak", "<f4", (labels,)),  # highest smoothed score since `since`
        ("reported", "<f4", (labels,)),  # the peak as last reported
        ("inside", "?", (labels,)),
    ]


def clear(rows: np.ndarray) -> None:
    """Sets the automaton's fields of `rows` (B,) to those of a new stream."""
    rows["since"] = NEVER
    rows["mark"] = NEVER
    for name in ("event_ms", "event_seq", "smooth", "peak", "reported", "inside"):
        rows[name] = 0


class Thresholds(NamedTuple):
    """RollingSettings in inner units. A field is one number for the batch, or (B, 1) where streams differ."""

    half_life_us: float | np.ndarray
    enter: float | np.ndarray
    exit: float | np.ndarray
    dwell_us: int | np.ndarray
    refractory_us: int | np.ndarray
    update_us: int | np.ndarray
    gap_us: int | np.ndarray
    interval_us: int | np.ndarray  # what a step counts for that does not advance the stream's time


def thresholds(rolling: RollingSettings, gap: GapPolicy, interval_s: float) -> Thresholds:
    """`interval_s`: Manifest.nominal_s of the stream's package."""
    return Thresholds(
        rolling.half_life_s * 1e6,
        rolling.enter,
        rolling.exit,
        round(rolling.dwell_s * 1e6),
        round(rolling.refractory_s * 1e6),
        round(rolling.update_s * 1e6),
        round(gap.gap_s * 1e6),
        round(interval_s * 1e6),
    )


def of_batch(each: Sequence[Thresholds]) -> Thresholds:
    """Those of B streams as columns (B, 1). Thresholds are float32, as a plain number is when it meets the scores:
    a stream decides the same whether its neighbours have settings of their own or not."""
    columns = [np.array(column)[:, None] for column in zip(*each, strict=True)]
    half_life, enter, leave, *rest = columns
    return Thresholds(half_life, enter.astype(np.float32), leave.astype(np.float32), *rest)


def fold(
    rows: np.ndarray,  # (B,) state rows, changed in place: the automaton's fields, `step`, `time_us`
    probabilities: np.ndarray,  # (B, T, K) float32
    times_us: np.ndarray,  # (B, T) int64, event time of each step
    ids: Sequence[tuple[int, int]],  # B entry ids (ms, seq)
    limits: Thresholds,
    labels: Sequence[str],  # K
    silent: np.ndarray,  # (K,) bool: background labels, which make no events
) -> dict[int, list[Event]]:
    """Folds T steps into B rows. Returns the events by place in the batch, in order; most batches have none.

    Events have the stream's time, which is above that of a step that is late.
    """
    events: dict[int, list[Event]] = {}
    smooth, inside, since, mark = rows["smooth"].copy(), rows["inside"].copy(), rows["since"].copy(), rows["mark"]
    peak, reported = rows["peak"], rows["reported"]
    last_us, step = rows["time_us"].copy(), rows["step"]
    watching = bool(inside.any() or (since != NEVER).any())
    audible = ~silent
    new = step == 0
    np.copyto(last_us, times_us[:, 0], where=new)
    for t in range(probabilities.shape[1]):
        now = np.maximum(last_us, times_us[:, t])
        passed_us = now - last_us
        if not passed_us.all():
            _count(passed_us, since, mark, inside, limits)
        weight = _weight(passed_us, limits)
        if t == 0:
            weight[new] = 1.0
        smooth += weight[:, None] * (probabilities[:, t] - smooth)
        last_us = now
        step += 1
        above = (smooth >= limits.enter) & audible
        if not watching and not above.any():
            continue
        at = now[:, None]
        rising = above & ~inside & (at >= mark)
        begun = rising & (since == NEVER)
        since[begun] = np.broadcast_to(at, begun.shape)[begun]
        peak[begun] = 0
        since[~(rising | inside)] = NEVER
        np.copyto(peak, np.maximum(peak, smooth), where=rising | inside)
        # NEVER lies so far back that `at - since` would overflow: only places that are rising are asked
        dwelt = np.subtract(at, since, out=np.zeros_like(since), where=rising) >= limits.dwell_us
        leaving = inside & (smooth < limits.exit)
        entering = rising & dwelt
        aged = np.subtract(at, mark, out=np.zeros_like(since), where=inside) >= limits.update_us
        updating = inside & ~leaving & (peak > reported) & aged
        changed = leaving | entering | updating
        if changed.any():
            rows["smooth"], rows["since"] = smooth, since
            for b in np.flatnonzero(entering.any(axis=1)).tolist():
                rows["event_ms"][b, entering[b]], rows["event_seq"][b, entering[b]] = ids[b]
            kinds: tuple[tuple[Literal["enter", "update", "exit"], np.ndarray], ...]
            kinds = (("exit", leaving), ("enter", entering), ("update", updating))
            for kind, mask in kinds:
                for b, k in np.argwhere(mask).tolist():
                    events.setdefault(b, []).append(_event(kind, labels[k], rows[b], k, int(now[b])))
            told = entering | updating
            reported[told] = peak[told]
            mark[told] = np.broadcast_to(at, told.shape)[told]
            mark[leaving] = np.broadcast_to(at + limits.refractory_us, leaving.shape)[leaving]
            since[leaving] = NEVER
            inside ^= entering | leaving
        watching = bool(inside.any() or (since != NEVER).any())
    rows["smooth"], rows["inside"], rows["since"], rows["time_us"] = smooth, inside, since, last_us
    return events


def set_back(rows: np.ndarray, first_us: np.ndarray, gap_us: np.ndarray | int) -> None:
    """The time of these streams (B,), whose clock was put back, becomes that of a hole of `gap_us` before `first_us`
    (B,), their next step's: the state goes on, and no deadline of the old time is left. A label that is inside has been
    so for as long as before."""
    by_us, inside = (rows["time_us"] - first_us)[:, None], rows["inside"]
    begun = np.maximum(rows["since"], FLOOR_US + by_us) - by_us
    rows["since"] = np.where(inside, begun, NEVER)
    rows["mark"] = np.where(inside, first_us[:, None], NEVER)
    rows["time_us"] = first_us - gap_us


def close(row: np.void, labels: Sequence[str]) -> list[Event]:
    """The exits of a state that ends (end, reset, TTL) or falls silent: at its last step's time."""
    return [_event("exit", labels[k], row, k, int(row["time_us"])) for k in np.flatnonzero(row["inside"]).tolist()]


def leave(row: np.void, refractory_us: int) -> None:
    """After `close`, where the state itself goes on: the labels that were inside have left, at the last step's time.
    Changes `row` in place, as `fold` does at an exit."""
    inside = row["inside"].copy()
    row["mark"][inside] = row["time_us"] + refractory_us
    row["since"][inside] = NEVER
    row["inside"][inside] = False


def _count(
    passed_us: np.ndarray,  # (B,) what the step advances each stream's time; changed, as since and mark are
    since: np.ndarray,
    mark: np.ndarray,
    inside: np.ndarray,
    limits: Thresholds,
) -> None:
    """Steps that advance nothing count for an interval: deadlines come nearer by it, since the time does not pass."""
    still = passed_us == 0
    np.copyto(passed_us, np.reshape(limits.interval_us, -1), where=still)
    by_us = np.where(still, passed_us, 0)[:, None]
    for deadlines, waiting in ((since, ~inside & (since != NEVER)), (mark, mark != NEVER)):
        nearer = np.maximum(deadlines - by_us, FLOOR_US)  # NEVER overflows, and is not waiting
        np.copyto(deadlines, np.minimum(deadlines, nearer), where=waiting)


def _weight(dt_us: np.ndarray, limits: Thresholds) -> np.ndarray:
    """(B,) float32: how far the smoothed score moves to the new one."""
    half_life = np.reshape(limits.half_life_us, -1)
    dt = np.minimum(dt_us, np.reshape(limits.gap_us, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(half_life > 0, 1.0 - np.exp2(-dt / half_life), 1.0)
    return weight.astype(np.float32)


def _event(kind: Literal["enter", "update", "exit"], label: str, row: np.void, k: int, time_us: int) -> Event:
    return Event(
        type=kind,
        label=label,
        event=f"{row['event_ms'][k]}-{row['event_seq'][k]}",
        step=int(row["step"]),
        time=time_us / 1e6,
        start=int(row["since"][k]) / 1e6,
        score=round(float(row["smooth"][k]), 6),
        peak=round(float(row["peak"][k]), 6),
    )
