"""What each entry leaves behind: its record's JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from service.codec import encode_record
from service.contracts import Done, Dropped, Duplicate, Event, Prediction, Refused, Rolling
from service.errors import EntryError
from service.worker.model import ServedModel, Stepped
from service.worker.shard import Group, Item

DECIMALS = 6  # of scores in records: a float32 has hardly more, and every digit is stored and sent many times
_NO_EVENTS: list[Event] = []


def write_predictions(
    model: ServedModel, items: Sequence[Item], stepped: Stepped, closed: dict[int, list[Event]], keep: bool = True
) -> None:
    """Sets `type`, `body` and, to be kept, `state` of every item that was stepped: one encode an entry, the rest by
    column."""
    labels, name, version = model.labels, model.name, model.version
    both = np.stack([stepped.scores, stepped.rows["smooth"]])  # (2, B, K)
    rounded = np.round(both.astype(np.float64), DECIMALS)
    scores, rolled = rounded.tolist()
    best, best_rolled = both.argmax(axis=2).tolist()
    group = Group(model, items, best, rounded[0].max(axis=1).tolist())
    steps = stepped.rows["step"].tolist()
    records = model.layout.encode(stepped.rows) if keep else [None] * len(items)
    events = stepped.events
    for b, item in enumerate(items):
        if b in stepped.failed:
            continue
        mine, smoothed = scores[b], rolled[b]
        k, r = best[b], best_rolled[b]
        told = events.get(b, _NO_EVENTS)
        if b in closed:
            told = closed[b] + told
        item.type = b"prediction"
        item.body = encode_record(
            Prediction(
                item.entry.id.decode(), item.key.name, name, version, item.time_us / 1e6, steps[b],
                labels[k], mine[k], mine, Rolling(labels[r], smoothed[r], smoothed), told, item.reason,
                item.missed or UNSET, item.entry.retry_of or UNSET,
            )
        )  # fmt: skip
        item.state = records[b]
        item.group, item.at, item.events = group, b, told
        if told or item.reason is not None:
            group.told.append(item)
    if group.told:
        inside = set(np.flatnonzero(stepped.rows["inside"].any(axis=1)).tolist())
        for item in group.told:
            item.open = item.at in inside


def write_refused(item: Item, error: EntryError, model: str | None) -> None:
    item.error, item.dead, item.type = error, True, b"refused"
    entry = item.entry
    item.body = encode_record(
        Refused(entry.id.decode(), item.key.name, error.reason, error.detail, model, entry.retry_of)
    )


def write_dropped(item: Item, reason: str, detail: str, events: list[Event]) -> None:
    item.drop, item.type, item.events = reason, b"dropped", events
    entry = item.entry
    item.body = encode_record(
        Dropped(entry.id.decode(), item.key.name, reason, detail, entry.model, events, entry.retry_of)
    )


def write_duplicate(item: Item, of: bytes, seq: int) -> None:
    item.type = b"duplicate"
    item.body = encode_record(Duplicate(item.entry.id.decode(), item.key.name, of.decode(), seq, item.entry.model))


def write_done(item: Item, action: str, events: list[Event]) -> None:
    item.type = b"done"
    item.body = encode_record(Done(item.entry.id.decode(), item.key.name, action, events, item.entry.retry_of))
