"""WebSockets and NDJSON against a whole deployment: entries in, acknowledgements and records out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.api.messages import Ack, ProblemSaid, Welcome
from service.api.notices import Bye, Cursor, Gap, Wait
from service.contracts import Done, Dropped, Duplicate, Prediction, Refused
from tests.deployment import ROOT, Up

Heard = Welcome | Ack | ProblemSaid | Gap | Bye | Wait | Cursor | Prediction | Refused | Dropped | Duplicate | Done
ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]
LIMIT_S = 60.0
NDJSON = {"Content-Type": "application/x-ndjson"}


class Socket:
    """A WebSocket that speaks JSON or MessagePack, and says hello first."""

    def __init__(self, socket: ClientConnection, packed: bool, **hello: Any) -> None:
        self._socket, self._packed = socket, packed
        self.kept: list[dict[str, Any]] = []
        self.cursor = ""
        self.say({"type": "hello", **hello})

    def say(self, message: Any) -> None:
        self._socket.send(msgspec.msgpack.encode(message) if self._packed else json.dumps(message))

    def hear(self) -> list[dict[str, Any]]:
        message = self._socket.recv(LIMIT_S)
        assert isinstance(message, bytes) == self._packed
        found: list[dict[str, Any]] = msgspec.msgpack.decode(message) if self._packed else json.loads(message)
        for answer in found:
            assert (
                msgspec.to_builtins(msgspec.convert(answer, Heard)).keys() >= answer.keys()
            )  # as docs/streams.md says
        return found

    def take(self, count: int, *types: str) -> list[dict[str, Any]]:
        """The next so many answers of these types; others are kept for later."""
        found: list[dict[str, Any]] = []
        earlier, self.kept = self.kept, []
        while True:
            for answer in earlier:
                wanted = answer["type"] in types and len(found) < count
                (found if wanted else self.kept).append(answer)
            if len(found) == count:
                return found
            earlier = self.hear()
            self.cursor = next((one["cursor"] for one in earlier if one["type"] == "cursor"), self.cursor)


@contextmanager
def gateway(deployment: Up, path: str = "/v1/ws", packed: bool = True, **hello: Any) -> Iterator[Socket]:
    with connect(deployment.url.replace("http", "ws") + path, proxy=None) as socket:
        yield Socket(socket, packed, **hello)


def entry(stream: str, packed: bool, **more: Any) -> dict[str, Any]:
    rows = np.array([ROW], "<f4").tobytes()
    data = rows if packed else base64.b64encode(rows).decode()
    return {"stream": stream, "kind": "samples", "data": data, "shape": [1, 6], "model": "activity-lstm"} | more


@pytest.fixture
def image() -> bytes:
    return next((ROOT / "models" / "zoo" / "digits-cnn" / "1" / "samples").glob("7-*.png")).read_bytes()


@pytest.mark.parametrize("packed", [True, False])
def test_a_gateway_gets_acknowledgements_in_order_and_the_records_of_its_entries(
    deployment: Up, packed: bool, image: bytes
) -> None:
    name = f"gate-{packed}"
    data = image if packed else base64.b64encode(image).decode()
    with gateway(deployment, packed=packed) as socket:
        assert socket.take(1, "hello")
        socket.say(
            [
                entry(f"{name}-1", packed, seq=1),
                {"stream": f"{name}-2", "kind": "frame", "data": data, "model": "digits-cnn"},
                {"stream": f"{name}-1", "kind": "samples", "samples": [ROW, ROW]},
            ]
        )
        acks = socket.take(3, "ack")
        assert [(ack["stream"], ack["model"]) for ack in acks] == [
            (f"{name}-1", "activity-lstm"), (f"{name}-2", "digits-cnn"), (f"{name}-1", "activity-lstm"),
        ]  # fmt: skip
        assert acks[0]["seq"] == 1
        records = {(record["stream"], record["id"]): record for record in socket.take(3, "prediction")}
        keys = [(ack["stream"], ack["id"]) for ack in acks]  # ids of two shards may be alike
        assert records.keys() == set(keys)
        assert records[keys[1]]["label"] == "7"
        assert [records[keys[i]]["step"] for i in (0, 2)] == [1, 3]


def test_a_refused_entry_is_said_by_its_place_and_stops_nothing(deployment: Up) -> None:
    with gateway(deployment) as socket:
        socket.say(
            [
                entry("gate-bad", True),
                entry("gate bad", True),
                {"stream": "gate-bad", "kind": "samples", "text": "x"},
                {"stream": "gate-bad", "kind": "samples", "data": b"123"},
                entry("gate-bad", True, shape=[2, 6]),
                {"stream": "gate-bad", "kind": "samples", "colour": "red"},
                entry("gate-bad", True),
            ]
        )
        answers = socket.take(7, "ack", "problem")
    assert [answer["type"] for answer in answers] == ["ack", *["problem"] * 5, "ack"]
    assert [answer["index"] for answer in answers[1:6]] == [1, 2, 3, 4, 5]
    assert [answer["problem"].rpartition(":")[2] for answer in answers[1:6]] == [
        "bad-stream-id", "malformed", "wrong-shape", "wrong-shape", "malformed",
    ]  # fmt: skip
    assert "expected data or samples" in answers[2]["detail"]
    assert "colour" in answers[5]["detail"]


@pytest.mark.parametrize("message", [b"\xc1", b"\x80", '{"stream": "x"}', "["])
def test_a_message_that_is_no_array_of_entries_is_said_so(deployment: Up, message: bytes | str) -> None:
    with gateway(deployment) as socket:
        socket._socket.send(message)
        (problem,) = socket.take(1, "problem")
        assert "expected an array of entries" in problem["detail"]
        socket.say([entry("gate-after", True)])
        assert socket.take(1, "ack")


@pytest.mark.parametrize(
    ("path", "first", "told"),
    [
        ("/v1/ws", {"type": "hallo"}, "hello"),
        ("/v1/ws", {"type": "hello", "after": "17-0"}, "not a cursor over many streams"),
        ("/v1/ws", {"type": "hello", "streams": ["[a]"]}, "stands for any characters"),
        ("/v1/streams/gate-1/ws", {"type": "hello", "streams": ["gate-1"]}, "streams cannot be given"),
        ("/v1/streams/gate-1/ws", {"type": "hello", "posted": ["gate-1"]}, "streams cannot be given"),
        ("/v1/ws", {"type": "hello", "streams": ["a"], "posted": ["b"]}, "expected one of them"),
        ("/v1/ws", {"type": "hello", "posted": ["a*"]}, "stream"),
        ("/v1/streams/gate%201/ws", {"type": "hello"}, "stream"),
        ("/v1/streams/gate-1/ws", {"type": "hello", "after": "x"}, "MS-SEQ"),
    ],
)
def test_a_wrong_hello_is_explained_before_the_end(deployment: Up, path: str, first: Any, told: str) -> None:
    with connect(deployment.url.replace("http", "ws") + path, proxy=None) as socket:
        socket.send(json.dumps(first))
        (problem,) = json.loads(socket.recv(LIMIT_S))
        assert told in problem["detail"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_one_streams_socket_takes_its_entries_only_and_resumes_from_an_id(deployment: Up) -> None:
    path = "/v1/streams/gate-one/ws"
    with gateway(deployment, path, after="0") as socket:
        for _ in range(3):
            unnamed = entry("gate-one", True)
            del unnamed["stream"]
            socket.say([unnamed])
        records = socket.take(3, "prediction")
        socket.say([entry("gate-other", True)])
        (problem,) = socket.take(1, "problem")
        assert problem["problem"].endswith("bad-stream-id")
    with gateway(deployment, path, packed=False, after=records[0]["id"]) as again:
        assert again.take(2, "prediction") == records[1:]


def test_a_gateway_resumes_from_its_cursor_without_a_gap(deployment: Up) -> None:
    names = [f"gate-resumed-{i}" for i in range(6)]
    with gateway(deployment, streams=["gate-resumed-*"]) as socket:
        socket.say([entry(name, True) for name in names])
        first = socket.take(6, "prediction")
        cursor = socket.cursor
        assert cursor
    with gateway(deployment, streams=["nothing-*"]) as other:  # entries go on while nobody listens
        other.say([entry(name, True) for name in names * 2])
        acks = other.take(12, "ack")
    with gateway(deployment, streams=["gate-resumed-*"], after=cursor) as socket:
        rest = socket.take(12, "prediction")
    assert {record["id"] for record in rest} == {ack["id"] for ack in acks}
    assert not {record["id"] for record in first} & {record["id"] for record in rest}


def test_ndjson_answers_each_line_in_order_and_a_refused_one_stops_nothing(deployment: Up) -> None:
    lines = [entry(f"lines-{i % 3}", False, seq=i // 3) for i in range(600)]
    lines[100] = {"stream": "lines-1", "kind": "nothing"}
    body = (
        "\n".join(json.dumps(line) for line in lines[:300]) + "\n\nnonsense\n" + "\n".join(map(json.dumps, lines[300:]))
    )

    def pieces() -> Iterator[bytes]:
        data = body.encode()
        yield from (data[at : at + 10_007] for at in range(0, len(data), 10_007))

    answer = httpx.post(f"{deployment.url}/v1/entries", content=pieces(), headers=NDJSON, timeout=60, trust_env=False)
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert len(found) == 601
    bad = [i for i, one in enumerate(found) if "id" not in one]
    assert bad == [100, 300]
    assert [one["stream"] for i, one in enumerate(found) if i not in bad][:3] == ["lines-0", "lines-1", "lines-2"]
    assert "nothing" in found[100]["detail"] or "Invalid" in found[100]["detail"]


def test_ndjson_needs_its_content_type(deployment: Up) -> None:
    answer = httpx.post(f"{deployment.url}/v1/entries", content=b"{}", trust_env=False)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (415, "unsupported-media")


def test_a_line_that_is_too_long_is_refused_alone(deployment: Up, tmp_path: Path) -> None:
    long = b'{"stream":"lines-long","kind":"text","text":"' + b"a" * (40 << 20) + b'"}'
    short = json.dumps(entry("lines-long", False)).encode()
    body = short + b"\n" + long + b"\n" + short
    answer = httpx.post(f"{deployment.url}/v1/entries", content=body, headers=NDJSON, timeout=60, trust_env=False)
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert ["id" in one for one in found] == [True, False, True]
    assert found[1]["problem"].endswith("too-large")


def test_a_stopping_server_says_bye_and_closes(tmp_path_factory: pytest.TempPathFactory) -> None:
    up = Up(tmp_path_factory.mktemp("h"))
    try:
        up.ready()
        with gateway(up, streams=["*"]) as socket:
            socket.take(1, "hello")
            up.process.terminate()
            (bye,) = socket.take(1, "bye")
            assert bye["reason"] == "closing"
            with pytest.raises(ConnectionClosed):
                socket.hear()
        assert up.stop() == 0
    finally:
        up.stop()
