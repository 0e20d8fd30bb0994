"""The broker's users (deploy/redis): the whole system runs under them and is never denied anything, and each of them
may do nothing else. On Redis and on Valkey, by the very configuration."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import redis

from rollcast import Client, Problem
from service.broker.log import RedisLog
from service.broker.predictions import RedisPredictions
from service.doctor import repair
from service.embedded import find_binary
from service.keys import ShardKeys, shard_of
from service.packages import load_packages, samples
from service.ports import Look
from tests.conftest import needs
from tests.deploy.guarded import SHARDS, Broker, Process
from tests.deployment import COMMAND, await_true, environment
from tests.ports.test_log import commit_of, record

ROW = [39.25, 0.43, 22.75, 0.43, 33.75, 1.3]
MODEL = "activity-lstm"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def binary(request: pytest.FixtureRequest) -> str:
    return needs("redis-server", "redis-server") if request.param == "redis" else find_binary(None)


@pytest.fixture(scope="module")
def broker(binary: str, project: Path) -> Iterator[Broker]:
    broker = Broker(binary, project)
    yield broker
    broker.close()


@pytest.fixture(scope="module")
def quiet(binary: str, project: Path) -> Iterator[Broker]:
    """A broker to which no worker ever comes, whose janitor would remove keys meanwhile; it holds an entry."""
    broker = Broker(binary, project)
    broker.admin.xadd(IN, dict(zip(ENTRY[1::2], ENTRY[2::2], strict=True)))
    yield broker
    broker.close()


# --- enough ------------------------------------------------------------------------------------------------------


def test_a_worker_may_do_what_it_does_only_in_trouble(broker: Broker) -> None:
    """Careful mode, a full broker, foreign writes among the keys, a janitor that finds nothing to keep."""
    log = RedisLog(broker.url("worker"), worker="w", shards=SHARDS, lease_s=30)
    keys = ShardKeys("rollcast", 0)
    head = log.acquire(0)
    assert head is not None
    log.renew([0], b"{}")
    assert log.attempt(0, head, b"1-0")
    log.acquit(0, head)
    for key in (keys.out("s"), keys.feed, keys.pos, keys.streams):
        broker.admin.set(key, "somebody else's")
    first = commit_of(head, record("s", b"5-0"))
    log.send(first)
    assert len(log.result(0).errors) == 4
    second = commit_of(first.after, record("s", b"6-0"), trim=b"1-0")
    log.make_room(second)
    log.send(second)
    assert log.result(0).errors == []
    assert broker.admin.xlen(keys.out("s")) == 2
    assert log.idle(0, 0, 0, 10) != []
    broker.admin.zadd(keys.open, {"s": 1, "t": 1})
    broker.admin.hset(keys.pos, "s", "6-0")
    assert [row[0] for row in log.overdue({0: 0}, 10)[0].streams] == ["s", "t"]
    log.silence({0: (second.after, [Look("s", 5, b"6-0", b"{}"), Look("t", None)])})
    assert (broker.admin.zrange(keys.open, 0, -1), broker.admin.xlen(keys.inbox)) == ([b"s"], 1)
    broker.admin.xtrim(keys.inbox, maxlen=0, approximate=False)
    assert log.remove(0, second.after, ["s"], ["t"])
    log.fetch({0: [1]})
    broker.admin.xadd(keys.inbox, {"stream": "s"}, id="10000000000000000-0")
    broker.admin.xadd(keys.inbox, {"stream": "s"})
    expelled = log.expel(0, second.after)
    assert (expelled.refused, expelled.moved) == (1, 1)
    for deleted in ("10000000000000000-0", "10000000000000000-1"):  # then the log's last id cannot be set back
        broker.admin.xadd(keys.inbox, {"stream": "s"}, id=deleted)
    broker.admin.xdel(keys.inbox, "10000000000000000-1")
    broker.admin.xtrim(keys.inbox, minid="10000000000000000-0", approximate=False)
    assert log.expel(0, second.after).refused == 1
    log.release(0)
    log.leave()
    log.close()
    assert broker.denied() == []
    broker.admin.flushall()


def test_a_worker_may_repair_a_shard(broker: Broker) -> None:
    """`rollcast doctor --repair` runs as its user."""
    keys = ShardKeys("rollcast", 0)
    broker.admin.hset("rollcast:meta", mapping={"format": "1", "shards": str(SHARDS)})
    broker.admin.set(keys.head, "life 00 7 10000000000000000-0 0 0")
    broker.admin.hset(keys.pos, mapping={"s": "10000000000000000-0", "t": "5-0"})
    broker.admin.xadd(keys.inbox, {"stream": "s"}, id="10000000000000000-0")
    told: list[str] = []
    repair(broker.url("worker"), "rollcast", told.append)
    assert "mended" in told[-1]
    assert broker.admin.hget(keys.pos, "s") == b"5-0 0-0 - - 5-0"
    assert broker.denied() == []
    broker.admin.flushall()


@pytest.fixture(scope="module")
def api(broker: Broker) -> Iterator[str]:
    """The url of an api, with a worker behind it that took the shards over from one that was killed."""
    first, api = Process("worker", broker), Process("api", broker)
    await_true(lambda: first.said("worker ready") and api.said("listening"), "both are ready", 120)
    url = api.said("listening")[0]["url"].replace("0.0.0.0", "127.0.0.1")
    with Client(url) as client:
        await_true(lambda: not client.reasons_not_ready(), "the api is ready", 60)
    second = Process("worker", broker)
    await_true(lambda: second.said("shards acquired"), "shards are handed over", 120)
    first.end(signal.SIGKILL)  # what the api has measured of its shards is right for up to a second more
    await_true(lambda: second.said("shards acquired")[-1]["owned"] == SHARDS, "the shards are taken over", 60)
    yield url
    assert [one.end() for one in (api, second)] == [0, 0]


def test_nothing_that_the_system_does_is_denied(broker: Broker, api: str) -> None:
    with Client(api) as client:
        image = samples(load_packages()[0]["digits-cnn"])[0].path
        whole = image.read_bytes()
        spoilt = whole[:45] + bytes(len(whole) - 57) + whole[-12:]  # what the api looks at is right
        client.post_frame("door-1", image, model="digits-cnn", wait_s=20)
        for _ in range(3):
            client.post_samples("belt-1", [ROW] * 3, model=MODEL, start=True, wait_s=20)
        client.post_samples("belt-3", [ROW], model=MODEL, seq=7, wait_s=20)
        with pytest.raises(Problem):
            client.post_samples("belt-3", [ROW], model=MODEL, seq=6, wait_s=20)
        client.configure("belt-1", model=MODEL, state_ttl_s=4.0)
        saved = client.save_state("belt-1")
        client.restore("belt-1", saved)
        client.state("belt-1")
        client.reset("belt-1")
        for stream in ("bad-1", "bad-2", "bad-3"):  # more than quarantine keeps
            with pytest.raises(Problem):
                client.post_frame(stream, spoilt, model="digits-cnn", wait_s=20)
        with httpx.Client(base_url=api, trust_env=False, timeout=60) as http:
            call_the_rest(http)
        refused = list(client.dead())
        client.retry_dead(refused[0]["stream"], refused[0]["id"])
        client.dead_bytes(refused[-1]["stream"], refused[-1]["id"])
        client.drop_dead(refused[-1]["stream"], refused[-1]["id"])
        client.delete("belt-1")
        with httpx.stream("GET", f"{api}/v1/predictions?stream=door-*&after=0", trust_env=False, timeout=60) as watched:
            client.post_frame("door-2", image, model="digits-cnn", wait_s=20)
            next(line for line in watched.iter_lines() if line.startswith("data:") and '"door-2"' in line)
    keys = ShardKeys("rollcast", shard_of("door-1", SHARDS))
    await_true(lambda: not broker.admin.hexists(keys.pos, "door-1"), "the janitor removes what is idle", 40)
    assert broker.denied() == []


def call_the_rest(http: httpx.Client) -> None:
    """What the client does not call, or not so."""
    for path in (
        "/v1/streams", "/v1/streams/belt-1", "/v1/streams/belt-1/predictions", "/v1/models",
        "/v1/streams/belt-1/predictions?type=all&after=0", "/v1/dead?reason=bad_image", "/metrics",
    ):  # fmt: skip
        assert http.get(path).status_code == 200, path
    await_true(lambda: http.get("/readyz").status_code == 200, "the api has measured that all shards have an owner", 20)
    for sort in ("lag", "drops", "restarts"):
        assert http.get("/v1/streams", params={"sort": sort}).status_code == 200, sort
    fsync = http.post(f"/v1/streams/belt-2/samples?model={MODEL}&ack=fsync", json={"samples": [ROW]})
    assert (fsync.status_code, "appendfsync" in fsync.json()["detail"]) == (501, True)
    lines = "".join(
        json.dumps({"stream": f"many-{n}", "kind": "samples", "samples": [ROW], "model": MODEL}) + "\n"
        for n in range(9)
    )
    posted = http.post("/v1/entries", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert [json.loads(line)["stream"] for line in posted.text.splitlines()] == [f"many-{n}" for n in range(9)]


@pytest.mark.parametrize("user", ["monitor", "api"])
def test_doctor_sees_what_it_asks_for(broker: Broker, api: str, user: str) -> None:
    """`api`: in the api's container, by its own URL."""
    broker.admin.xadd(DEAD, {"reason": "bad_image", "data": "x"})
    done = subprocess.run(
        [*COMMAND, "doctor", "--shards", str(SHARDS), "--json"],
        env=environment() | {"ROLLCAST_BROKER": broker.url(user)}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert [check for check, one in findings.items() if one["verdict"] == "unknown"] == []
    assert findings["shards"]["verdict"] == "well"
    assert re.match(r"\d refused entries: bad_image \d", findings["quarantine"]["found"])
    assert broker.denied() == []


# --- and no more -------------------------------------------------------------------------------------------------

IN, OUT, STATE = "rollcast:{0}:in", "rollcast:{0}:out:cam-1", "rollcast:{0}:state:cam-1"
HEAD, POS, DEAD, META = "rollcast:{0}:head", "rollcast:{0}:pos", "rollcast:{0}:dead", "rollcast:meta"
DENIED = re.compile("no permissions|acl failure|can't (run|access)", re.IGNORECASE)
ENTRY = ("*", "stream", "cam-1", "kind", "frame", "data", "x")
NOBODY: list[tuple[str, ...]] = [  # of the roles
    ("FLUSHALL",), ("FLUSHDB",), ("SHUTDOWN", "NOSAVE"), ("SAVE",), ("BGREWRITEAOF",),
    ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "REWRITE"), ("ACL", "LIST"), ("ACL", "SETUSER", "x", "on"),
    ("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",), ("MONITOR",), ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "LIST"),
    ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("REPLICAOF", "127.0.0.1", "1"), ("MODULE", "LIST"),
    ("SWAPDB", "0", "1"),
    ("PUBLISH", "x", "x"), ("SUBSCRIBE", "x"), ("RENAME", IN, "x"), ("COPY", IN, "x"), ("DUMP", IN),
    ("EXPIRE", IN, "1"),
    ("GET", "other"), ("SET", "other", "x"), ("XADD", "other", "*", "a", "b"), ("SET", META, "x"), ("DEL", META),
    ("XDEL", IN, "1-0"),
    ("XREADGROUP", "GROUP", "rollcast", "x", "STREAMS", IN, ">"),
    *(("XADD", f"rollcast:{{{shard}}}:in", *ENTRY) for shard in ("32", "99", "00", "-1", "1000", "x", "0}:in:{0")),
]  # fmt: skip
BEGIN_ANEW: list[tuple[str, ...]] = [("DEL", IN), ("XSETID", IN, "1-0")]
MAY_NOT: dict[str, list[tuple[str, ...]]] = {
    "api": [
        *BEGIN_ANEW,
        ("XADD", OUT, "*", "type", "x"), ("DEL", OUT), ("XTRIM", IN, "MAXLEN", "0"), ("SET", HEAD, "x"), ("DEL", STATE),
        ("SET", STATE, "x"), ("HSET", POS, "cam-1", "x"), ("XADD", DEAD, "*", "a", "b"), ("DEL", DEAD),
        ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", HEAD),
    ],
    "worker": [
        ("HSET", META, "shards", "1"), ("CONFIG", "GET", "*"),
        ("XGROUP", "DESTROY", IN, "rollcast"),
        ("EVAL", "return redis.call('XGROUP', 'DESTROY', KEYS[1], 'rollcast')", "1", IN),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ],
    "producer": [
        *BEGIN_ANEW,
        ("XRANGE", IN, "-", "+"), ("XREAD", "STREAMS", IN, "0"), ("XLEN", IN), ("XTRIM", IN, "MAXLEN", "0"),
        ("XADD", OUT, "*", "type", "x"), ("XRANGE", OUT, "-", "+"), ("GET", STATE), ("GET", HEAD), ("INFO",), ("TIME",),
        ("EVAL", "return 1", "0"), ("HSET", META, "shards", "1"), ("CONFIG", "GET", "*"), ("MULTI",),
    ],
    "subscriber": [
        *BEGIN_ANEW,
        ("XADD", IN, *ENTRY), ("XRANGE", IN, "-", "+"), ("XREAD", "STREAMS", IN, "0"), ("XRANGE", DEAD, "-", "+"),
        ("XADD", OUT, "*", "type", "x"), ("DEL", OUT), ("XDEL", OUT, "1-0"), ("GET", STATE), ("HGET", POS, "cam-1"),
        ("GET", HEAD), ("INFO",), ("EVAL", "return 1", "0"), ("CONFIG", "GET", "*"),
    ],
    "monitor": [
        *BEGIN_ANEW,
        ("XADD", IN, *ENTRY), ("XRANGE", OUT, "-", "+"), ("XREAD", "STREAMS", OUT, "0"), ("GET", STATE),
        ("SET", HEAD, "x"), ("XDEL", DEAD, "1-0"), ("HSET", POS, "cam-1", "x"), ("SLOWLOG", "GET"),
        ("LATENCY", "RESET"), ("MULTI",), ("EVAL", "return 1", "0"), ("EVALSHA", "0" * 40, "0"),
        ("EVAL_RO", "return 1", "0"), ("FCALL", "f", "0"), ("SCRIPT", "LOAD", "return 1"),
    ],
    "health": [
        ("INFO",), ("TIME",), ("CONFIG", "GET", "*"), ("XADD", IN, *ENTRY), ("XLEN", IN), ("GET", HEAD), ("GET", META),
        ("EVAL", "return 1", "0"), ("MULTI",), ("SHUTDOWN", "NOSAVE"),
    ],
}  # fmt: skip


def test_a_producer_reaches_every_shard_and_no_other(quiet: Broker) -> None:
    allowed = [f"rollcast:{{{shard}}}:in" for shard in range(40)]
    for key in allowed:
        said = quiet.admin.execute_command("ACL", "DRYRUN", "producer", "XADD", key, *ENTRY)
        assert (said == b"OK") == (key in allowed[:32]), (key, said)


@pytest.mark.parametrize("user", list(MAY_NOT))
def test_a_role_may_not(quiet: Broker, user: str) -> None:
    with quiet.as_user(user) as client:
        for command in NOBODY + MAY_NOT[user]:
            with pytest.raises(redis.ResponseError) as refused:
                client.execute_command(*command)
            assert DENIED.search(str(refused.value)), (command, refused.value)
    assert (quiet.admin.keys(), quiet.admin.xlen(IN)) == ([IN.encode()], 1)


ENDLESS, WRITTEN = "while true do end", "redis.call('XTRIM', KEYS[1], 'MAXLEN', 1) while true do end"


@contextmanager
def running(broker: Broker, script: str, *keys: str) -> Iterator[None]:
    """While it runs; it ends with its connection, or with the broker."""

    def run() -> None:
        with broker.as_user("worker") as client, suppress(redis.RedisError):
            client.eval(script, len(keys), *keys)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        await_true(lambda: "BUSY" in health(broker, "ping"), "the script holds the broker", 20)
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()


def health(broker: Broker, *command: str) -> str:
    with broker.as_user("health", "") as client:
        try:
            return str(client.execute_command(*command))
        except redis.RedisError as error:
            return str(error)


def test_the_api_ends_a_script_that_does_not_end(quiet: Broker) -> None:
    async def end() -> str | None:
        predictions = RedisPredictions(quiet.url("api"), shards=SHARDS)
        try:
            return await predictions.end_script()
        finally:
            await predictions.close()

    with running(quiet, ENDLESS):
        for user in ("worker", "producer", "subscriber", "monitor"):
            with quiet.as_user(user) as client, pytest.raises(redis.ResponseError, match=DENIED):
                client.script_kill()
        assert asyncio.run(end()) == "OK"
    assert asyncio.run(end()) is None


def test_the_health_check_ends_a_script_and_if_it_has_written_the_broker(binary: str, project: Path) -> None:
    """Of such a script nothing is kept, of what was acknowledged everything."""
    broker = Broker(binary, project)
    folder = broker.folder / "bin"
    folder.mkdir()
    (folder / "redis-cli").write_text(
        f'#!/bin/sh\nexec {needs("redis-cli", "redis-tools")} -s {broker.folder}/s "$@"\n'
    )
    (folder / "redis-cli").chmod(0o755)

    def check() -> tuple[int, str]:
        done = subprocess.run(
            ["sh", str(project / "deploy/redis/healthy.sh")],
            cwd=broker.folder, env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout

    try:
        fields = dict(zip(ENTRY[1::2], ENTRY[2::2], strict=True))
        for _ in range(3):
            broker.admin.xadd(IN, fields)
        assert check() == (0, "")
        with running(broker, ENDLESS):
            assert check() == (1, "a script held the broker; ending it: OK\n")
        assert check() == (0, "")
        with running(broker, WRITTEN, IN):
            assert check()[0] == 1
        assert broker.process.wait(20) == 1
        assert check()[0] == 1
        broker.start()
        assert broker.admin.xlen(IN) == 3
    finally:
        broker.close()


def test_nobody_comes_in_without_a_role_and_its_password(quiet: Broker) -> None:
    with quiet.as_user(None) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    for user, password in (("default", ""), ("api", "worker"), ("nobody", "x"), ("api", quiet.password("worker"))):
        with (
            quiet.as_user(user, password) as client,
            pytest.raises(redis.RedisError, match="invalid username-password"),
        ):
            client.ping()
