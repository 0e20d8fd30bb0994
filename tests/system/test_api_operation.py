"""Models, streams, health, metrics and documentation over HTTP, and errors that no call foresees."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import VERSION
from service.api import create_app
from service.contracts import FrameInput
from service.metrics import WorkerMetrics, create_registry, serve_metrics
from tests.answering import PATIENT, InMemory, OnBroker
from tests.deployment import rollcast
from tests.doubles import tiny_manifest
from tests.serving import Serving, await_true

ROW = [1.0, 2.0, 3.0]
MODELS = [
    tiny_manifest("tiny"),
    tiny_manifest("bright", kind="frame", states=[], rows=None, frames=FrameInput(8, 8, 1, "gray")),
]
PARITY = {"tiny": {"steps equal sequence": 1.5e-7}}


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"operation-{threading.get_native_id()}")
    on_broker.serve("tiny")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    with Serving(create_app(world.predictions, MODELS, create_registry(), parity=PARITY, bounds=PATIENT)) as serving:
        yield serving


# --- models and streams ------------------------------------------------------------------------------------------


def test_models_are_listed_with_what_was_proven_of_them(api: Serving) -> None:
    await_true(lambda: api.http.get("/v1/models").json()["models"][1]["served"], "the worker is seen")
    bright, tiny = api.http.get("/v1/models").json()["models"]
    assert (bright["name"], bright["kind"], bright["served"], bright["parity"]) == ("bright", "frame", False, {})
    assert tiny["labels"] == MODELS[0].labels
    assert tiny["rows"]["features"] == ["x0", "x1", "x2"]
    assert tiny["parity"] == PARITY["tiny"]
    assert api.http.get("/v1/models/tiny").json() == tiny


def test_the_version_is_the_same_wherever_it_is_shown(api: Serving) -> None:
    shown = {
        api.http.get("/v1/models").json()["rollcast"],
        api.http.get("/").json()["version"],
        api.http.get("/openapi.json").json()["info"]["version"],
        rollcast("--version").stdout.removeprefix("rollcast ").strip(),
    }
    assert shown == {VERSION}
    assert f'rollcast_build_info{{version="{VERSION}"}} 1.0' in api.http.get("/metrics").text


def test_a_model_nobody_knows(api: Serving) -> None:
    answer = api.http.get("/v1/models/nope")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:rollcast:problem:unknown-model")
    assert "bright, tiny" in answer.json()["detail"]


def test_streams_are_listed_with_their_last_prediction(world: OnBroker, broker_url: str, prefix: str) -> None:
    own = OnBroker(broker_url, prefix)
    own.serve("tiny")
    with Serving(create_app(own.predictions, MODELS, create_registry())) as api:
        assert api.http.get("/v1/streams").json() == {"streams": [], "next": None}
        for n in range(5):
            entry_id = api.post_rows(f"belt-{n}", ROW)
            body = own.answer(f"belt-{n}", entry_id, step=n + 1)
        refused = api.post_rows("belt-4", ROW)
        own.answer("belt-4", refused, "refused")
        page = api.http.get("/v1/streams", params={"limit": 3}).json()
        rest = api.http.get("/v1/streams", params={"limit": 3, "after": page["next"]}).json()
        assert [row["stream"] for row in page["streams"] + rest["streams"]] == [f"belt-{n}" for n in range(5)]
        assert rest["next"] is None
        last = rest["streams"][-1]
        assert last.items() >= {
            "model": "tiny", "steps": 5, "label": "label0", "score": 0.7, "last_entry": refused, "last_record": refused,
        }.items()  # fmt: skip
        one = api.http.get("/v1/streams/belt-4").json()
        assert (one["last"]["type"], one["steps"], one["last"]["id"]) == ("refused", 5, refused)
        assert '"step":5' in body
    own.close()


def test_a_stream_nobody_knows(api: Serving) -> None:
    answer = api.http.get("/v1/streams/no-such")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:rollcast:problem:unknown-stream")
    answer = api.http.get("/v1/streams/-bad")
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:rollcast:problem:bad-stream-id")


# --- health ------------------------------------------------------------------------------------------------------


def test_ready_means_that_an_entry_would_be_answered() -> None:
    memory = InMemory()
    with Serving(create_app(memory.predictions, MODELS, create_registry())) as api:
        assert api.http.get("/livez").json() == {"live": True}
        unready = api.http.get("/readyz")
        await_true(lambda: "no worker" in api.http.get("/readyz").text, "measured")
        unready = api.http.get("/readyz")
        assert unready.status_code == 503
        assert unready.json() == {
            "ready": False,
            "reasons": [
                "no worker serves model bright",
                "no worker serves model tiny",
                "4 of 4 shards have no owner: 0, 1, 2, 3",
            ],
        }
        memory.serve("tiny", "bright")
        await_true(lambda: api.http.get("/readyz").status_code == 200, "ready")
        assert api.http.get("/readyz").json() == {"ready": True, "reasons": []}


# --- metrics -----------------------------------------------------------------------------------------------------


def test_metrics_are_ours_and_the_workers(world: OnBroker, broker_url: str, prefix: str) -> None:
    registry = create_registry()
    worker_metrics = WorkerMetrics(registry)
    worker_metrics.steps.labels("tiny").inc(42)
    worker_metrics.stage_seconds.labels("step").observe(0.001)
    worker_metrics.predicted.labels("tiny", 'a "{b}"\nc\u2028d').inc()
    server = serve_metrics(registry, 0, list, list)
    own = OnBroker(broker_url, prefix)
    own.serve("tiny", metrics=f"http://127.0.0.1:{server.port}/metrics")
    with Serving(create_app(own.predictions, MODELS, create_registry())) as api:
        api.post_rows("belt-1", ROW)
        api.http.post("/v1/streams/belt-1/samples")
        api.http.get("/nothing")
        answers: list[httpx.Response] = []

        def measured() -> bool:
            answers.append(api.http.get("/metrics"))
            return all(text in answers[-1].text for text in ('process="worker-0"', 'rollcast_lag_entries{shard="3"}'))

        await_true(measured, "the worker is seen and shards are measured")
        answer = answers[-1]
    server.close()
    own.close()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    found = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    assert found["rollcast_steps_total", ("model", "tiny"), ("process", "worker-0")] == 42
    assert found["rollcast_stage_seconds_count", ("process", "worker-0"), ("stage", "step")] == 1
    assert found[("rollcast_fenced_total", ("process", "worker-0"))] == 0
    odd = ("label", 'a "{b}"\nc\u2028d')
    assert found["rollcast_predicted_total", odd, ("model", "tiny"), ("process", "worker-0")] == 1
    route = ("route", "/v1/streams/{stream}/samples")
    assert found["rollcast_http_request_seconds_count", route, ("status", "202")] == 1
    assert found["rollcast_http_request_seconds_count", route, ("status", "415")] == 1
    assert found["rollcast_http_request_seconds_count", ("route", "unmatched"), ("status", "404")] == 1
    assert found["rollcast_shard_owned", ("shard", "0")] == 1
    assert ("process_cpu_seconds_total",) in found
    assert ("process_cpu_seconds_total", ("process", "worker-0")) in found


def test_a_worker_that_does_not_answer_is_left_out(broker_url: str, prefix: str) -> None:
    own = OnBroker(broker_url, prefix)
    own.serve("tiny", metrics="http://127.0.0.1:1/metrics")
    with Serving(create_app(own.predictions, MODELS, create_registry())) as api:
        await_true(lambda: api.http.get("/v1/models").json()["models"][1]["served"], "the worker is seen")
        answer = api.http.get("/metrics")
        assert answer.status_code == 200
        assert "rollcast_subscriber_drops_total 0.0" in answer.text
    own.close()


# --- what no call foresees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/streams/a/b/c", 404, "not-found"),
        ("DELETE", "/v1/streams/cam-1/samples", 405, "method-not-allowed"),
        ("POST", "/v1/models", 405, "method-not-allowed"),
    ],
)
def test_a_call_that_does_not_exist(api: Serving, method: str, path: str, status: int, kind: str) -> None:
    answer = api.http.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:rollcast:problem:{kind}")
    assert path in answer.json()["detail"]
    assert ("allow" in answer.headers) == (status == 405)


def test_a_fault_of_the_server_says_nothing_of_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = InMemory()

    async def broken(after: str, limit: int) -> list[object]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(memory.predictions, "streams", broken)
    with Serving(create_app(memory.predictions, MODELS, create_registry())) as api:
        answer = api.http.get("/v1/streams")
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:rollcast:problem:internal")
        assert "secret" not in answer.text
        assert 'route="/v1/streams",status="500"' in api.http.get("/metrics").text


# --- documentation -----------------------------------------------------------------------------------------------


def test_the_openapi_document_is_complete(api: Serving) -> None:
    document = api.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/streams/{stream}/frames",
        "/v1/streams/{stream}/samples",
        "/v1/streams/{stream}/text",
        "/v1/predictions",
        "/v1/streams/{stream}/entries",
        "/v1/entries",
        "/v1/streams/{stream}/predictions",
        "/v1/streams",
        "/v1/streams/{stream}",
        "/v1/streams/{stream}/state",
        "/v1/dead",
        "/v1/dead/{stream}/{id}",
        "/v1/dead/{stream}/{id}/retry",
        "/v1/models",
        "/v1/models/{name}",
        "/metrics",
        "/livez",
        "/readyz",
    }
    post = document["paths"]["/v1/streams/{stream}/samples"]["post"]
    assert set(post["requestBody"]["content"]) == {"application/json", "text/csv", "application/octet-stream"}
    assert {p["name"] for p in post["parameters"]} == {
        "stream", "model", "seq", "time", "start", "end", "wait", "ack", "interval_s",
    }  # fmt: skip
    statuses = {"200", "202", "400", "403", "404", "408", "409", "410", "413", "415", "421", "422", "429", "431"}
    statuses |= {"500", "501", "503", "504"}
    assert set(post["responses"]) == statuses
    for path in document["paths"].values():
        for call in path.values():
            assert call["summary"]
            assert call["description"]
            for status, answer in call["responses"].items():
                if int(status) >= 400 and "readyz" not in str(call["operationId"]):
                    assert set(answer["content"]) == {"application/problem+json"}


def test_every_reference_in_the_openapi_document_leads_somewhere(api: Serving) -> None:
    text = api.http.get("/openapi.json").text
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(schemas)
    assert {"Prediction", "Problem", "Manifest", "StreamSummary"} <= named | set(schemas)
    assert "ValidationError" not in text


def test_the_documentation_can_be_read(api: Serving) -> None:
    assert "/openapi.json" in api.http.get("/docs").text
    assert api.http.get("/").json()["docs"] == "/docs"
