"""Bodies with a Content-Encoding: unpacked within the limit of the body, or refused; never taken as they came."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.api import DoorLimits, create_app
from service.codec import parse_entry
from service.contracts import Entry, FrameInput, Limits, TextInput
from service.keys import shard_of
from service.metrics import create_registry
from tests.answering import PATIENT, InMemory
from tests.doubles import tiny_manifest
from tests.raw import HOST, Raw
from tests.serving import Serving
from tests.system.test_api_posting import image

MODELS = [
    tiny_manifest("tiny"),
    tiny_manifest("bright", kind="frame", states=[], rows=None, frames=FrameInput(8, 8, 1, "gray")),
    tiny_manifest("reader", kind="text", rows=None, text=TextInput(max_tokens=4096)),
]
LIMITS = Limits(frame_bytes=100_000, entry_bytes=200_000, pixels=10_000)
MEMORY = 32 << 20
ROWS = np.arange(21 * 3, dtype="<f4").tobytes()
FORM = b'--xx\r\nContent-Disposition: form-data; name="frame"; filename="a"\r\n\r\n' + image() + b"\r\n--xx--\r\n"
LINE = json.dumps({"stream": "a", "kind": "samples", "samples": [[1.0, 2.0, 3.0]]}).encode() + b"\n"
POSTS = {
    "samples, float32": ("/v1/streams/a/samples", "application/octet-stream", ROWS, ROWS),
    "samples, json": (
        "/v1/streams/a/samples", "application/json", b'{"samples": [[0, 1, 2]]}', np.arange(3, dtype="<f4").tobytes(),
    ),
    "samples, csv": ("/v1/streams/a/samples", "text/csv", b"3,1,2\n", np.array([3, 1, 2], "<f4").tobytes()),
    "frames": ("/v1/streams/a/frames", "image/png", image(), image()),
    "frames, a form": ("/v1/streams/a/frames", "multipart/form-data; boundary=xx", FORM, image()),
    "text": ("/v1/streams/a/text", "text/plain", b"a warm film", b"a warm film"),
    "entries": ("/v1/entries", "application/x-ndjson", LINE, np.array([1, 2, 3], "<f4").tobytes()),
    "settings": ("/v1/streams/a?wait=0", "application/json", b'{"model": "tiny"}', None),
}  # fmt: skip
every_post = pytest.mark.parametrize("post", POSTS.values(), ids=POSTS.keys())


def members(data: bytes) -> bytes:
    return gzip.compress(data[:10]) + gzip.compress(data[10:])


def raw(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


PACKINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress), "members": ("X-GZIP", members), "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw),
}  # fmt: skip


@pytest.fixture
def world() -> InMemory:
    world = InMemory()
    world.serve(*(model.name for model in MODELS))
    return world


@pytest.fixture
def api(world: InMemory) -> Iterator[Serving]:
    app = create_app(world.predictions, MODELS, create_registry(), limits=LIMITS, bounds=PATIENT)
    with Serving(app, limits=DoorLimits(unfinished_bytes=MEMORY)) as serving:
        yield serving


def log(world: InMemory, stream: str = "a") -> list[Entry]:
    shards = world.broker.shards
    return [parse_entry(b"1-0", parts) for parts in shards[shard_of(stream, len(shards))].log.values()]


def send(api: Serving, post: tuple[str, str, bytes, Any], body: bytes, coding: str) -> httpx.Response:
    path, media, _, _ = post
    method = "PUT" if "wait=0" in path else "POST"
    return api.http.request(method, path, content=body, headers={"Content-Type": media, "Content-Encoding": coding})


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


def value(api: Serving, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)", api.http.get("/metrics").text, re.M)
    assert found is not None
    return float(found[1])


@every_post
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_body_is_what_it_was_before(
    api: Serving, world: InMemory, post: tuple[str, str, bytes, bytes | None], packing: str
) -> None:
    coding, pack = PACKINGS[packing]
    answer = send(api, post, pack(post[2]), coding)
    assert answer.status_code in (200, 202), answer.text
    (entry,) = log(world)
    assert entry.fault is None
    assert post[3] is None or entry.data == post[3]
    assert value(api, "rollcast_unfinished_bytes") == 0


@every_post
@pytest.mark.parametrize(
    "body", [b"", gzip.compress(b"")[:-1], ROWS, gzip.compress(ROWS)[:-1], gzip.compress(ROWS) + bytes(12)],
    ids=["nothing", "cut", "not packed", "rows cut", "more behind it"],
)  # fmt: skip
def test_what_cannot_be_unpacked_is_refused(
    api: Serving, world: InMemory, post: tuple[str, str, bytes, Any], body: bytes
) -> None:
    assert told(send(api, post, body, "gzip")) == (400, "malformed")
    assert log(world) == []


def test_lines_before_the_one_where_it_ends_are_taken(api: Serving, world: InMemory) -> None:
    answer = send(api, POSTS["entries"], gzip.compress(3 * LINE) + gzip.compress(LINE)[:-9], "gzip")
    said = [json.loads(line) for line in answer.text.splitlines()]
    assert ["id" in one for one in said] == [True, True, True, True, False][: len(said)]
    assert said[-1]["problem"].endswith("malformed")
    assert "cut off" in said[-1]["detail"]
    assert len(log(world)) == len(said) - 1


@every_post
def test_a_body_that_grows_beyond_its_limit_is_too_large(
    api: Serving, world: InMemory, post: tuple[str, str, bytes, Any]
) -> None:
    bomb = gzip.compress(bytes(100 << 20), 1)
    answer = send(api, post, bomb, "gzip")
    assert told(answer) == (413, "too-large")
    assert log(world) == []
    assert value(api, "rollcast_unfinished_bytes") == 0


def test_a_million_blank_lines_are_too_many(api: Serving, world: InMemory) -> None:
    answer = send(api, POSTS["entries"], gzip.compress(b"\n" * 1_000_000), "gzip")
    assert told(answer) == (413, "too-large")
    assert "200000 lines" in answer.json()["detail"]


def test_the_limit_is_of_what_is_unpacked_and_what_is_packed(api: Serving, world: InMemory) -> None:
    post, most = POSTS["samples, float32"], LIMITS.entry_bytes // 12 * 12
    assert send(api, post, gzip.compress(bytes(12 * 4096)), "gzip").status_code == 202
    assert told(send(api, post, gzip.compress(bytes(most)), "gzip")) == (422, "wrong-shape"), (
        "more rows than a block has"
    )
    assert told(send(api, post, gzip.compress(bytes(LIMITS.entry_bytes + 1)), "gzip")) == (413, "too-large")
    assert told(send(api, post, gzip.compress(b"") * 10_001, "gzip")) == (413, "too-large"), "packed it is too large"
    assert len(log(world)) == 1


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "aes128gcm"])
def test_another_packing_is_refused_on_every_call_and_counted(api: Serving, world: InMemory, coding: str) -> None:
    asked = 0
    for path, calls in api.app.openapi()["paths"].items():
        for method in calls:
            url = path.format(stream="a", id="1-0", name="tiny")
            answer = api.http.request(method, url, content=ROWS, headers={"Content-Encoding": coding})
            assert told(answer) == (415, "unsupported-encoding"), f"{method} {path}"
            assert answer.headers["accept-encoding"] == "gzip, deflate"
            asked += 1
    assert asked >= 20
    assert log(world) == []
    assert value(api, 'rollcast_requests_refused_total{reason="encoding"}') == asked


def test_a_packed_transfer_is_refused(api: Serving, world: InMemory) -> None:
    packed = gzip.compress(ROWS)
    head = (
        b"POST /v1/streams/a/samples HTTP/1.1\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n" + HOST
    )
    with Raw(api.port) as client:
        client.send(
            head + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
        )
        assert client.rest().startswith(b"HTTP/1.1 415 ")
    assert log(world) == []


def test_what_is_unpacked_counts_as_memory_that_is_held(api: Serving, world: InMemory) -> None:
    """Each of these is a kilobyte on its way, and holds a line of 0.3 MB that does not end."""
    line = b'{"stream": "a", "kind": "samples", "data": "' + b"A" * 300_000
    packing = zlib.compressobj(wbits=31)
    head = b"POST /v1/entries HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nContent-Encoding: gzip\r\n" + HOST
    part = packing.compress(line) + packing.flush(zlib.Z_SYNC_FLUSH)
    clients = [Raw(api.port) for _ in range(150)]
    for client in clients:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(part), part))
    first = clients[0].rest()
    assert first.startswith(b"HTTP/1.1 503 "), "the one that began first makes room"
    assert b"crowded" in first
    assert value(api, "rollcast_unfinished_bytes") <= MEMORY
    for client in clients:
        client.reset()


def test_what_is_unpacked_without_room_for_it_is_turned_away(world: InMemory) -> None:
    app = create_app(world.predictions, MODELS, create_registry(), limits=LIMITS, bounds=PATIENT)
    with Serving(app, limits=DoorLimits(unfinished_bytes=40_000)) as api:
        assert send(api, POSTS["samples, float32"], gzip.compress(bytes(12 * 3000)), "gzip").status_code == 202
        assert told(send(api, POSTS["samples, float32"], gzip.compress(bytes(12 * 4000)), "gzip")) == (503, "crowded")
        assert value(api, 'rollcast_requests_refused_total{reason="unfinished_bytes"}') == 1
        assert value(api, 'rollcast_turned_away_total{reason="crowded"}') == 1
        assert value(api, "rollcast_unfinished_bytes") == 0
    assert len(log(world)) == 1
