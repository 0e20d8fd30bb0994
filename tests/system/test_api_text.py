"""Posting texts over HTTP, in the same shape as rows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import msgspec
import pytest
from websockets.sync.client import connect

from service.api import Limits, create_app
from service.contracts import TextInput
from service.metrics import create_registry
from tests.answering import OnBroker
from tests.doubles import tiny_manifest
from tests.serving import Serving
from tests.system.test_api_posting import entry, is_problem

LIMITS = Limits(frame_bytes=1000, entry_bytes=1000, pixels=100)
MODELS = [
    tiny_manifest("reader", kind="text", rows=None, text=TextInput()),
    tiny_manifest("short", kind="text", rows=None, text=TextInput(max_tokens=2)),
    tiny_manifest("tiny"),
]


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"texts-{threading.get_native_id()}", 4)
    on_broker.serve("reader", "short", "tiny")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    with Serving(
        create_app(world.predictions, MODELS, create_registry(), defaults={"text": "reader"}, limits=LIMITS)
    ) as serving:
        yield serving


@pytest.fixture
def stream(prefix: str) -> str:
    return f"t-{prefix}"


def test_a_text_lands_in_the_log_as_utf8(api: Serving, world: OnBroker, stream: str) -> None:
    answer = api.http.post(
        f"/v1/streams/{stream}/text",
        content="ein schöner Film".encode(),
        headers={"Content-Type": "text/plain; charset=utf-8"},
        params={"seq": 3, "time": 12.5, "end": 1},
    )
    assert answer.status_code == 202, answer.text
    found = entry(world, stream)
    assert answer.json() == {"id": found.id.decode(), "stream": stream, "model": "reader"}
    assert (found.kind, found.data.decode(), found.model) == ("text", "ein schöner Film", "reader")
    assert (found.seq, found.time, found.end) == (3, 12.5, True)


def test_a_text_may_come_as_json_with_its_time(api: Serving, world: OnBroker, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/text", json={"text": "a film", "time": 7.5})
    assert answer.status_code == 202, answer.text
    found = entry(world, stream)
    assert (found.data, found.time) == (b"a film", 7.5)


@pytest.mark.parametrize(
    ("media", "body", "status", "kind", "said"),
    [
        ("text/plain", b"", 422, "wrong-shape", "without a word"),
        ("text/plain", b" \n ", 422, "wrong-shape", "without a word"),
        ("text/plain", b"caf\xe9", 400, "malformed", "UTF-8"),
        ("text/plain", b"x" * 1001, 413, "too-large", "1000 bytes"),
        ("application/json", b'{"text": 3}', 400, "malformed", "expected"),
        ("application/json", b'{"txt": "a"}', 400, "malformed", "expected"),
        ("application/json", b'{"text": "a", "time": -1}', 400, "malformed", "time -1"),
        ("application/json", b'{"text": ""}', 422, "wrong-shape", "without a word"),
        ("text/html", b"<p>a</p>", 415, "unsupported-media", "text/plain"),
    ],
)
def test_what_is_no_text_is_answered_with_what_was_expected(
    api: Serving, stream: str, media: str, body: bytes, status: int, kind: str, said: str
) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/text", content=body, headers={"Content-Type": media})
    assert is_problem(answer, status, kind, said)


def test_a_text_that_no_tokenizer_takes_is_refused_at_every_door(api: Serving, world: OnBroker, prefix: str) -> None:
    """More than 64 bytes a token that the model takes at once; `short` takes two."""
    most, over = "x" * 64 + "y" * 64, "x" * 64 + " é" + "y" * 62
    assert (len(most.encode()), len(over), len(over.encode())) == (128, 128, 129), "bytes are counted, not characters"
    path, query = f"/v1/streams/s-{prefix}/text", {"model": "short"}
    told = "129 bytes: the model takes 2 tokens; cut it into several entries of at most 128 bytes"
    plain = {"content": over.encode(), "headers": {"Content-Type": "text/plain"}}
    for body in (plain, {"json": {"text": over}}):
        assert is_problem(api.http.post(path, params=query, **body), 413, "too-large", told)
    lines = [{"stream": f"s-{prefix}", "kind": "text", "text": text, "model": "short"} for text in (over, most)]
    ndjson = "\n".join(json.dumps(line) for line in lines)
    answers = api.http.post("/v1/entries", content=ndjson, headers={"Content-Type": "application/x-ndjson"}).text
    refused, taken = map(json.loads, answers.splitlines())
    assert (refused["status"], told in refused["detail"], "id" in taken) == (413, True, True)
    with connect(f"ws{api.url.removeprefix('http')}/v1/streams/s-{prefix}/ws") as socket:
        socket.send(json.dumps({"type": "hello"}))
        assert json.loads(socket.recv(30))[0]["type"] == "hello"
        socket.send(json.dumps([{**line, "stream": ""} for line in lines]))
        refused, taken = json.loads(socket.recv(30))
        assert (refused["status"], told in refused["detail"], "id" in taken) == (413, True, True)
    wide = {"stream": f"s-{prefix}", "kind": "text", "text": "é" * 600}
    answer = api.http.post(
        "/v1/entries", content=msgspec.json.encode(wide), headers={"Content-Type": "application/x-ndjson"}
    )
    assert (answer.json()["status"], "1200 bytes" in answer.json()["detail"]) == (413, True), "as the entry's bytes are"


def test_a_model_of_rows_takes_no_text(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/text", json={"text": "a"}, params={"model": "tiny"})
    assert is_problem(answer, 422, "wrong-kind", "tiny")
