"""Posting texts over HTTP, in the same shape as rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

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
    tiny_manifest("tiny"),
]


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"texts-{threading.get_native_id()}", 4)
    on_broker.serve("reader", "tiny")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    with Serving(create_app(world.predictions, MODELS, create_registry(), limits=LIMITS)) as serving:
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


def test_a_model_of_rows_takes_no_text(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/text", json={"text": "a"}, params={"model": "tiny"})
    assert is_problem(answer, 422, "wrong-kind", "tiny")
