"""Posting entries over HTTP: what is taken, what lands in the log, and a clear error for everything that is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from service.api import create_app
from service.codec import parse_entry
from service.contracts import Entry, FrameInput, Limits
from service.errors import AppendUnknown, BrokerAway, BrokerFull
from service.metrics import create_registry
from tests.answering import PATIENT, InMemory, OnBroker
from tests.doubles import tiny_manifest
from tests.serving import Serving, await_true

SHARDS = 4
ROW = [1.0, 2.0, 3.0]
MODELS = [
    tiny_manifest("tiny"),
    tiny_manifest("tiny-too"),
    tiny_manifest("wide", features=5),
    tiny_manifest("bright", kind="frame", states=[], rows=None, frames=FrameInput(8, 8, 1, "gray")),
    tiny_manifest("unserved", features=7),
]
LIMITS = Limits(frame_bytes=100_000, entry_bytes=200_000, pixels=10_000)


def image(extension: str = ".png", width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    done, data = cv2.imencode(extension, pixels)
    assert done
    return data.tobytes()


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"posting-{threading.get_native_id()}", SHARDS)
    on_broker.serve("tiny", "tiny-too", "wide", "bright")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    with Serving(create_app(world.predictions, MODELS, create_registry(), limits=LIMITS, bounds=PATIENT)) as serving:
        yield serving


@pytest.fixture
def stream(prefix: str) -> str:
    return f"s-{prefix}"


def entries(world: OnBroker, stream: str) -> list[Entry]:
    """What lies in the log of the stream's shard, of this stream."""
    found: Any = world.redis.xrange(world.keys(stream).inbox)
    parsed = [parse_entry(entry_id, [part for pair in fields.items() for part in pair]) for entry_id, fields in found]
    return [entry for entry in parsed if entry.stream == stream]


def entry(world: OnBroker, stream: str) -> Entry:
    (only,) = entries(world, stream)
    assert only.fault is None
    return only


def is_problem(answer: httpx.Response, status: int, kind: str, *words: str) -> bool:
    """Asserts each part, so that a failure shows which."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["status"]) == (status, status), body
    assert body["type"] == f"urn:rollcast:problem:{kind}", body
    assert body["title"]
    for word in words:
        assert word in body["detail"], body
    return True


# --- what is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_an_image_lands_in_the_log_as_it_came(api: Serving, world: OnBroker, stream: str, extension: str) -> None:
    data = image(extension)
    answer = api.http.post(
        f"/v1/streams/{stream}/frames",
        content=data,
        headers={"Content-Type": "image/jpeg"},
        params={"seq": 7, "time": 12.5, "start": 1, "end": 0},
    )
    assert answer.status_code == 202
    found = entry(world, stream)
    assert answer.json() == {"id": found.id.decode(), "stream": stream, "model": "bright"}
    assert (found.kind, found.data, found.model) == ("frame", data, "bright")
    assert (found.seq, found.time, found.start, found.end) == (7, 12.5, True, False)


@pytest.mark.parametrize("size", [(8, 8), (50, 180)])
def test_an_image_may_come_as_a_form(api: Serving, world: OnBroker, stream: str, size: tuple[int, int]) -> None:
    data = image(".png", *size)
    answer = api.http.post(f"/v1/streams/{stream}/frames", files={"frame": ("seven.png", data, "image/png")})
    assert answer.status_code == 202, answer.text
    assert entry(world, stream).data == data


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b'{"samples": [[1, 2, 3], [4, 5, 6.5]], "time": 9.5}', "application/json"),
        (b"1,2,3\n4,5,6.5\n", "text/csv"),
        (b"x0,x1,x2\r\n1,2,3\r\n\r\n4,5,6.5", "text/csv; charset=utf-8"),
        (b'\xef\xbb\xbf"x2", x0 ,x1\n3,1,2\n6.5,4,5\n', "text/csv"),
        (np.array([[1, 2, 3], [4, 5, 6.5]], "<f4").tobytes(), "application/octet-stream"),
    ],
)
def test_rows_land_in_the_log_as_float32(api: Serving, world: OnBroker, stream: str, body: bytes, media: str) -> None:
    answer = api.http.post(
        f"/v1/streams/{stream}/samples",
        content=body,
        headers={"Content-Type": media},
        params={"model": "tiny", "interval_s": 0.25, "end": 1},
    )
    assert answer.status_code == 202, answer.text
    found = entry(world, stream)
    assert (found.kind, found.shape, found.model) == ("samples", (2, 3), "tiny")
    assert np.frombuffer(found.data, "<f4").tolist() == [1, 2, 3, 4, 5, 6.5]
    assert found.time == (9.5 if media == "application/json" else None)
    assert (found.interval_s, found.end) == (0.25, True)


def test_a_table_gives_its_times_and_says_what_it_leaves_out(api: Serving, world: OnBroker, stream: str) -> None:
    body = b",timestamp,x2,x1,x0\n0,1700000000,3,2,1\n1,1700000000.5,6.5,5,4\n"
    answer = post_rows(api, stream, body, "text/csv; header=present")
    assert (answer.status_code, answer.headers["Rollcast-Left-Out"]) == (
        202,
        "column 1 (no name), column 2 (timestamp)",
    )
    found = entry(world, stream)
    assert np.frombuffer(found.data, "<f4").tolist() == [1, 2, 3, 4, 5, 6.5]
    assert (found.time, found.interval_s) == (1700000000.5, 0.5)


def test_a_time_that_is_stated_is_another_clocks(api: Serving, world: OnBroker, stream: str) -> None:
    answer = post_rows(api, stream, b"time,x0,x1,x2\n1700000000,1,2,3\n1700000001,4,5,6.5\n", "text/csv", time=9.5)
    assert answer.status_code == 202, answer.text
    found = entry(world, stream)
    assert (found.time, found.interval_s) == (9.5, None)


def test_the_content_type_says_whether_a_first_line_is_a_heading(api: Serving, world: OnBroker, stream: str) -> None:
    body = b"0,1,2\n3,4,5\n"
    assert is_problem(post_rows(api, stream, body, "text/csv"), 400, "malformed", "heading or row?")
    assert is_problem(post_rows(api, stream, body, "text/csv; header=yes"), 400, "malformed", "present or absent")
    assert post_rows(api, stream, body, 'text/csv; header="absent"').status_code == 202
    assert entry(world, stream).shape == (2, 3)


# --- the model ---------------------------------------------------------------------------------------------------


def test_the_only_model_whose_width_fits_is_chosen(api: Serving, world: OnBroker, stream: str) -> None:
    api.post_rows(stream, [0.0] * 5)
    assert entry(world, stream).model == "wide"


def test_raw_rows_choose_the_only_model_they_divide_into(api: Serving, world: OnBroker, stream: str) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    path = f"/v1/streams/{stream}/samples"
    assert api.http.post(path, content=bytes(4 * 5 * 2), headers=headers).status_code == 202
    assert entry(world, stream).shape == (2, 5)
    answer = api.http.post(path.replace(stream, stream + "x"), content=bytes(4 * 15), headers=headers)
    assert is_problem(answer, 422, "model-needed", "tiny (3 columns)", "wide (5 columns)")


def test_the_model_of_the_stream_goes_before_the_only_one_that_fits(api: Serving, world: OnBroker, stream: str) -> None:
    world.answer(stream, api.post_rows(stream, ROW, model="tiny-too"), model="tiny-too")
    api.post_rows(stream, ROW)
    assert [found.model for found in entries(world, stream)] == ["tiny-too", "tiny-too"]


def test_a_default_goes_before_the_only_one_that_fits(world: OnBroker, stream: str) -> None:
    memory = InMemory()
    memory.serve("tiny", "tiny-too")
    app = create_app(memory.predictions, MODELS[:2], create_registry(), defaults={"samples": "tiny-too"})
    with Serving(app) as api:
        answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]})
        assert answer.json()["model"] == "tiny-too"


def test_several_models_that_fit_are_named(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]})
    assert is_problem(answer, 422, "model-needed", "tiny (3 columns)", "tiny-too (3 columns)")


def test_no_model_that_fits_names_those_of_the_kind(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [[1.0]]})
    assert is_problem(answer, 422, "model-needed", "1 columns", "wide (5 columns)")


def test_an_unknown_model(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]}, params={"model": "nope"})
    assert is_problem(answer, 404, "unknown-model", "'nope'", "tiny")


def test_a_model_of_another_kind(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]}, params={"model": "bright"})
    assert is_problem(answer, 422, "wrong-kind", "'bright' takes frame, not samples")


def test_another_model_than_the_streams(api: Serving, world: OnBroker, stream: str) -> None:
    world.answer(stream, api.post_rows(stream, ROW, model="tiny"))
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]}, params={"model": "tiny-too"})
    assert is_problem(answer, 409, "other-model", "bound to model 'tiny'", "'tiny-too'")


def test_a_model_that_no_live_worker_has(api: Serving, stream: str) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [[0.0] * 7]})
    assert is_problem(answer, 503, "no-worker", "'unserved'")
    assert int(answer.headers["retry-after"]) >= 1


# --- bad images --------------------------------------------------------------------------------------------------


def post_image(api: Serving, stream: str, data: Any, media: str = "image/jpeg") -> httpx.Response:
    return api.http.post(f"/v1/streams/{stream}/frames", content=data, headers={"Content-Type": media})


def test_bytes_that_are_no_image(api: Serving, stream: str) -> None:
    assert is_problem(post_image(api, stream, b"GIF89a..."), 415, "unsupported-media", "not a JPEG, PNG or WebP")


def test_an_empty_image(api: Serving, stream: str) -> None:
    assert is_problem(post_image(api, stream, b""), 415, "unsupported-media", "empty")


@pytest.mark.parametrize(
    ("extension", "said"),
    [(".jpg", "cut off"), (".png", " follow"), (".webp", "truncated WEBP image: pixels are missing")],
)
def test_an_image_that_says_itself_that_it_is_truncated(api: Serving, stream: str, extension: str, said: str) -> None:
    length = -20 if extension != ".jpg" else 100
    answer = post_image(api, stream, image(extension)[:length])
    assert is_problem(answer, 422, "bad-image", said)


@pytest.mark.parametrize("cut", ["its end mark", "pixels"])
def test_whether_a_jpeg_is_whole_the_worker_decides(api: Serving, stream: str, cut: str) -> None:
    """The api looks at no pixel."""
    assert post_image(api, stream, image(".jpg")[: -2 if cut == "its end mark" else -20]).status_code == 202


def test_an_image_above_the_pixel_limit(api: Serving, stream: str) -> None:
    answer = post_image(api, stream, image(".jpg", 200, 100))
    assert is_problem(answer, 413, "too-large", "200×100 pixels", "10000 pixels")


def test_an_image_above_the_byte_limit(api: Serving, stream: str) -> None:
    answer = post_image(api, stream, bytes(100_001))
    assert is_problem(answer, 413, "too-large", "100001 bytes", "100000 bytes")
    form = api.http.post(f"/v1/streams/{stream}/frames", files={"frame": bytes(100_001)})
    assert is_problem(form, 413, "too-large", "100001 bytes", "100000 bytes")


def test_a_body_without_a_length_is_bounded_while_it_is_read(api: Serving, stream: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(20_000)

    answer = post_image(api, stream, chunks())
    assert is_problem(answer, 413, "too-large", "more than 100000 bytes")
    assert api.http.get("/livez").status_code == 200  # and the connection, or the next, still serves


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain"])
def test_a_frame_of_another_content_type(api: Serving, stream: str, media: str) -> None:
    answer = post_image(api, stream, image(), media)
    assert is_problem(answer, 415, "unsupported-media", media, "expected image/jpeg, image/png or image/webp")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"picture": b"x"}, ["one part", "'picture'"]),
        ([("frame", b"x"), ("frame", b"y")], ["one part"]),
        ([("frame", b"x"), ("frame", b"y"), ("frame", b"z")], ["one part"]),
    ],
)
def test_a_form_without_exactly_one_part_frame(api: Serving, stream: str, files: Any, words: list[str]) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/frames", files=files)
    assert is_problem(answer, 400, "malformed", *words)


def test_a_form_without_a_boundary(api: Serving, stream: str) -> None:
    answer = post_image(api, stream, b"x", "multipart/form-data")
    assert is_problem(answer, 400, "malformed", "boundary")


# --- bad rows ----------------------------------------------------------------------------------------------------


def post_rows(api: Serving, stream: str, body: bytes, media: str, **query: Any) -> httpx.Response:
    return api.http.post(
        f"/v1/streams/{stream}/samples",
        content=body,
        headers={"Content-Type": media},
        params={"model": "tiny", **query},
    )


JSON, CSV, RAW = "application/json", "text/csv", "application/octet-stream"
NAN = np.array([[1, 2, 3], [4, np.nan, 6]], "<f4").tobytes()


@pytest.mark.parametrize(
    ("media", "body", "status", "kind", "words"),
    [
        (JSON, b'{"samples": [[1, 2]]}', 422, "wrong-shape", ["row 1 has 2 columns", "expected 3: x0, x1, x2"]),
        (JSON, b'{"samples": [[1, 2, 3], [4, 5]]}', 422, "wrong-shape", ["row 2 has 2 columns", "expected 3"]),
        (JSON, b'{"samples": [[]]}', 422, "wrong-shape", ["row 1 has 0 columns"]),
        (JSON, b'{"samples": []}', 422, "wrong-shape", ["no rows"]),
        (JSON, b'{"samples": [[1, 2, 3], [4, NaN, 6]]}', 422, "non-finite", ["row 2, column 2 (x1)", "nan"]),
        (JSON, b'{"samples": [[1, 2, -Infinity]]}', 422, "non-finite", ["row 1, column 3 (x2)", "-inf"]),
        (JSON, b'{"samples": [[1e39, 2, 3]]}', 422, "non-finite", ["row 1, column 1", "float32"]),
        (JSON, b'{"samples": [[1, null, 3]]}', 422, "non-finite", ["row 1, column 2 (x1): nan"]),
        (JSON, b'{"samples": [[1, "2", 3]]}', 400, "malformed", ["$.samples[0][1]"]),
        (JSON, b'{"samples": [[1, 2, 3]', 400, "malformed", ["truncated"]),
        (JSON, b'{"samples": [[NaN, 2, 3]', 400, "malformed", ["expected"]),
        (JSON, b'{"rows": [[1, 2, 3]]}', 400, "malformed", ["rows"]),
        (JSON, b"[[1, 2, 3]]", 400, "malformed", ['{"samples"']),
        (JSON, b"", 400, "malformed", ["expected"]),
        (JSON, b'{"samples": [[1, 2, 3]], "time": -1}', 400, "malformed", ["time -1"]),
        (CSV, b"1,2\n", 422, "wrong-shape", ["row 1 has 2 columns", "expected 3"]),
        (CSV, b"x0,x1,x2\n1,2,3\n1,2,3,4\n", 422, "wrong-shape", ["row 2 has 4 columns"]),
        (CSV, b"1,2,3\n1,nan,3\n", 422, "non-finite", ["row 2, column 2 (x1)"]),
        (CSV, b"x2,x1,x0\n1,2,inf\n", 422, "non-finite", ["(x0)"]),
        (CSV, b"a,b,c\n1,2,3\n", 422, "wrong-shape", ["heading a, b, c", "x0, x1, x2"]),
        (CSV, b"1,2,3\n1,two,3\n", 400, "malformed", ["row 2, column 2", "'two'"]),
        (CSV, b"x0,x1,x2\n", 422, "wrong-shape", ["no rows"]),
        (CSV, b"", 422, "wrong-shape", ["no rows"]),
        (CSV, b"1,2,\xff\n", 400, "malformed", ["UTF-8"]),
        (RAW, b"12345", 422, "wrong-shape", ["5 bytes", "12 bytes"]),
        (RAW, b"", 422, "wrong-shape", ["0 bytes"]),
        (RAW, NAN, 422, "non-finite", ["row 2, column 2 (x1)"]),
        (RAW, bytes(12 * 4097), 422, "wrong-shape", ["4097 rows", "4096"]),
        (RAW, bytes(200_001), 413, "too-large", ["200001 bytes", "200000 bytes"]),
        ("text/plain", b"1,2,3", 415, "unsupported-media", ["text/plain", "text/csv"]),
        ("", b"1,2,3", 415, "unsupported-media", ["missing", "application/json"]),
    ],
)
def test_rows_that_are_wrong(
    api: Serving, world: OnBroker, stream: str, media: str, body: bytes, status: int, kind: str, words: list[str]
) -> None:
    assert is_problem(post_rows(api, stream, body, media), status, kind, *words)
    assert entries(world, stream) == []


# --- bad calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-cam", "cam 1", "a" * 129, "ümlaut", ".x"])
@pytest.mark.parametrize("call", ["samples", "frames"])
def test_a_bad_stream_id(api: Serving, name: str, call: str) -> None:
    answer = api.http.post(f"/v1/streams/{name}/{call}", json={"samples": [ROW]})
    assert is_problem(answer, 400, "bad-stream-id", "expected 1 to 128 characters")


@pytest.mark.parametrize(
    ("query", "kind", "words"),
    [
        ({"seq": "-1"}, "malformed", ["seq='-1'", "whole number"]),
        ({"seq": "1.5"}, "malformed", ["seq"]),
        ({"seq": str(2**63)}, "malformed", ["seq"]),
        ({"time": "yesterday"}, "malformed", ["time='yesterday'", "seconds"]),
        ({"time": "nan"}, "malformed", ["time='nan'"]),
        ({"start": "yes"}, "malformed", ["start='yes'", "1 or 0"]),
        ({"wait": "61"}, "malformed", ["wait='61'", "60"]),
        ({"interval_s": "-1"}, "malformed", ["interval_s"]),
        ({"modle": "tiny"}, "bad-request", ["'modle'", "model, seq, time"]),
        ([("seq", "1"), ("seq", "2")], "bad-request", ["seq is given more than once"]),
    ],
)
def test_a_query_that_is_wrong(api: Serving, stream: str, query: Any, kind: str, words: list[str]) -> None:
    answer = api.http.post(f"/v1/streams/{stream}/samples", json={"samples": [ROW]}, params=query)
    assert is_problem(answer, 400, kind, *words)


def test_the_time_given_twice(api: Serving, stream: str) -> None:
    answer = post_rows(api, stream, b'{"samples": [[1, 2, 3]], "time": 1}', JSON, time=2)
    assert is_problem(answer, 400, "malformed", "query and in the body")


# --- wait --------------------------------------------------------------------------------------------------------


class Waiting:
    """A post with `wait` in a thread; the test answers it meanwhile."""

    def __init__(self, api: Serving, world: OnBroker, stream: str, wait_s: float = 5.0) -> None:
        def post() -> None:
            self.answer = httpx.post(
                f"{api.url}/v1/streams/{stream}/samples",
                json={"samples": [ROW]},
                params={"model": "tiny", "wait": wait_s},
                timeout=60,
            )

        self.thread = threading.Thread(target=post)
        self.thread.start()
        await_true(lambda: entries(world, stream), "the entry is in the log")
        self.id = entry(world, stream).id.decode()

    def result(self) -> httpx.Response:
        self.thread.join(60)
        return self.answer


def test_wait_answers_with_the_prediction_as_it_is_stored(api: Serving, world: OnBroker, stream: str) -> None:
    waiting = Waiting(api, world, stream)
    body = world.answer(stream, waiting.id)
    answer = waiting.result()
    assert (answer.status_code, answer.text) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("kind", "status", "member"),
    [
        ("refused", 422, {"reason": "bad_image"}),
        ("dropped", 410, {"reason": "late"}),
        ("duplicate", 409, {"of": "1-1"}),
    ],
)
def test_wait_answers_a_refusal_with_its_status(
    api: Serving, world: OnBroker, stream: str, kind: str, status: int, member: dict[str, str]
) -> None:
    waiting = Waiting(api, world, stream)
    world.answer(stream, waiting.id, kind, of="1-1")
    answer = waiting.result()
    assert is_problem(answer, status, kind)
    assert answer.json().items() >= {"id": waiting.id, "stream": stream, **member}.items()


def test_wait_ends_and_the_entry_stays(api: Serving, world: OnBroker, stream: str) -> None:
    answer = post_rows(api, stream, b'{"samples": [[1, 2, 3]]}', JSON, wait=0.05)
    found = entry(world, stream)
    assert is_problem(answer, 504, "wait-timeout", found.id.decode(), "in the log")
    assert answer.json()["id"] == found.id.decode()
    assert "stopping" not in answer.json()


def test_many_waits_on_one_stream_each_get_their_own_record(api: Serving, world: OnBroker, stream: str) -> None:
    answers: list[httpx.Response] = []

    def post() -> None:
        query = {"model": "tiny", "wait": 5}
        path = f"{api.url}/v1/streams/{stream}/samples"
        answers.append(httpx.post(path, json={"samples": [ROW]}, params=query, timeout=60))

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for n in range(8):
        await_true(lambda n=n: len(entries(world, stream)) > n, "the entry is in the log")
        world.answer(stream, entries(world, stream)[n].id.decode())
    for thread in threads:
        thread.join(60)
    ids = {found.id.decode() for found in entries(world, stream)}
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {answer.json()["id"] for answer in answers} == ids


# --- a broker that fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("away", BrokerAway.type, ["away"]),
        ("full", BrokerFull.type, ["nothing was appended"]),
        ("lose_reply", AppendUnknown.type, ["lost"]),
    ],
)
def test_a_broker_that_fails_is_503_with_retry_after(fault: str, kind: str, words: list[str]) -> None:
    memory = InMemory()
    memory.serve("tiny")
    with Serving(create_app(memory.predictions, MODELS[:1], create_registry())) as api:
        api.post_rows("cam-1", ROW)
        setattr(memory.broker if fault == "away" else memory.predictions, fault, True)
        answer = api.http.post("/v1/streams/cam-1/samples", json={"samples": [ROW]})
        assert is_problem(answer, 503, kind, *words)
        assert int(answer.headers["retry-after"]) >= 1
