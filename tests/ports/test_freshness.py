"""Where only the latest entry of a stream counts, what is old is dropped with a record and never decoded."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import service.worker.decoding
from service.codec import encode_settings, id_number
from service.contracts import Freshness, StreamSettings
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.worker import Worker
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until, working

LATEST = Freshness("latest")


def post(world: World, stream: str, rows: Any = ((1, 2, 3),), **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **more))


def control(world: World, stream: str, action: str) -> str:
    data = json.dumps({"action": action}).encode()
    return world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": data})


def prefer(world: World, stream: str, freshness: Freshness) -> None:
    """The stream's settings, as a control would have written them."""
    body = encode_settings(StreamSettings(freshness=freshness))
    if isinstance(world, BrokerWorld):
        world.client.hset(world.keys[shard_of(stream, SHARDS)].settings, stream, body)  # type: ignore[arg-type]
    else:
        assert isinstance(world, MemoryWorld)
        world.shards[shard_of(stream, SHARDS)].settings[stream] = body


def dropped(world: World, stream: str) -> int:
    """As the list of streams counts them."""
    shard = shard_of(stream, SHARDS)
    if isinstance(world, BrokerWorld):
        return int(world.client.zscore(world.keys[shard].drops, stream) or 0)  # type: ignore[arg-type]
    assert isinstance(world, MemoryWorld)
    return world.shards[shard].drops.get(stream, 0)


def told(bodies: list[dict[str, Any]]) -> list[str]:
    return [body.get("reason") or body["type"] for body in bodies]


def test_only_the_newest_waiting_entry_is_stepped(world: World) -> None:
    prefer(world, "cam", LATEST)
    for _ in range(200):
        post(world, "cam")
        post(world, "all")
    engine, metrics = TinyEngine(tiny_manifest()), WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), engine, metrics=metrics):
        bodies = answered(world, {"cam": 200, "all": 200})
    assert told(bodies["all"]) == ["prediction"] * 200
    counts = Counter(told(bodies["cam"]))
    assert counts["superseded"] + counts["prediction"] == 200
    assert counts["prediction"] <= 8, "one each time that something was read"
    assert told(bodies["cam"])[-1] == "prediction"
    steps = [body["step"] for body in bodies["cam"] if body["type"] == "prediction"]
    assert steps == list(range(1, len(steps) + 1)), "what is dropped is no step"
    assert metrics.dropped.labels("superseded").value == counts["superseded"]


def test_a_repeat_that_is_too_old_as_well_counts_as_a_duplicate_only(world: World) -> None:
    prefer(world, "cam", Freshness("latest", 0.001))
    picture = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    for _ in range(2):
        world.append("cam", {"stream": b"cam", "kind": b"frame", "data": picture, "seq": b"7"})
    metrics = WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), BrightnessEngine(), metrics=metrics):
        bodies = answered(world, {"cam": 2})
    assert told(bodies["cam"]) == ["stale", "duplicate"]
    assert (metrics.dropped.labels("stale").value, metrics.duplicates.value) == (1, 1)
    assert dropped(world, "cam") == 1


def test_what_is_too_old_is_dropped_even_if_it_is_the_newest(world: World) -> None:
    prefer(world, "cam", Freshness("latest", 0.001))
    prefer(world, "patient", Freshness("latest", 1e6 if isinstance(world, BrokerWorld) else 1e12))
    for stream in ("cam", "patient"):
        post(world, stream)
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"cam": 1, "patient": 1})
    assert told(bodies["cam"]) == ["stale"]
    assert "expected at most 0.001 s" in bodies["cam"][0]["detail"]
    assert told(bodies["patient"]) == ["prediction"]


def test_frames_that_were_superseded_are_never_decoded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(world, "cam", LATEST)
    decoded: list[bytes] = []
    decode, last = service.worker.decoding.unpack, 0
    workers: list[Worker] = []

    def all_is_offered() -> bool:
        newest = workers[0]._shards[shard_of("cam", SHARDS)].streams["cam"].newest
        return newest is not None and newest.entry.number >= last

    def when_all_were_read(data: bytes, *arguments: Any, **options: Any) -> Any:
        wait_until(lambda: bool(workers), 60, "the worker is known here")
        wait_until(all_is_offered, 60, "all is offered")
        decoded.append(data)
        return decode(data, *arguments, **options)

    monkeypatch.setattr(service.worker.decoding, "unpack", when_all_were_read)
    pictures = [cv2.imencode(".png", np.full((8, 8), n, np.uint8))[1].tobytes() for n in range(100)]
    for picture in pictures:
        last = id_number(world.append("cam", {"stream": b"cam", "kind": b"frame", "data": picture}))
    with working(world.new_log(), BrightnessEngine(), decode_threads=1) as worker:
        workers.append(worker)
        bodies = answered(world, {"cam": 100})["cam"]
    assert told(bodies)[-1] == "prediction"
    assert len(decoded) <= 1 + told(bodies).count("prediction") < 12
    assert pictures[-1] in decoded


def test_a_dropped_entry_still_begins_or_ends_the_state(world: World) -> None:
    loud = tiny_manifest(rolling=tiny_manifest().rolling.__class__(0.0, 0.1, 0.0, 0.0, 0.0, 99.0))
    for stream, marks in (("started", {"start": b"1"}), ("ended", {"end": b"1"})):
        prefer(world, stream, LATEST)
        post(world, stream)
        with working(world.new_log(), TinyEngine(loud)):
            answered(world, {stream: 1})
        post(world, stream, **marks)
        post(world, stream)
        with working(world.new_log(), TinyEngine(loud)):
            first, dropped, last = answered(world, {stream: 3})[stream]
        assert dropped["reason"] == "superseded"
        entered = {event["label"] for event in first["events"] if event["type"] == "enter"}
        assert entered == {event["label"] for event in dropped["events"] if event["type"] == "exit"}
        assert (last["restarted"], last["step"]) == ("start" if stream == "started" else "first", 1)
        assert last["probabilities"] == first["probabilities"]


def test_a_dropped_start_is_remembered_by_the_next_worker(world: World) -> None:
    prefer(world, "cam", Freshness("latest", 1e-6))
    post(world, "cam", start=b"1")
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        assert told(answered(world, {"cam": 1})["cam"]) == ["stale"]
    prefer(world, "cam", Freshness("every"))
    post(world, "cam")
    with working(world.new_log("w2"), TinyEngine(tiny_manifest())):
        assert answered(world, {"cam": 2})["cam"][1]["restarted"] == "start"


def test_controls_bad_entries_and_repeats_are_answered_as_ever(world: World) -> None:
    prefer(world, "cam", LATEST)
    post(world, "cam", seq=b"5")
    post(world, "cam", seq=b"6")
    post(world, "cam", seq=b"6")  # a repeat does not supersede what it repeats
    control(world, "cam", "reset")
    post(world, "cam", seq=b"7")
    world.append("cam", {"stream": b"cam", "kind": b"samples", "shape": b"1,2", "data": bytes(8)})
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"cam": 6})["cam"]
    assert told(bodies) == ["superseded", "prediction", "duplicate", "done", "prediction", "wrong_shape"]
    assert bodies[4]["restarted"] == "reset"
    assert world.dead()[0][2] == bytes(8)


def test_a_repeat_supersedes_nothing_even_behind_an_entry_without_seq(world: World) -> None:
    prefer(world, "cam", LATEST)
    post(world, "cam", seq=b"5")
    post(world, "cam")
    post(world, "cam", seq=b"5", retry_of=b"1-0")
    post(world, "cam", seq=b"4", retry_of=b"1-0")
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"cam": 4})["cam"]
    assert told(bodies) == ["superseded", "prediction", "duplicate", "late"]
    assert bodies[3]["retry_of"] == "1-0"


def test_a_package_may_say_that_only_the_latest_counts_and_a_stream_that_every_one_does(world: World) -> None:
    engine = TinyEngine(tiny_manifest(freshness=LATEST))
    prefer(world, "careful", Freshness("every"))
    for stream in ("cam", "careful"):
        post(world, stream)  # binds the stream to the model
    with working(world.new_log(), engine):
        answered(world, {"cam": 1, "careful": 1})
    for _ in range(50):
        post(world, "cam")
        post(world, "careful")
    with working(world.new_log(), engine):
        bodies = answered(world, {"cam": 51, "careful": 51})
    assert Counter(told(bodies["cam"]))["superseded"] > 30
    assert told(bodies["careful"]) == ["prediction"] * 51
