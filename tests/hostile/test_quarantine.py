"""Refused entries, however many and large, and whoever looks at them: they neither fill the broker nor hold it up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import redis

from rollcast.client import Client
from service.keys import ShardKeys
from tests.deployment import Up, await_true
from tests.hostile.watching import Bounds

SHARDS, MB = 4, 1 << 20
LOOKS = 40  # at once
TEXT = "text/plain"


def shards(target: Up) -> list[ShardKeys]:
    return [ShardKeys("rollcast", shard) for shard in range(SHARDS)]


def test_texts_that_are_refused_anyway_never_reach_the_broker(target: Up, bounded: Bounds) -> None:
    text = b"word " * (8 * MB // 5 - 1)
    with redis.Redis(unix_socket_path=f"{target.home}/broker.sock") as broker:
        before = broker.info("memory")["used_memory"]  # type: ignore[index]
        with bounded(), httpx.Client(base_url=target.url, timeout=60) as http:
            for n in range(8):
                answer = http.post(
                    f"/v1/streams/long-{n}/text?model=sentiment-lstm", content=text, headers={"Content-Type": TEXT}
                )
                assert (answer.status_code, answer.json()["type"]) == (413, "urn:rollcast:problem:too-large")
                assert "cut it into several entries" in answer.json()["detail"]
        assert broker.info("memory")["used_memory"] - before < 8 * MB  # type: ignore[index]


def test_looks_at_a_full_quarantine_hold_up_nobody_and_it_is_emptied_by_one_call(target: Up, bounded: Bounds) -> None:
    with redis.Redis(unix_socket_path=f"{target.home}/broker.sock") as broker:
        for n in range(4 * 40):  # what no door refuses: put straight into the log
            keys = shards(target)[n % SHARDS]
            fields = {"stream": "wrong-shard", "kind": "samples", "shape": "1,9", "data": bytes(MB)}
            broker.xadd(keys.inbox, fields)  # type: ignore[arg-type]
        await_true(lambda: sum(broker.xlen(keys.dead) for keys in shards(target)) >= 150, "refused, and kept")  # type: ignore[misc]
    paths = ["/v1/dead/nobody/1-0", "/v1/dead?stream=nobody", "/v1/dead?limit=1000", "/v1/dead/wrong-shard/1-0/retry"]
    limits = httpx.Limits(max_connections=LOOKS)
    http = httpx.Client(base_url=target.url, timeout=60, limits=limits, trust_env=False, verify=False)
    with Client(target.url) as client, ThreadPoolExecutor(LOOKS) as pool, http:

        def look(n: int) -> int:
            path = paths[n % len(paths)]
            return http.request("POST" if "retry" in path else "GET", path).status_code

        with bounded(cpu_s=2.0):
            statuses = list(pool.map(look, range(LOOKS)))
        assert statuses == [404, 200, 200, 404] * (LOOKS // 4)
        assert client.drop_all_dead(stream="wrong-shard") >= 150
        assert list(client.dead(stream="wrong-shard")) == []
