"""The list of streams: by name, and first those with which something is wrong; page by page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from service.embedded import EmbeddedBroker
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.living import Living, living
from tests.worlds import MemoryWorld, wait_until

ROW = [1.0, 2.0, 3.0]
NAMES = [f"belt-{n}" for n in range(6)]


pytestmark = pytest.mark.usefixtures("quick_monitor")


@pytest.fixture(params=["memory", "valkey", "redis"])
def life(
    request: pytest.FixtureRequest, prefix: str, start_broker: Callable[[str], EmbeddedBroker]
) -> Iterator[Living]:
    url = "" if request.param == "memory" else start_broker(request.param).url
    with living(request.param, url, prefix, TinyEngine(tiny_manifest())) as life:
        yield life


def post(life: Living, stream: str, status: int = 200, **query: Any) -> None:
    answer = life.api.http.post(
        f"/v1/streams/{stream}/samples", json={"samples": [ROW]}, params={"wait": 5.0} | query, timeout=60
    )
    assert answer.status_code == status, answer.text


def listed(life: Living, sort: str, limit: int = 4) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        query = {"sort": sort, "limit": str(limit)} | ({"after": after} if after else {})
        page = life.api.http.get("/v1/streams", params=query).json()
        assert len(page["streams"]) <= limit
        found += page["streams"]
        after = page["next"]
    return found


def delete(life: Living, path: str) -> None:
    answer = life.api.http.delete(f"/v1/streams/{path}", timeout=15)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_the_worst_come_first(life: Living, limit: int) -> None:
    with life.worker():
        for name in NAMES:
            post(life, name, seq=7)
        for name, late in (("belt-4", 3), ("belt-1", 1)):
            for seq in range(late):
                post(life, name, 410, seq=seq)
        for name, resets in (("belt-2", 1), ("belt-5", 2)):
            for _ in range(resets):
                delete(life, f"{name}/state")
                post(life, name)
        for path in ("", "/state"):  # what was counted of it goes with it
            post(life, "gone", seq=7)
            post(life, "gone", 410, seq=1)
            if path:
                delete(life, f"gone{path}")
                post(life, "gone")
            delete(life, "gone")
    drops, restarts = listed(life, "drops", limit), listed(life, "restarts", limit)
    assert [(one["stream"], one["drops"]) for one in drops] == [
        ("belt-4", 3), ("belt-1", 1), ("belt-0", 0), ("belt-2", 0), ("belt-3", 0), ("belt-5", 0),
    ]  # fmt: skip
    assert [(one["stream"], one["restarts"]) for one in restarts] == [
        ("belt-5", 2), ("belt-2", 1), ("belt-0", 0), ("belt-1", 0), ("belt-3", 0), ("belt-4", 0),
    ]  # fmt: skip
    assert [one["stream"] for one in listed(life, "name", limit)] == NAMES


def test_whoever_waits_longest_comes_first_answered_before_or_not(life: Living) -> None:
    with life.worker():
        for name in NAMES[:4]:
            post(life, name)
    late = ["belt-2", "belt-9", "belt-0", "belt-2"]
    for name in late:
        life.world.append(name, rows_fields(name, np.array([ROW], np.float32)))
        time.sleep(0.002)  # within one millisecond nobody waits longer
    found = listed(life, "lag", 2)
    assert [one["stream"] for one in found] == ["belt-2", "belt-9", "belt-0", "belt-1", "belt-3"]
    assert [one["lag_s"] > 0 for one in found[:3]] == [True] * 3
    assert [one["lag_s"] for one in found[3:]] == [0.0, 0.0]
    found = listed(life, "lag", 100)  # of one moment
    assert found[0]["lag_s"] >= found[1]["lag_s"] >= found[2]["lag_s"]
    assert (found[1]["last_entry"], found[1]["steps"]) == (None, None)
    assert life.api.http.get("/v1/streams/belt-2").json()["lag_s"] > 0
    with life.worker():
        post(life, "belt-2")
        post(life, "belt-9")
        post(life, "belt-0")
    assert {one["lag_s"] for one in listed(life, "lag")} == {0.0}


def test_who_is_silent_is_said_by_the_brokers_clock(life: Living) -> None:
    with life.worker():
        for name, idle_exit_s in (("belt-0", 0.1), ("belt-1", 600.0)):
            answer = life.api.http.put(f"/v1/streams/{name}", json={"model": "tiny", "idle_exit_s": idle_exit_s})
            assert answer.status_code == 200, answer.text
            post(life, name)
        last_ms = life.world.now_ms()
        if isinstance(life.world, MemoryWorld):
            life.world.clock_ms += 101
        wait_until(lambda: life.world.now_ms() > last_ms + 100)
    quiet, going_on = (life.api.http.get(f"/v1/streams/{name}").json() for name in ("belt-0", "belt-1"))
    assert (going_on["silent"], going_on["silent_since"]) == (False, None)
    assert quiet["silent"]
    assert last_ms / 1000 - 60 < quiet["silent_since"] <= last_ms / 1000
    assert [one["silent"] for one in listed(life, "name")] == [True, False]
    life.world.append("belt-0", rows_fields("belt-0", np.array([ROW], np.float32)))
    assert life.api.http.get("/v1/streams/belt-0").json()["silent"] is False, "something waits"


@pytest.mark.parametrize(
    ("query", "kind", "told"),
    [
        ({"sort": "age"}, "malformed", "one of name, lag, drops, restarts"),
        ({"sort": "lag", "after": "belt-1"}, "bad-cursor", "no cursor of a sorted list"),
        ({"sort": "drops", "after": "Ng"}, "bad-cursor", "no cursor of a sorted list"),
    ],
)
def test_a_wrong_order_or_cursor_is_said_so(life: Living, query: dict[str, str], kind: str, told: str) -> None:
    answer = life.api.http.get("/v1/streams", params=query)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, kind)
    assert told in answer.json()["detail"]
