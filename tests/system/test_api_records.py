"""Reading records over HTTP: server-sent events that resume without a gap or say `gap`, and JSON pages."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollcast.events import ServerEvent
from service.api import create_app
from service.broker.predictions import RedisPredictions
from service.codec import id_number
from service.embedded import EmbeddedBroker
from service.metrics import create_registry
from tests.answering import PATIENT, InMemory, OnBroker
from tests.doubles import tiny_manifest
from tests.serving import Serving, await_true

ROW = [1.0, 2.0, 3.0]
MODELS = [tiny_manifest("tiny")]


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"records-{threading.get_native_id()}")
    on_broker.serve("tiny")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    with Serving(create_app(world.predictions, MODELS, create_registry(), heartbeat_s=0.1, bounds=PATIENT)) as serving:
        yield serving


@pytest.fixture
def stream(prefix: str) -> str:
    return f"s-{prefix}"


def record(api: Serving, world: OnBroker, stream: str, count: int = 1, kind: str = "prediction") -> list[str]:
    """Posts entries and answers them; their ids."""
    ids = [api.post_rows(stream, ROW, model="tiny") for _ in range(count)]
    for entry_id in ids:
        world.answer(stream, entry_id, kind, of="1-1")
    return ids


def take(events: Iterator[ServerEvent], count: int) -> list[ServerEvent]:
    return [next(events) for _ in range(count)]


def ids(events: list[ServerEvent]) -> list[str]:
    return [event.id for event in events]


# --- server-sent events ------------------------------------------------------------------------------------------


def test_a_subscription_without_a_cursor_begins_now(api: Serving, world: OnBroker, stream: str) -> None:
    record(api, world, stream, 3)
    pending = api.post_rows(stream, ROW)
    with api.follow(stream) as events:
        world.answer(stream, pending)
        (new,) = record(api, world, stream)
        assert ids(take(events, 2)) == [pending, new]


def test_what_is_answered_once_the_subscription_is_confirmed_is_not_missed_however_slow_the_broker_is(
    api: Serving, world: OnBroker, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = world.predictions.newest

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.2)
        return await newest(*arguments)

    monkeypatch.setattr(world.predictions, "newest", slowly)
    with api.follow(stream) as events:
        new = record(api, world, stream)
        assert ids(take(events, 1)) == new


def test_a_stream_may_be_watched_before_it_exists(api: Serving, world: OnBroker, stream: str) -> None:
    with api.follow(stream) as events:
        new = record(api, world, stream, 2)
        assert ids(take(events, 2)) == new


def test_the_data_of_an_event_is_the_record_as_it_is_stored(api: Serving, world: OnBroker, stream: str) -> None:
    entry_id = api.post_rows(stream, ROW)
    body = world.answer(stream, entry_id)
    with api.open(stream, after="0") as response:
        lines = iter(response.iter_lines())
        found = [next(lines) for _ in range(5)]
    assert found[0] == "retry: 1000"
    assert found[2:] == [f"data: {body}", f"id: {entry_id}", ""]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"


def test_predictions_are_unnamed_and_everything_else_is_named(api: Serving, world: OnBroker, stream: str) -> None:
    kinds = ["prediction", "refused", "dropped", "duplicate", "done"]
    expected = [record(api, world, stream, 1, kind)[0] for kind in kinds]
    with api.open(stream, after="0") as response:
        named = []
        for line in response.iter_lines():
            if line.startswith("event:"):
                named.append(line)
            if line == f"id: {expected[-1]}":
                break
    assert named == [f"event: {kind}" for kind in kinds[1:]]
    with api.follow(stream, after="0") as events:
        assert [(event.event, event.id) for event in take(events, 5)] == list(zip(kinds, expected, strict=True))


@pytest.mark.parametrize("by_header", [True, False])
def test_resuming_after_every_single_event_loses_and_doubles_nothing(
    api: Serving, world: OnBroker, stream: str, by_header: bool
) -> None:
    expected = record(api, world, stream, 6)
    cursor, found = "0", []
    for _ in expected:
        with api.follow(stream, **({"last": cursor} if by_header and cursor != "0" else {"after": cursor})) as events:
            event = next(events)
        assert event.event == "prediction"
        cursor = event.id
        found.append(cursor)
    assert found == expected


def test_the_last_event_id_goes_before_the_query(api: Serving, world: OnBroker, stream: str) -> None:
    expected = record(api, world, stream, 3)
    with api.follow(stream, after="0", last=expected[1]) as events:
        assert next(events).id == expected[2]


def test_records_that_come_while_the_past_is_read_come_once(api: Serving, world: OnBroker, stream: str) -> None:
    past = record(api, world, stream, 300)  # more than one page of the broker's
    with api.follow(stream, after="0") as events:
        first = take(events, 100)
        new = record(api, world, stream, 100)
        assert ids(first + take(events, 300)) == past + new


def test_every_subscriber_gets_every_record(api: Serving, world: OnBroker, stream: str) -> None:
    with api.follow(stream) as one, api.follow(stream) as two, api.follow(stream + "-other") as other:
        assert subscribers(api) == 3
        new = record(api, world, stream, 20)
        (others,) = record(api, world, stream + "-other")
        assert ids(take(one, 20)) == ids(take(two, 20)) == new
        assert next(other).id == others
    await_true(lambda: subscribers(api) == 0, "unsubscribed")


def test_silence_is_filled_with_comments(api: Serving, stream: str) -> None:
    with api.open(stream) as response:
        comments = [line for line, _ in zip(response.iter_lines(), range(8), strict=False) if line.startswith(":")]
    assert comments == [": heartbeat"] * 3


def test_a_gap_before_records_whose_predecessors_were_trimmed(api: Serving, world: OnBroker, stream: str) -> None:
    old = record(api, world, stream, 3)
    world.trim(stream)
    new = record(api, world, stream, 2)
    with api.follow(stream, last=old[0]) as events:
        gap, *rest = take(events, 3)
        assert (gap.event, gap.id) == ("gap", old[2])
        assert gap.body.items() >= {"after": old[0], "next": new[0], "reason": "trimmed"}.items()
        assert ids(rest) == new
    with api.follow(stream, last=gap.id) as events:  # told once
        assert [(event.event, event.id) for event in take(events, 2)] == [
            ("prediction", new[0]),
            ("prediction", new[1]),
        ]


def test_a_gap_when_no_record_is_left(api: Serving, world: OnBroker, stream: str) -> None:
    old = record(api, world, stream, 3)
    world.trim(stream)
    with api.follow(stream, after=old[0]) as events:
        gap = next(events)
        assert (gap.event, gap.id, gap.body["next"]) == ("gap", old[2], None)
        (new,) = record(api, world, stream)
        assert next(events).id == new
    with api.follow(stream, after=new) as events:  # at the end of what there was: no gap
        (newer,) = record(api, world, stream)
        assert (event := next(events)).event == "prediction"
        assert event.id == newer


def test_a_gap_when_the_cursor_is_from_a_lost_tail(api: Serving, world: OnBroker, stream: str) -> None:
    old = record(api, world, stream, 2)
    with api.follow(stream, last="9999999999999-0") as events:
        gap = next(events)
        assert (gap.event, gap.id, gap.body["reason"]) == ("gap", old[1], "lost")
        (new,) = record(api, world, stream)
        assert next(events).id == new


def test_a_gap_when_the_last_event_is_no_record_any_more(api: Serving, world: OnBroker, stream: str) -> None:
    """The log lost its tail and went on: the cursor lies between records that never had it between them."""
    old = record(api, world, stream, 2)
    new = api.post_rows(stream, ROW)
    between = f"{id_number(new) >> 64}-0" if not new.endswith("-0") else f"{(id_number(new) >> 64) - 1}-999"
    world.answer(stream, new)
    with api.follow(stream, last=between) as events:
        gap, event = take(events, 2)
        assert (gap.event, gap.id, gap.body["reason"]) == ("gap", old[1], "lost")
        assert event.id == new
    with api.follow(stream, after=between) as events:  # an id of a 202 need not be a record's
        assert next(events).event == "prediction"


def test_an_id_that_is_still_pending_is_a_cursor_without_a_gap(api: Serving, world: OnBroker, stream: str) -> None:
    record(api, world, stream, 2)
    pending = [api.post_rows(stream, ROW) for _ in range(3)]
    with api.follow(stream, after=pending[0]) as events:
        for entry_id in pending:
            world.answer(stream, entry_id)
        assert [(event.event, event.id) for event in take(events, 2)] == [
            ("prediction", pending[1]),
            ("prediction", pending[2]),
        ]


@pytest.mark.parametrize("cursor", ["x", "17", "1-2-3", "-1-0", "1-99999999999999999999", "17-0 "])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_bad_cursor(api: Serving, stream: str, cursor: str, accept: str) -> None:
    path = f"/v1/streams/{stream}/predictions"
    answer = api.http.get(path, params={"after": cursor}, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:rollcast:problem:bad-cursor")
    assert "after: " in answer.json()["detail"]
    if accept == "text/event-stream":
        answer = api.http.get(path, headers={"Accept": accept, "Last-Event-ID": cursor + "x"})
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:rollcast:problem:bad-cursor")
        assert "Last-Event-ID: " in answer.json()["detail"]


def subscribers(api: Serving) -> float:
    text = api.http.get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith('rollcast_subscribers{transport="sse"}')]
    return float(line.split()[-1])


# --- the broker goes and comes -----------------------------------------------------------------------------------


def test_subscribers_outlive_the_broker_and_resume_where_they_were(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "home")
    broker.start()
    world = OnBroker(broker.url, "t")
    world.serve("tiny")
    app = create_app(RedisPredictions(broker.url, "t", 4, timeout_s=1.0), MODELS, create_registry(), heartbeat_s=0.1)
    try:
        with Serving(app) as api, api.open("cam-1") as response:
            lines = response.iter_lines()
            first = api.post_rows("cam-1", ROW)
            world.answer("cam-1", first)
            await_line(lines, f"id: {first}")
            pending = api.post_rows("cam-1", ROW)
            broker.stop()
            await_line(lines, ": The broker cannot be reached", ": heartbeat")
            refused = api.http.post("/v1/streams/cam-1/samples", json={"samples": [ROW]})
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:rollcast:problem:broker-away")
            assert "retry-after" in refused.headers
            unready = api.http.get("/readyz")
            assert unready.status_code == 503
            assert "broker" in unready.json()["reasons"][0]
            assert api.http.get("/livez").status_code == 200
            broker.start()
            world.answer("cam-1", pending)
            await_line(lines, f"id: {pending}")
            await_true(lambda: api.http.get("/readyz").status_code == 200, "ready again")
            second = api.post_rows("cam-1", ROW)
            world.answer("cam-1", second)
            await_line(lines, f"id: {second}")
    finally:
        world.close()
        broker.stop()


def test_a_broker_that_comes_back_empty_gives_a_gap_and_then_what_is_new() -> None:
    memory = InMemory()
    memory.serve("tiny")
    with Serving(create_app(memory.predictions, MODELS, create_registry())) as api, api.follow("cam-1", "0") as events:
        old = [api.post_rows("cam-1", ROW) for _ in range(3)]
        for entry_id in old:
            memory.answer("cam-1", entry_id)
        assert ids(take(events, 3)) == old
        memory.begin_anew()
        memory.serve("tiny")
        gap = next(events)
        assert (gap.event, gap.id, gap.body["reason"]) == ("gap", "0-0", "lost")
        new = [api.post_rows("cam-1", ROW) for _ in range(2)]
        for entry_id in new:
            memory.answer("cam-1", entry_id)
        assert ids(take(events, 2)) == new


def await_line(lines: Iterator[str], *wanted: str) -> None:
    deadline = time.monotonic() + 5.0
    for line in lines:
        if line in wanted:
            return
        assert time.monotonic() < deadline, f"{wanted} did not come"


# --- stopping ----------------------------------------------------------------------------------------------------


def test_idle_subscribers_and_waits_do_not_hold_up_the_stop() -> None:
    memory = InMemory()
    memory.serve("tiny")
    serving = Serving(create_app(memory.predictions, MODELS, registry := create_registry()))
    answers: list[httpx.Response] = []
    with serving as api, api.follow("cam-1") as idle, api.follow("cam-2") as seen:
        for n in (1, 2):
            await_true(lambda: registry.get_sample_value("rollcast_subscribers", {"transport": "sse"}) == 2, f"{n}")
        entry_id = api.post_rows("cam-2", ROW)
        memory.answer("cam-2", entry_id)
        assert next(seen).id == entry_id
        path = f"{api.url}/v1/streams/cam-3/samples?wait=30"
        post = threading.Thread(target=lambda: answers.append(httpx.post(path, json={"samples": [ROW]}, timeout=40)))
        post.start()
        await_true(lambda: any("cam-3" in str(it.log) for it in memory.broker.shards), "the wait began")
        took_s = api.stop()
        post.join()
        byes = [next(idle), next(seen)]
    assert took_s < 8.0, "held up, it would take the 10 s of grace"
    assert [bye.event for bye in byes] == ["bye", "bye"]
    assert byes[1].id == entry_id
    assert answers[0].status_code == 504
    assert "before the server stopped" in answers[0].json()["detail"]
    assert answers[0].json()["stopping"] is True


# --- JSON pages --------------------------------------------------------------------------------------------------


def get(api: Serving, stream: str, **query: object) -> dict[str, object]:
    answer = api.http.get(f"/v1/streams/{stream}/predictions", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    body: dict[str, object] = answer.json()
    return body


def page_ids(page: dict[str, object]) -> list[str]:
    return [found["id"] for found in page["predictions"]]  # type: ignore[attr-defined]


def test_json_is_the_newest_records_ascending(api: Serving, world: OnBroker, stream: str) -> None:
    expected = record(api, world, stream, 120)
    assert page_ids(get(api, stream)) == expected[20:]
    page = get(api, stream, limit=3)
    assert page_ids(page) == expected[-3:]
    assert (page["next"], page["gap"]) == (expected[-1], False)


def test_json_pages_follow_each_other(api: Serving, world: OnBroker, stream: str) -> None:
    expected = record(api, world, stream, 10)
    cursor, found = "0", []
    while page := get(api, stream, after=cursor, limit=4):
        if not page["predictions"]:
            break
        found += page_ids(page)
        cursor = str(page["next"])
    assert found == expected
    assert get(api, stream, after=cursor) == {"predictions": [], "next": cursor, "gap": False}


def test_json_gives_predictions_unless_another_type_is_asked_for(api: Serving, world: OnBroker, stream: str) -> None:
    one, two, three = (record(api, world, stream, 1, kind)[0] for kind in ("prediction", "refused", "done"))
    assert page_ids(get(api, stream)) == [one]
    assert page_ids(get(api, stream, type="refused")) == [two]
    assert page_ids(get(api, stream, type="all")) == [one, two, three]
    page = get(api, stream, after=one)
    assert (page["predictions"], page["next"]) == ([], three)


def test_json_says_where_records_are_missing(api: Serving, world: OnBroker, stream: str) -> None:
    old = record(api, world, stream, 2)
    world.trim(stream)
    assert get(api, stream, after="0") == {"predictions": [], "next": old[1], "gap": True}
    (new,) = record(api, world, stream)
    page = get(api, stream, after="0")
    assert (page_ids(page), page["gap"]) == ([new], True)
    assert get(api, stream, after=old[1])["gap"] is False


def test_json_of_a_stream_nobody_posted_to_is_empty(api: Serving, stream: str) -> None:
    assert get(api, stream) == {"predictions": [], "next": "0-0", "gap": False}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "type=predictions", "aftr=0", "type=all&type=done"]
)
def test_a_bad_query(api: Serving, stream: str, query: str) -> None:
    answer = api.http.get(f"/v1/streams/{stream}/predictions?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert query.partition("=")[0] in answer.json()["detail"]


def test_the_body_of_a_page_is_json_whatever_the_records_hold(api: Serving, world: OnBroker, stream: str) -> None:
    entry_id = api.post_rows(stream, ROW)
    body = world.answer(stream, entry_id)
    assert get(api, stream)["predictions"] == [json.loads(body)]
