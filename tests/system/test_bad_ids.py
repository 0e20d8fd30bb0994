"""A producer that writes into Redis itself makes up an id: real workers refuse it, and an api never stops answering."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.codec import AHEAD_MS, parse_head
from service.keys import ShardKeys, shard_of
from tests.deployment import Up, await_true
from tests.doubles import rows_fields

SHARDS = 4  # of Up
ROW = {"samples": [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3]]}
HOUR_MS = 3_600_000
LAST = "18446744073709551615-18446744073709551615"
SAME = [name for name in (f"s{n}" for n in range(100)) if shard_of(name, SHARDS) == shard_of("victim", SHARDS)]
OTHER = next(name for name in (f"s{n}" for n in range(100)) if shard_of(name, SHARDS) != shard_of("victim", SHARDS))


@pytest.fixture
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A deployment of its own: two workers."""
    one = Up(tmp_path_factory.mktemp("h"), "--workers", "2")
    yield one.ready()
    assert one.stop() == 0


class Bystander:
    """Posts a row and waits for its prediction, again and again; and listens to all streams."""

    def __init__(self, url: str, stream: str) -> None:
        self.url, self.stream = url, stream
        self.answered: list[str] = []
        self.later: list[int] = []  # statuses of posts that were to be repeated
        self.heard: set[str] = set()
        self.failed: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._post, self._listen)]

    def __enter__(self) -> Bystander:
        for thread in self._threads:
            thread.start()
        await_true(lambda: self.heard & set(self.answered), "it is answered, and hears it")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert self.failed == []

    def goes_on(self) -> None:
        """Three more posts are answered, and heard."""
        before = len(self.answered)
        await_true(lambda: len(self.answered) >= before + 3, f"{self.stream} is answered")
        await_true(lambda: set(self.answered[before : before + 3]) <= self.heard, f"{self.stream} is heard")

    def _post(self) -> None:
        url = f"{self.url}/v1/streams/{self.stream}/samples?model=activity-lstm&wait=60"
        with httpx.Client(timeout=90, trust_env=False) as http:
            while not self._over.is_set():
                answer = http.post(url, json=ROW)
                if answer.status_code == 200:
                    self.answered.append(answer.json()["id"])
                elif answer.status_code == 503 and "retry-after" in answer.headers:
                    self.later.append(answer.status_code)
                else:
                    self.failed.append(answer.text)
                self._over.wait(0.01)

    def _listen(self) -> None:
        with (
            httpx.Client(timeout=httpx.Timeout(60, read=1.0), trust_env=False) as http,
            http.stream("GET", f"{self.url}/v1/predictions?stream={self.stream}&after=0") as events,
        ):
            lines = events.iter_lines()
            while not self._over.is_set():
                try:
                    line = next(lines)
                except httpx.ReadTimeout:
                    return
                if line.startswith("data:") and '"type":"prediction"' in line:
                    self.heard.add(json.loads(line[5:])["id"])


def test_ids_that_no_clock_gives_stop_nobody(up: Up) -> None:
    """Each in turn, with posts and subscribers on its own shard and on another one meanwhile."""
    client: Any = redis.Redis(unix_socket_path=str((up.home / "broker.sock").resolve()))
    keys = ShardKeys("rollcast", shard_of("victim", SHARDS))
    row = np.array(ROW["samples"], "<f4")

    def refused(field: bytes) -> list[bytes]:
        return [entry[field] for _, entry in client.xrange(keys.dead)]

    def forge(entry_id: str) -> None:
        fields = rows_fields("victim", row) | {"model": b"activity-lstm"}
        client.xadd(keys.inbox, fields, id=entry_id)
        refused = [bytes(entry[b"id"]).decode() for _, entry in client.xrange(keys.dead)]
        if entry_id not in refused:
            await_true(
                lambda: entry_id in [e[b"id"].decode() for _, e in client.xrange(keys.dead)], f"{entry_id} refused"
            )

    now_ms = int(time.time() * 1000)
    forged = [
        f"{now_ms + 25 * HOUR_MS}-0", "253402300799999-0", "10000000000000000-0", "9223372036854775808-7",
        "18446744073709551615-0", LAST,
    ]  # fmt: skip
    with Bystander(up.url, SAME[0]) as near, Bystander(up.url, OTHER) as far:
        for entry_id in forged:
            forge(entry_id)
            near.goes_on()
            far.goes_on()
            assert parse_head(client.get(keys.head)).low >> 64 <= now_ms + AHEAD_MS
        assert far.later == []
        within = f"{int(time.time() * 1000) + 23 * HOUR_MS}-0"
        client.xadd(keys.inbox, rows_fields("victim", row) | {"model": b"activity-lstm"}, id=within)
        await_true(lambda: client.xrange(keys.out("victim"), within, within), "an id within a day is taken")
        near.goes_on()
        far.goes_on()
    assert refused(b"reason") == [b"bad_id"] * len(forged)
    assert [line for line in up.lines if "starting it again" in line["event"]] == [], "no process ended"
    with httpx.Client(base_url=up.url, trust_env=False, timeout=60) as http:
        await_true(lambda: http.get("/readyz").status_code == 200, "it is ready")
        listed = http.get("/v1/dead", params={"stream": "victim"}).json()["dead"]
        assert [one["id"] for one in listed] == forged
        again = http.post(f"/v1/dead/victim/{LAST}/retry", params={"wait": 60, "drop": 1})
        assert (again.status_code, again.json()["retry_of"]) == (200, LAST), again.text
    client.close()


def test_a_shard_that_waits_for_its_repair_is_named_and_all_others_go_on(up: Up) -> None:
    client: Any = redis.Redis(unix_socket_path=str((up.home / "broker.sock").resolve()))
    keys = ShardKeys("rollcast", shard_of("victim", SHARDS))
    with Bystander(up.url, OTHER) as far, httpx.Client(base_url=up.url, trust_env=False, timeout=60) as http:
        client.set(keys.head, f"life 00 7 {LAST} 0 0")
        row = rows_fields("victim", np.array(ROW["samples"], "<f4")) | {"model": b"activity-lstm"}
        waiting = client.xadd(keys.inbox, row)

        def reasons() -> list[str]:
            return list(http.get("/readyz").json()["reasons"])

        await_true(lambda: any(one.startswith(f"shard {keys.shard}: its head stands at") for one in reasons()), "named")
        await_true(lambda: up.said("this shard is left alone: `rollcast doctor --repair` mends it"), "a worker says it")
        assert up.said("no worker takes this shard", "api")
        far.goes_on()
        client.set(keys.head, "life 00 7 0-0 0 0")
        await_true(lambda: client.xrange(keys.out("victim"), waiting, waiting), "what waited is answered")
        await_true(lambda: http.get("/readyz").status_code == 200, "it is ready again")
        far.goes_on()
    client.close()
