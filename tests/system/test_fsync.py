"""`ack=fsync` is answered only where the broker syncs before it answers; else 501, and nothing is in the log."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from service.api import create_app
from service.embedded import EmbeddedBroker
from service.keys import ShardKeys, shard_of
from service.metrics import create_registry
from tests.answering import OnBroker
from tests.conftest import needs
from tests.doubles import tiny_manifest
from tests.serving import Serving

ROW = [1.0, 2.0, 3.0]


@pytest.fixture(params=["valkey", "redis"])
def own(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    binary = needs("redis-server", "redis-server") if request.param == "redis" else None
    broker = EmbeddedBroker(Path(tempfile.mkdtemp(prefix="rcf-")), binary, appendfsync="always")
    broker.start()
    yield broker
    broker.stop()
    shutil.rmtree(broker.home, ignore_errors=True)


def test_a_post_is_acknowledged_when_it_is_on_disk_or_not_at_all(own: EmbeddedBroker) -> None:
    world = OnBroker(own.url, "fsync")
    world.serve("tiny")
    inbox = ShardKeys("fsync", shard_of("belt", 4)).inbox
    with Serving(create_app(world.predictions, [tiny_manifest("tiny")], create_registry())) as api:

        def post(ack: str) -> tuple[int, str]:
            answer = api.http.post(f"/v1/streams/belt/samples?ack={ack}", json={"samples": [ROW]})
            return answer.status_code, answer.text

        assert post("fsync")[0] == 202
        assert world.redis.xlen(inbox) == 1
        for name, value, usual in (
            ("appendfsync", "everysec", "always"),
            ("no-appendfsync-on-rewrite", "yes", "no"),
            ("appendonly", "no", "yes"),
        ):
            world.redis.config_set(name, value)
            status, text = post("fsync")
            assert (status, "urn:rollcast:problem:no-fsync" in text) == (501, True)
            assert f"{name} is '{value}'" in text
            assert world.redis.xlen(inbox) == 1, "nothing was appended"
            assert post("log")[0] == 202
            world.redis.config_set(name, usual)
            world.redis.xtrim(inbox, maxlen=1, approximate=False)
        assert post("disk")[0] == 400
        assert post("")[0] == 202, "by default: in the log"
    world.close()


def test_each_of_many_is_acknowledged_when_it_is_on_disk_or_not_at_all(own: EmbeddedBroker) -> None:
    world = OnBroker(own.url, "many")
    world.serve("tiny")
    with Serving(create_app(world.predictions, [tiny_manifest("tiny")], create_registry())) as api:

        def post(query: str) -> tuple[int, list[dict[str, Any]]]:
            lines = b"".join(
                json.dumps({"stream": s, "kind": "samples", "samples": [ROW]}).encode() + b"\n" for s in "ab"
            )
            answer = api.http.post(
                f"/v1/entries{query}", content=lines, headers={"Content-Type": "application/x-ndjson"}
            )
            return answer.status_code, [json.loads(line) for line in answer.text.splitlines()]

        def logged() -> int:
            return sum(world.redis.xlen(ShardKeys("many", shard).inbox) for shard in range(4))  # type: ignore[misc]

        status, told = post("?ack=fsync")
        assert (status, ["id" in one for one in told], logged()) == (200, [True, True], 2)
        world.redis.config_set("appendfsync", "everysec")
        status, told = post("?ack=fsync")
        assert (status, logged()) == (200, 2), "nothing was appended"
        assert [(one["status"], one["problem"]) for one in told] == [(501, "urn:rollcast:problem:no-fsync")] * 2
        assert 'reason="no_fsync"' not in api.http.get("/metrics").text, "it would be refused at any time"
        assert [("id" in one) for one in post("")[1]] == [True, True]
        assert [post(query)[0] for query in ("?ack=disk", "?seq=7")] == [400, 400], "no silence"
    world.close()


def test_a_broker_that_does_not_tell_is_not_trusted(own: EmbeddedBroker) -> None:
    client = redis.Redis.from_url(own.url)
    client.execute_command("ACL", "SETUSER", "default", "-config")
    world = OnBroker(own.url, "mute")
    world.serve("tiny")
    with Serving(create_app(world.predictions, [tiny_manifest("tiny")], create_registry())) as api:
        answer = api.http.post("/v1/streams/belt/samples?ack=fsync", json={"samples": [ROW]})
        assert (answer.status_code, answer.json()["type"]) == (501, "urn:rollcast:problem:no-fsync")
        assert "does not tell its appendonly" in answer.json()["detail"]
    world.close()
