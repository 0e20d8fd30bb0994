"""What a worker's log says of entries: where each stands, and nothing of what it holds."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from service.controls import Control, encode_control
from service.keys import shard_of
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until, working

ROW = np.ones((1, 3), np.float32)
SECRET = b"hunter2"
NAMES = ("stream", "cursor", "model", "shard", "commit")


def commit_of(world: World, stream: str, entry_id: str) -> int:
    """The number of the feed's item that names the entry."""
    assert isinstance(world, MemoryWorld | BrokerWorld)
    shard = shard_of(stream, SHARDS)
    if isinstance(world, MemoryWorld):
        return next(n for n, pairs in world.shards[shard].feed.items() if (stream, entry_id) in pairs)
    found = world.client.xrange(world.keys[shard].feed)
    wanted = f"{stream} {entry_id}".encode()
    return next(int(n.split(b"-")[0]) for n, item in found if wanted in item[b"records"])  # type: ignore[union-attr]


def test_refusals_lost_states_and_controls_are_told_with_their_place(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rollcast")
    world.append("cam", rows_fields("cam", ROW))
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"cam": 1})
    world.forget_state("cam")
    lost = world.append("cam", rows_fields("cam", ROW))
    refused = world.append("cam", {"stream": b"cam", "kind": SECRET, "data": SECRET})
    reset = world.append("cam", {"stream": b"cam", "kind": b"control", "data": encode_control(Control("reset"))})
    with working(world.new_log("v"), TinyEngine(tiny_manifest())):
        answered(world, {"cam": 4})
        wait_until(lambda: any(line.getMessage() == "control done" for line in caplog.records), 60, "told")
    told = {line.getMessage(): vars(line) for line in caplog.records}
    places: dict[str, tuple[str, str | None]] = {
        "a state was lost: its stream began anew": (lost, "tiny"),
        "entry refused": (refused, "tiny"),
        "control done": (reset, None),
    }
    for event, (cursor, model) in places.items():
        where = tuple(told[event][name] for name in NAMES)
        assert where == ("cam", cursor, model, shard_of("cam", SHARDS), commit_of(world, "cam", cursor)), event
    assert told["entry refused"]["reason"] == "malformed"
    assert told["control done"]["action"] == "reset"
    assert SECRET.decode() not in "".join(str(vars(line)) for line in caplog.records)
