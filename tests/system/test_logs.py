"""Logs of a whole deployment at their loudest: every line is JSON, and none holds what was posted or a password."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from service.embedded import EmbeddedBroker
from service.keys import ShardKeys, shard_of
from tests.conftest import needs
from tests.deployment import Up, await_true

PASSWORD, PAYLOAD = "hunter2", "pay10ad"
STREAM = "belt-1"
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("g"), needs("redis-server", "redis-server"))
    broker.start()
    yield broker
    broker.stop()


def test_no_line_holds_a_payload_or_a_password(
    guarded: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client: Any = redis.Redis.from_url(guarded.url)
    client.config_set("requirepass", PASSWORD)
    client = redis.Redis(unix_socket_path=guarded.url.removeprefix("unix://"), password=PASSWORD)
    url = f"unix://:{PASSWORD}@{guarded.url.removeprefix('unix://')}"
    up = Up(tmp_path_factory.mktemp("h"), "--broker", url, "--log-level", "debug")
    try:
        where = f"{up.ready().url}/v1"
        with httpx.Client(headers={"Authorization": f"Bearer {PASSWORD}"}, trust_env=False, timeout=60) as http:
            samples = f"{where}/streams/{STREAM}/samples?model=activity-lstm"
            assert http.post(samples + "&wait=10", json={"samples": [[1, 2, 3, 4, 5, 6]]}).status_code == 200
            for body in (f"1,{PAYLOAD},3,4,5,6", f'{{"samples": "{PAYLOAD}"}}'):
                media = "text/csv" if body[0] == "1" else "application/json"
                assert http.post(samples, content=body, headers={"Content-Type": media}).status_code == 400
            line = {"stream": STREAM, "kind": "frame", "data": b64encode(PAYLOAD.encode()).decode()}
            assert http.post(f"{where}/entries", content=json.dumps(line), headers=NDJSON).status_code == 200
            keys = ShardKeys("rollcast", shard_of(STREAM, 4))
            for kind in (PAYLOAD, "frame", "control"):
                client.xadd(keys.inbox, {"stream": STREAM, "kind": kind, "data": PAYLOAD})
            await_true(lambda: len(up.said("entry refused")) >= 3, "the log tells of what was refused")
            refused = up.said("entry refused")[0]
            dead = f"{where}/dead/{STREAM}/{refused['cursor']}"
            assert http.delete(dead).status_code == 200
            client.config_set("maxmemory", 1)
            assert http.post(samples, json={"samples": [[1, 2, 3, 4, 5, 6]]}).status_code == 503
            await_true(lambda: up.said("a call was turned away"), "the log tells of who was turned away")
            client.config_set("maxmemory", 0)
            client.config_set("requirepass", PASSWORD + "!")
            client.client_kill_filter(_type="normal", skipme=False)
            await_true(lambda: up.said("broker away", "worker 0"), "the log tells of the broker")
    finally:
        status = up.stop()
    assert status == 0
    assert [line for line in up.lines if line["process"] == "?"] == [], "every line is one JSON object"
    text = json.dumps(up.lines)
    assert PASSWORD not in text
    assert PAYLOAD not in text
    assert b64encode(PAYLOAD.encode()).decode() not in text
    assert refused.items() >= {"stream": STREAM, "shard": shard_of(STREAM, 4), "process": "worker 0"}.items()
    assert {"cursor", "commit", "reason", "time", "level", "logger"} <= set(refused)
    assert up.said("started")[0]["broker"] == f"unix://{guarded.home / 'broker.sock'}"
    (dropped,) = up.said("refused entry dropped from quarantine")
    assert (dropped["stream"], dropped["cursor"]) == (STREAM, refused["cursor"])
    turned_away = up.said("a call was turned away")[0]
    assert turned_away.items() >= {"route": "/v1/streams/{stream}/samples", "stream": STREAM, "status": 503}.items()
