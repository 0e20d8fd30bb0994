"""The life of a stream over HTTP: settings, state, reset, delete, backpressure, quarantine; a worker behind it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from rollcast.client import Client
from service.api import Bounds
from service.codec import entry_fields
from service.contracts import GapPolicy
from service.controls import Control, NewSettings, encode_control
from service.embedded import EmbeddedBroker
from service.keys import shard_of, worker_key, workers_key
from service.portable import MEDIA_TYPE, read_state
from service.ports import WorkerInfo
from tests.conftest import needs
from tests.doubles import BrightnessEngine, TinyEngine, tiny_manifest
from tests.living import Living, living, schema
from tests.serving import await_true
from tests.worlds import SHARDS, MemoryWorld

ROW = [1.0, 2.0, 3.0]
ENGINES = TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("other"), seed=1), BrightnessEngine()


pytestmark = pytest.mark.usefixtures("quick_monitor")


@pytest.fixture(params=["memory", "valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def url(kind: str, start_broker: Callable[[str], EmbeddedBroker]) -> str:
    return "" if kind == "memory" else start_broker(kind).url


@pytest.fixture
def life(kind: str, url: str, prefix: str) -> Iterator[Living]:
    with living(kind, url, prefix, *ENGINES) as life, life.worker():
        yield life


def predict(life: Living, stream: str, row: list[float] = ROW, **query: Any) -> dict[str, Any]:
    path = f"/v1/streams/{stream}/samples"
    answer = life.api.http.post(path, json={"samples": [row]}, params={"wait": 5} | query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("urn:rollcast:problem:")


def put(life: Living, stream: str, settings: dict[str, Any], **query: Any) -> httpx.Response:
    return life.api.http.put(f"/v1/streams/{stream}", json=settings, params=query)


# --- settings ----------------------------------------------------------------------------------------------------


def test_put_sets_a_streams_settings_and_its_model_for_the_very_next_post(life: Living) -> None:
    predict(life, "a", model="tiny")
    refused = life.api.http.post("/v1/streams/a/samples", json={"samples": [ROW]}, params={"model": "other"})
    assert problem(refused) == (409, "other-model")
    done = put(life, "a", {"model": "other", "gap": {"policy": "reset", "gap_s": 2.0}, "state_ttl_s": 60})
    assert done.status_code == 200
    assert (done.json()["type"], done.json()["action"]) == ("done", "settings")
    body = predict(life, "a")
    assert (body["model"], body["step"], body["restarted"]) == ("other", 1, "version")
    assert life.api.http.get("/v1/streams/a").json()["settings"] == {
        "model": "other", "gap": {"policy": "reset", "gap_s": 2.0}, "state_ttl_s": 60.0,
    }  # fmt: skip


def test_an_api_process_hears_of_settings_that_others_changed(life: Living) -> None:
    for stream in "ab":
        predict(life, stream, model="tiny")
        predict(life, stream)  # from here on the api remembers the model
        control = Control("settings", NewSettings(model="other"))
        life.world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": encode_control(control)})
        await_true(lambda s=stream: life.api.http.get(f"/v1/streams/{s}").json()["model"] == "other", "carried out")
        if stream == "a":
            assert predict(life, "a", model="other")["restarted"] == "version", "a refusal is not given on old news"
    path, query = "/v1/streams/b/samples", {"wait": 5}
    await_true(
        lambda: life.api.http.post(path, json={"samples": [ROW]}, params=query).json().get("model") == "other",
        "and after a moment there is none",
    )


def test_put_may_be_answered_before_its_turn(life: Living) -> None:
    answer = put(life, "a", {"model": "tiny"}, wait=0)
    assert answer.status_code == 202
    assert set(answer.json()) == {"id", "stream"}
    await_true(lambda: life.api.http.get("/v1/streams/a").status_code == 200, "carried out")
    assert predict(life, "a")["model"] == "tiny"


@pytest.mark.parametrize(
    ("settings", "expected", "words"),
    [
        ({"model": "nobody"}, (404, "unknown-model"), "brightness, other, tiny"),
        ({"modle": "tiny"}, (400, "malformed"), "modle"),
        ({"state_ttl_s": -1}, (400, "malformed"), "state_ttl_s"),
        ({"rolling": {"enter": 2}}, (400, "malformed"), "enter"),
        ({"state_ttl_s": 1e6}, (422, "refused"), "state_ttl_s"),
    ],
)
def test_settings_that_are_wrong(life: Living, settings: dict[str, Any], expected: tuple[int, str], words: str) -> None:
    answer = put(life, "a", settings)
    assert problem(answer) == expected
    assert words in answer.json()["detail"]


# --- state -------------------------------------------------------------------------------------------------------


def save(life: Living, stream: str) -> bytes:
    answer = life.api.http.get(f"/v1/streams/{stream}/state")
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
    return answer.content


def restore(life: Living, stream: str, state: bytes, media: str = MEDIA_TYPE) -> httpx.Response:
    return life.api.http.put(f"/v1/streams/{stream}/state", content=state, headers={"Content-Type": media})


@pytest.mark.parametrize("media", [MEDIA_TYPE, "application/octet-stream"])
def test_a_state_is_taken_away_and_put_into_another_stream_which_goes_on_alike(life: Living, media: str) -> None:
    for n in range(5):
        predict(life, "a", [n, 1.0, 2.0], model="tiny", time=n)
    predict(life, "b", model="tiny")
    done = restore(life, "b", save(life, "a"), media)
    assert (done.status_code, done.json()["action"]) == (200, "restore")
    one, other = (predict(life, stream, time=5) for stream in "ab")
    for name in ("step", "probabilities", "rolling", "restarted"):
        assert one[name] == other[name]
    assert one["step"] == 6


def test_a_state_says_what_it_is(life: Living) -> None:
    last = predict(life, "a", model="tiny", time=12.5)
    found = life.api.http.get("/v1/streams/a/state", headers={"Accept": "application/json"}).json()
    state = read_state(save(life, "a"))
    h = np.frombuffer(state.tensors["h"].data, "<f4").astype(np.float64)
    n = np.frombuffer(state.tensors["n"].data, "<i8")
    assert found["tensors"][0] == {
        "name": "h", "dtype": "float32", "shape": [6], "norm": pytest.approx(np.linalg.norm(h)),
    }  # fmt: skip
    assert found["norm"] == pytest.approx(float(np.sqrt((h**2).sum() + (n**2).sum())))
    manifest = ENGINES[0].manifest
    assert found.items() >= {
        "model": "tiny", "version": 1, "schema": schema(manifest), "steps": 1, "time": 12.5, "entry": last["id"],
    }.items()  # fmt: skip
    assert found["bytes"] == len(life.world.state("a") or b"")
    assert 0 <= found["age_s"] < 60
    assert (state.stream, state.entry, state.schema) == ("a", last["id"], schema(manifest))


def test_a_state_of_another_schema_model_or_with_nan_never_reaches_the_log(life: Living) -> None:
    predict(life, "a", model="tiny")
    state = read_state(save(life, "a"))
    before = life.api.http.get("/v1/streams/a").json()["last_entry"]

    def answer(**changes: Any) -> httpx.Response:
        return restore(life, "a", msgspec.msgpack.encode(msgspec.structs.replace(state, **changes)))

    other = answer(schema="f" * 16)
    assert problem(other) == (409, "other-schema")
    assert "'ffffffffffffffff'" in other.json()["detail"]
    assert repr(schema(ENGINES[0].manifest)) in other.json()["detail"]
    assert problem(answer(model="other")) == (409, "other-model")
    nan = msgspec.structs.replace(state.tensors["h"], data=np.full(6, np.nan, "<f4").tobytes())
    assert problem(answer(tensors=state.tensors | {"h": nan})) == (422, "non-finite")
    assert problem(restore(life, "a", b"no state")) == (400, "malformed")
    assert problem(restore(life, "a", save(life, "a"), "image/png")) == (415, "unsupported-media")
    assert problem(restore(life, "a", bytes(7 << 20))) == (413, "too-large")
    assert life.api.http.get("/v1/streams/a").json()["last_entry"] == before


def test_reset_drops_the_state_and_the_next_prediction_says_so(life: Living) -> None:
    predict(life, "a", model="tiny", seq=1)
    done = life.api.http.delete("/v1/streams/a/state")
    assert (done.status_code, done.json()["action"]) == (200, "reset")
    assert problem(life.api.http.get("/v1/streams/a/state")) == (404, "no-state")
    body = predict(life, "a", seq=2)
    assert (body["step"], body["restarted"]) == (1, "reset")


def test_a_state_that_the_served_package_does_not_understand_is_named_not_guessed(
    life: Living, kind: str, url: str
) -> None:
    predict(life, "a", model="tiny")
    upgraded = TinyEngine(tiny_manifest(version=2, count=3, sha256="0" * 64))
    if kind == "memory":
        newer = Living(life.world, life.predictions, upgraded)
        with newer.api:
            check_foreign_state(newer)
        return
    world: Any = life.world
    with living(kind, url, world.prefix, upgraded) as newer:
        check_foreign_state(newer)


def check_foreign_state(newer: Living) -> None:
    answer = newer.api.http.get("/v1/streams/a/state")
    assert problem(answer) == (409, "other-schema")
    assert repr(schema(ENGINES[0].manifest)) in answer.json()["detail"]
    assert repr("0" * 16) in answer.json()["detail"]
    found = newer.api.http.get("/v1/streams/a/state", headers={"Accept": "application/json"}).json()
    assert (found["version"], found["schema"], found["steps"]) == (1, schema(ENGINES[0].manifest), None)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_the_state_of_a_stream_nobody_knows(life: Living, method: str) -> None:
    assert problem(life.api.http.request(method, "/v1/streams/nobody/state")) == (404, "unknown-stream")


# --- delete, detail ----------------------------------------------------------------------------------------------


def test_a_deleted_stream_is_gone_and_its_name_is_free(life: Living) -> None:
    for n in range(3):
        predict(life, "a", model="tiny", seq=n)
    predict(life, "b", model="tiny")
    with life.api.follow("a", after="0") as events:
        assert [next(events).event for _ in range(3)] == ["prediction"] * 3
        done = life.api.http.delete("/v1/streams/a")
        assert (done.status_code, done.json()["action"]) == (200, "delete")
        assert next(events).event == "done", "who follows live is told"
    assert problem(life.api.http.get("/v1/streams/a")) == (404, "unknown-stream")
    assert problem(life.api.http.delete("/v1/streams/a")) == (404, "unknown-stream")
    assert [row["stream"] for row in life.api.http.get("/v1/streams").json()["streams"]] == ["b"]
    page = life.api.http.get("/v1/streams/a/predictions", params={"after": 0, "type": "all"}).json()
    assert ([record["id"] for record in page["predictions"]], page["gap"]) == ([done.json()["id"]], True)
    body = predict(life, "a", model="other", seq=0)
    assert (body["model"], body["step"], body["restarted"]) == ("other", 1, "first")
    assert [row["stream"] for row in life.api.http.get("/v1/streams", params={"limit": 1}).json()["streams"]] == ["a"]


def test_what_was_refused_for_its_stream_or_shard_is_no_stream_of_the_list(life: Living) -> None:
    predict(life, "a", model="tiny")
    predict(life, "b", model="tiny")
    assert life.api.http.delete("/v1/streams/b").status_code == 200  # the shard's settings have a revision now
    fields = entry_fields("a", "samples", np.array([ROW], "<f4").tobytes(), shape=(1, 3))
    for p in range(SHARDS):
        life.world.append("a", fields | {"stream": b"-bad"}, p)
        if p != shard_of("a", SHARDS):
            life.world.append("a", fields, p)
    await_true(lambda: len(life.api.http.get("/v1/dead").json()["dead"]) == 2 * SHARDS - 1, "all are refused")
    for limit in (1, 100):
        page = life.api.http.get("/v1/streams", params={"limit": limit}).json()
        assert ([row["stream"] for row in page["streams"]], page["next"]) == (["a"], None)
    assert page["streams"][0]["steps"] == 1


def test_what_somebody_else_wrote_among_a_streams_keys_stops_no_call(life: Living) -> None:
    for stream in "ab":
        predict(life, stream, model="tiny")
    for key in ("settings", "pos"):
        overwrite(life, key, "a", b"12")
    listed = life.api.http.get("/v1/streams").json()["streams"]
    assert [(row["stream"], row["model"]) for row in listed] == [("a", None), ("b", "tiny")]
    assert life.api.http.get("/v1/streams/a").json()["settings"] == {}
    assert problem(life.api.http.get("/v1/streams/a/state")) == (404, "no-state")
    body = predict(life, "a", model="tiny")  # the worker knew better
    assert (body["step"], body["restarted"]) == (2, None)
    assert life.api.http.get("/v1/streams/a").json()["last_entry"] == body["id"]


def overwrite(life: Living, key: str, stream: str, value: bytes) -> None:
    world: Any = life.world
    if isinstance(world, MemoryWorld):
        getattr(world.shards[shard_of(stream, SHARDS)], key)[stream] = value
    else:
        world.client.hset(getattr(world.keys[shard_of(stream, SHARDS)], key), stream, value)


def test_one_stream_shows_what_it_remembers_what_waits_and_its_settings(kind: str, url: str, prefix: str) -> None:
    with living(kind, url, prefix, *ENGINES) as life:
        with life.worker():
            put(life, "a", {"model": "tiny", "freshness": {"mode": "latest"}})
            last = predict(life, "a")
            keep_a_worker_listed(life)
        neighbour = next(f"n{n}" for n in range(99) if shard_of(f"n{n}", SHARDS) == shard_of("a", SHARDS))
        for stream in ("a", "a", neighbour):
            life.api.post_rows(stream, ROW, model="tiny")
        found: dict[str, Any] = {}

        def measured() -> bool:
            found.update(life.api.http.get("/v1/streams/a").json())
            return bool(found["backlog"] == {"entries": 2, "complete": True, "shard": 3})

        await_true(measured, "what waits is measured")
    assert found["settings"] == {"model": "tiny", "freshness": {"mode": "latest"}}
    assert (found["model"], found["steps"], found["last_entry"]) == ("tiny", 1, last["id"])
    assert (found["last"], found["last_record"]) == (last, last["id"])
    assert found["state"].items() >= {"model": "tiny", "steps": 1, "entry": last["id"]}.items()
    assert found["state"]["norm"] > 0
    assert found["state"]["bytes"] > 100


# --- backpressure ------------------------------------------------------------------------------------------------


def try_post(life: Living, stream: str) -> httpx.Response:
    return life.api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW] * 50}, params={"model": "tiny"})


def post_one(life: Living) -> httpx.Response:
    return life.api.http.post("/v1/streams/a/samples", json={"samples": [ROW]}, params={"model": "tiny"})


def elsewhere(stream: str) -> str:
    return next(f"n{n}" for n in range(99) if shard_of(f"n{n}", SHARDS) != shard_of(stream, SHARDS))


def test_a_shard_whose_worker_stopped_refuses_more_and_takes_it_again_when_there_is_room(
    kind: str, url: str, prefix: str
) -> None:
    with living(kind, url, prefix, *ENGINES, bounds=Bounds(bytes=20_000)) as life:
        with life.worker():
            predict(life, "a", model="tiny")
            keep_a_worker_listed(life)
        taken = []
        while (answer := try_post(life, "a")).status_code == 202:
            taken.append(answer.json()["id"])
            assert len(taken) < 1000
        assert problem(answer) == (429, "backlog-full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert len(taken) > 5, "many fit"
        assert try_post(life, elsewhere("a")).status_code == 202, "other shards do not suffer"
        list_it_no_more(life)
        with life.worker("w2"):
            await_true(lambda: try_post(life, "a").status_code == 202, "there is room again")
            await_true(lambda: set(taken) <= {record[0] for record in life.world.records("a")}, "nothing was dropped")


def test_what_follows_an_entry_that_had_no_room_is_refused_too_so_that_order_is_kept(
    kind: str, url: str, prefix: str
) -> None:
    with living(kind, url, prefix, *ENGINES, bounds=Bounds(bytes=20_000)) as life:
        with life.worker():
            predict(life, "a", model="tiny")
            keep_a_worker_listed(life)
        sizes = [50] * 60 + [1] * 300  # a small one would fit where a large one did not
        lines = [("a", n, size) for n, size in enumerate(sizes)] + [(elsewhere("a"), 0, 1)]
        body = [
            json.dumps({"kind": "samples", "stream": s, "seq": n, "samples": [ROW] * size, "model": "tiny"})
            for s, n, size in lines
        ]
        answer = life.api.http.post(
            "/v1/entries", content="\n".join(body), headers={"Content-Type": "application/x-ndjson"}
        )
        *mine, other = [json.loads(line) for line in answer.text.splitlines()]
    refused = [n for n, told in enumerate(mine) if "id" not in told]
    assert 5 < refused[0] < 60
    assert refused == list(range(refused[0], len(sizes)))
    assert {(told["status"], told["problem"]) for told in mine[refused[0] :]} == {
        (429, "urn:rollcast:problem:backlog-full")
    }
    assert "id" in other, "other shards do not suffer"


def keep_a_worker_listed(life: Living) -> None:
    """A stopped worker leaves at once, and a model that nobody serves is refused for that: one stays on the list."""
    predictions: Any = life.predictions
    if hasattr(predictions, "live"):
        return
    world: Any = life.world
    about = WorkerInfo("idle", {engine.manifest.name: 1 for engine in ENGINES}, "idle")
    world.client.zadd(workers_key(world.prefix), {"idle": time.time() * 1000 + 60_000})
    world.client.set(worker_key(world.prefix, "idle"), msgspec.json.encode(about))


def list_it_no_more(life: Living) -> None:
    """It would be left its share of the shards."""
    world: Any = life.world
    if not hasattr(life.predictions, "live"):
        world.client.zrem(workers_key(world.prefix), "idle")


def test_what_takes_too_long_is_refused_with_the_time_it_takes(kind: str, url: str, prefix: str) -> None:
    class Slow(TinyEngine):
        def run(self, x: Any, states: Any) -> Any:
            time.sleep(0.05 * x.shape[1])
            return super().run(x, states)

    slow = Slow(tiny_manifest())
    with living(kind, url, prefix, slow, bounds=Bounds(seconds=1.0)) as life, life.worker():
        answers = [post_one(life)]
        while answers[-1].status_code == 202:
            time.sleep(0.005)  # so that not too many are in before the rate is known
            answers.append(post_one(life))
        last = answers[-1]
        assert problem(last) == (429, "backlog-full")
        assert "s of work" in last.json()["detail"]
        assert 1 <= int(last.headers["retry-after"]) <= 60
        taken = [answer.json()["id"] for answer in answers[:-1]]
        await_true(lambda: post_one(life).status_code == 202, "there is room again", 20)
        await_true(lambda: set(taken) <= {record[0] for record in life.world.records("a")}, "nothing was dropped", 30)


def test_a_broker_that_is_nearly_full_is_503_and_deleting_is_still_taken() -> None:
    with living("memory", "", "", *ENGINES) as life, life.worker():
        predict(life, "a", model="tiny")
        predictions: Any = life.predictions
        predictions.memory = 86_000_000, 100_000_000
        await_true(lambda: try_post(life, "a").status_code == 503, "measured")
        answer = try_post(life, "a")
        assert problem(answer) == (503, "broker-full")
        assert "86,000,000 of 100,000,000" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert life.api.http.delete("/v1/streams/a").status_code == 200
        predictions.memory = 84_000_000, 100_000_000
        await_true(lambda: try_post(life, "a").status_code == 202, "measured")


@pytest.mark.parametrize("program", [None, "redis-server"])
def test_the_limit_of_a_real_broker_is_seen(program: str | None, tmp_path: Any) -> None:
    broker = EmbeddedBroker(tmp_path / "home", needs(program, program) if program else None)
    broker.start()
    try:
        with living("valkey", broker.url, "full", *ENGINES) as life, life.worker():
            world: Any = life.world
            used = world.client.info("memory")["used_memory"]
            world.client.config_set("maxmemory", int(used / 0.98))
            answers: list[httpx.Response] = []

            def refused() -> bool:
                answers.append(try_post(life, "a"))
                return answers[-1].status_code == 503

            await_true(refused, "measured")
            assert problem(answers[-1]) == (503, "broker-full")
            world.client.config_set("maxmemory", 0)
            await_true(lambda: try_post(life, "a").status_code == 202, "measured")
    finally:
        broker.stop()


# --- freshness ---------------------------------------------------------------------------------------------------


def test_where_only_the_latest_counts_what_is_old_is_410_and_has_its_record(kind: str, url: str, prefix: str) -> None:
    with living(kind, url, prefix, *ENGINES) as life:
        with life.worker():
            put(life, "a", {"model": "tiny", "freshness": {"mode": "latest"}})
            predict(life, "a")
            keep_a_worker_listed(life)
        for _ in range(5):
            life.api.post_rows("a", ROW)
        list_it_no_more(life)
        with life.worker("w2"):
            await_true(lambda: len(life.world.records("a")) == 7, "all are answered")
            bodies = [json.loads(record[2]) for record in life.world.records("a")]
            assert [body.get("reason") or body["type"] for body in bodies[2:]] == ["superseded"] * 4 + ["prediction"]
            assert bodies[-1]["step"] == 2
            put(life, "a", {"freshness": {"mode": "latest", "max_age_s": 1e-6}})
            stale = life.api.http.post("/v1/streams/a/samples", json={"samples": [ROW]}, params={"wait": 5})
            assert problem(stale) == (410, "dropped")
            assert stale.json()["reason"] == "stale"
            put(life, "a", {})
            assert predict(life, "a")["step"] == 3, "every one again"


# --- quarantine --------------------------------------------------------------------------------------------------


def refuse(life: Living, stream: str, value: float = np.nan, **more: Any) -> str:
    """An entry put straight into the log, which the worker refuses. Its id."""
    data = np.array([[1, value, 3]], "<f4").tobytes()
    fields = entry_fields(stream, "samples", data, model="tiny", shape=(1, 3), **more)
    entry_id = life.world.append(stream, fields)
    await_true(lambda: entry_id in [record[0] for record in life.world.records(stream)], "refused")
    return entry_id


@pytest.mark.parametrize("streams", ["aabb", "bbbb", "aaaa", "abcd"])
def test_a_full_page_of_quarantine_that_is_the_last_one_says_so(life: Living, streams: str) -> None:
    """Wherever the last of them lie: in the last shard (`a`), or with empty shards behind theirs (`b`)."""
    ids = {refuse(life, stream) for stream in streams}
    pages: list[list[str]] = []
    after: dict[str, str] = {}
    while not pages or after["after"]:
        assert len(pages) < 2
        page = life.api.http.get("/v1/dead", params={"limit": 2} | after).json()
        pages.append([row["id"] for row in page["dead"]])
        after = {"after": page["next"]}
    assert [len(page) for page in pages] == [2, 2]
    assert {one for page in pages for one in page} == ids


def test_quarantine_is_listed_page_by_page_and_by_stream_and_reason(life: Living) -> None:
    ids = {(stream, refuse(life, stream)) for stream in ("a", "b", "c", "d", "e", "a")}
    odd = life.world.append("a", {"stream": b"a", "kind": b"movie", "data": b"xyz"})
    await_true(lambda: odd in [record[0] for record in life.world.records("a")], "refused")
    found, after = [], None
    for _ in range(10):
        query = {"limit": 2} | ({"after": after} if after else {})
        page = life.api.http.get("/v1/dead", params=query).json()
        assert len(page["dead"]) <= 2
        found += page["dead"]
        if (after := page["next"]) is None:
            break
    assert {(row["stream"], row["id"]) for row in found} == ids | {("a", odd)}
    assert len(found) == 7
    mine = life.api.http.get("/v1/dead", params={"stream": "a", "reason": "malformed"}).json()["dead"]
    assert [(row["id"], row["kind"], row["bytes"], row["shard"]) for row in mine] == [
        (odd, "movie", 3, shard_of("a", SHARDS))
    ]
    assert "expected one of" in mine[0]["detail"]
    assert problem(life.api.http.get("/v1/dead", params={"after": "bad"})) == (400, "bad-cursor")


def test_a_refused_entry_is_shown_with_its_bytes_and_fields(life: Living) -> None:
    entry_id = refuse(life, "a", seq=4, time=12.5, traceparent="00-1-2-3")
    path = f"/v1/dead/a/{entry_id}"
    found = life.api.http.get(path).json()
    data = np.array([[1, np.nan, 3]], "<f4").tobytes()
    assert base64.b64decode(found["data"]) == data
    assert (found["reason"], found["id"], found["stream"], found["bytes"]) == ("non_finite", entry_id, "a", 12)
    assert found["fields"] == {
        "model": "tiny", "seq": "4", "time": "12.5", "traceparent": "00-1-2-3", "shape": "1,3",
    }  # fmt: skip
    raw = life.api.http.get(path, headers={"Accept": "application/octet-stream"})
    assert (raw.headers["content-type"], raw.content) == ("application/octet-stream", data)
    dropped = life.api.http.delete(path)
    assert dropped.json() == {"id": entry_id, "stream": "a", "dropped": True}
    for answer in (life.api.http.get(path), life.api.http.delete(path), life.api.http.post(f"{path}/retry")):
        assert problem(answer) == (404, "not-in-quarantine")
    assert entry_id in [record[0] for record in life.world.records("a")], "its record stays"


def test_an_entry_without_a_legal_stream_is_found_too_but_has_nowhere_to_go(life: Living) -> None:
    entry_id = life.world.append("a", {"stream": b"-bad", "kind": b"samples", "shape": b"1,3", "data": bytes(12)})
    await_true(lambda: life.api.http.get("/v1/dead").json()["dead"], "refused")
    path = f"/v1/dead/%3F/{entry_id}"
    assert life.api.http.get(path).json()["reason"] == "bad_stream"
    assert problem(life.api.http.post(f"{path}/retry")) == (400, "bad-stream-id")


def test_a_retry_is_a_new_entry_whose_record_names_the_old_one(life: Living) -> None:
    predict(life, "a", model="tiny", seq=1)
    fields = entry_fields(
        "a", "samples", np.array([ROW], "<f4").tobytes(), model="later", shape=(1, 3), seq=2, time=1.0, start=True
    )
    old = life.world.append("a", fields)
    await_true(lambda: old in [record[0] for record in life.world.records("a")], "refused")
    predict(life, "a", seq=3)
    path = f"/v1/dead/a/{old}"
    again = life.api.http.post(f"{path}/retry", params={"wait": 5})
    assert problem(again) == (422, "refused"), "the model is still unknown"
    again = life.api.http.post(f"{path}/retry", params={"wait": 5, "model": "tiny"})
    assert again.status_code == 200, again.text
    body = again.json()
    assert (body["retry_of"], body["step"], body["restarted"]) == (old, 3, None), "at the end of the stream"
    assert body["id"] != old
    assert "retry_of" not in predict(life, "a", seq=4)
    kept = life.api.http.get("/v1/dead", params={"stream": "a"}).json()["dead"]
    assert len(kept) == 2, "the old one stays, and the failed retry is there too"
    (failed,) = [row["id"] for row in kept if row["id"] != old]
    assert life.api.http.get(f"/v1/dead/a/{failed}").json()["fields"]["retry_of"] == old
    refused = [json.loads(record[2]) for record in life.world.records("a") if record[0] == failed]
    assert refused[0]["retry_of"] == old
    done = life.api.http.post(f"{path}/retry", params={"model": "tiny", "drop": 1})
    assert done.status_code == 202
    assert done.json().items() >= {"stream": "a", "retry_of": old, "dropped": True}.items()
    assert problem(life.api.http.get(path)) == (404, "not-in-quarantine")


def test_many_are_dropped_by_one_call_by_stream_by_reason_or_all(life: Living) -> None:
    for stream in ("a", "b", "c", "a"):
        refuse(life, stream)
    odd = life.world.append("a", {"stream": b"a", "kind": b"movie", "data": b"xyz"})
    await_true(lambda: odd in [record[0] for record in life.world.records("a")], "refused")

    def drop(**query: Any) -> httpx.Response:
        return life.api.http.delete("/v1/dead", params=query)

    for query in ({}, {"all": 0}, {"all": 1, "stream": "a"}, {"after": ""}):
        assert problem(drop(**query)) == (400, "bad-request"), query
    assert problem(drop(stream="a", after="bad")) == (400, "bad-cursor")
    assert drop(stream="a", reason="bad_image").json() == {"dropped": 0, "next": None}
    assert drop(stream="a", reason="non_finite").json() == {"dropped": 2, "next": None}
    assert drop(reason="malformed").json() == {"dropped": 1, "next": None}
    with Client(life.api.url) as client:
        assert sorted(row["stream"] for row in client.dead()) == ["b", "c"]
        assert client.drop_all_dead(stream="b") == 1
        assert client.drop_all_dead(everything=True) == 1
        assert list(client.dead()) == []
        assert client.drop_all_dead(everything=True) == 0


def test_what_is_known_to_be_refused_again_is_not_tried_again(life: Living) -> None:
    odd = life.world.append("a", {"stream": b"a", "kind": b"samples", "shape": b"1,4", "data": bytes(12)})
    await_true(lambda: odd in [record[0] for record in life.world.records("a")], "refused")
    assert problem(life.api.http.post(f"/v1/dead/a/{odd}/retry")) == (422, "wrong-shape")
    large = life.world.append("a", {"stream": b"a", "kind": b"frame", "data": bytes((8 << 20) + 1)})
    await_true(lambda: large in [record[0] for record in life.world.records("a")], "refused")
    assert problem(life.api.http.post(f"/v1/dead/a/{large}/retry")) == (413, "too-large")
    assert len(life.world.records("a")) == 2


def test_what_is_too_large_for_quarantine_is_shown_without_its_bytes(kind: str, url: str, prefix: str) -> None:
    with living(kind, url, prefix, *ENGINES) as life, life.worker(dead_bytes=100_000):
        entry_id = life.world.append("a", {"stream": b"a", "kind": b"movie", "data": bytes(90_000)})
        await_true(lambda: entry_id in [record[0] for record in life.world.records("a")], "refused")
        path = f"/v1/dead/a/{entry_id}"
        found = life.api.http.get(path).json()
        assert (found["bytes"], found["data"], found["reason"]) == (90_000, None, "malformed")
        raw = life.api.http.get(path, headers={"Accept": "application/octet-stream"})
        for answer in (raw, life.api.http.post(f"{path}/retry")):
            assert problem(answer)[0] in (400, 404), "there is nothing to give or to try"
        assert problem(raw) == (404, "not-in-quarantine")
        assert life.api.http.delete(path).json()["dropped"]


# --- streams without number --------------------------------------------------------------------------------------


@pytest.fixture
def few(kind: str, url: str, prefix: str) -> Iterator[Living]:
    """A deployment that may have four streams."""
    with living(kind, url, prefix, *ENGINES, bounds=Bounds(streams=4)) as life, life.worker():
        yield life


def test_a_new_stream_beyond_the_bound_is_turned_away_and_those_that_are_there_go_on(few: Living) -> None:
    http = few.api.http
    lines = [{"stream": f"s{n}", "kind": "samples", "samples": [ROW], "model": "tiny"} for n in (0, 1, 0, 2)]

    def many() -> list[dict[str, Any]]:
        body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        answer = http.post("/v1/entries", content=body, headers={"Content-Type": "application/x-ndjson"})
        return [json.loads(line) for line in answer.text.splitlines()]

    assert all("id" in answer for answer in many())
    await_true(lambda: len(http.get("/v1/streams").json()["streams"]) == 3, "all are answered")
    assert put(few, "s3", {"model": "tiny"}).status_code == 200
    lines += [{**lines[0], "stream": name} for name in ("s4", "s3", "s5", "s4")]
    answers = many()
    assert ["id" in answer for answer in answers] == [True] * 4 + [False, True, False, False]
    assert (answers[4]["problem"], answers[4]["retry_after_s"]) == ("urn:rollcast:problem:too-many-streams", 60.0)
    path = "/v1/streams/s6"
    for refused in (
        http.post(f"{path}/samples", json={"samples": [ROW]}, params={"model": "tiny"}),
        put(few, "s6", {"model": "tiny"}),
    ):
        assert problem(refused) == (429, "too-many-streams")
        assert refused.headers["Retry-After"] == "60"
        assert "max_streams" in refused.json()["detail"]
    for n in range(4):
        assert predict(few, f"s{n}")["stream"] == f"s{n}"
    shown = http.get("/metrics").text
    assert 'rollcast_turned_away_total{reason="too_many_streams"} 5.0' in shown
    assert "rollcast_streams_limit 4.0" in shown
    await_true(lambda: "rollcast_streams_known 4.0" in http.get("/metrics").text, "all are counted")


def test_a_known_stream_without_a_model_is_no_new_one_and_what_others_put_there_counts(few: Living) -> None:
    for stream in ("a", "b", "c", "d", "e"):
        refuse(few, stream)  # straight into the log: never turned away
    path, query = "/v1/streams/{}/samples", {"model": "tiny", "wait": 5}

    def post(stream: str) -> httpx.Response:
        return few.api.http.post(path.format(stream), json={"samples": [ROW]}, params=query)

    await_true(lambda: "rollcast_streams_known 5.0" in few.api.http.get("/metrics").text, "they are counted")
    assert problem(post("z")) == (429, "too-many-streams")
    assert [post(stream).status_code for stream in ("a", "e")] == [200, 200]


# --- seq over HTTP -----------------------------------------------------------------------------------------------


def test_a_hole_in_seq_is_told_and_a_repeat_after_a_restart_is_a_duplicate(kind: str, url: str, prefix: str) -> None:
    reset = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 5.0)))
    with living(kind, url, prefix, reset) as life:
        with life.worker():
            first = predict(life, "a", seq=1)
            hole = predict(life, "a", seq=5)
        assert (hole["missed"], hole["restarted"], hole["step"]) == (3, "gap", 1)
        with life.worker("w2"):
            life.api.http.delete("/v1/streams/a/state")
            repeated = life.api.http.post(
                "/v1/streams/a/samples", json={"samples": [ROW]}, params={"seq": 5, "wait": 5}
            )
            assert problem(repeated) == (409, "duplicate")
            assert repeated.json()["of"] == hole["id"]
            late = life.api.http.post("/v1/streams/a/samples", json={"samples": [ROW]}, params={"seq": 1, "wait": 5})
            assert problem(late) == (410, "dropped")
    assert "missed" not in first
