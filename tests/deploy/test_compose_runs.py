"""`docker compose up`, by the very commands, environment, users, mounts and networks of the file: posts, watches,
scrapes, drains. Where an engine is there, it does it; else namespaces.py does what an engine would."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rollcast import Client, Prediction
from service.codec import id_number
from service.keys import shard_of
from service.packages import load_packages, samples
from tests.conftest import needs
from tests.deploy import engine
from tests.deploy.composed import COMPOSE, DEMO, load, read_env
from tests.deploy.engine import Engine
from tests.deploy.namespaces import BrokerImage, Host, Image
from tests.deployment import await_true

Stand = Host | Engine
ROW = [39.25, 0.43, 22.75, 0.43, 33.75, 1.3]
PORTS = ["8000/metrics", "9101/metrics", "9101/metrics"]
PROMETHEUS = "http://127.0.0.1:9090/api/v1"


@pytest.fixture(scope="module")
def environ(project: Path) -> dict[str, str]:
    return read_env(project / ".env")


@pytest.fixture(scope="module")
def stand(request: pytest.FixtureRequest, project: Path, environ: dict[str, str]) -> Iterator[Stand]:
    """The broker, an api, two workers and Prometheus (which scrapes every second), healthy by their own checks."""
    config = project / "deploy" / "prometheus" / "prometheus.yml"
    config.write_text(re.sub(r"(_interval|_timeout): \w+", r"\1: 1s", config.read_text()))
    stand: Stand
    if engine.there():
        stand = Engine(project)
    else:
        for program, package in (("redis-server", "redis-server"), ("prometheus", "prometheus"), ("wget", "wget")):
            needs(program, package)
        image = request.getfixturevalue("built").image
        images = dict.fromkeys(("api", "worker", "demo"), image)
        images |= {"redis": BrokerImage(), "prometheus": Image(entrypoint=["prometheus"])}
        stand = Host(project, load(COMPOSE, DEMO, environ=environ), images)
    try:
        stand.up(redis=1, api=1, worker=2, prometheus=1)
        yield stand
    finally:
        stand.close()


@pytest.fixture(scope="module")
def client(stand: Stand) -> Iterator[Client]:
    with Client(stand.url("api")) as client:
        yield client


def broker(stand: Stand, environ: dict[str, str], user: str, *command: str, stdin: bytes = b"") -> str:
    """redis-cli in the broker's container, as one of its users."""
    asked = ["redis-cli", "--user", user, "--pass", environ[f"REDIS_PASSWORD_{user.upper()}"], "--no-auth-warning"]
    done = stand.run("redis", *asked, *command, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace").strip()


def prometheus(stand: Stand, path: str) -> Any:
    done = stand.run("prometheus", "wget", "-q", "-O", "-", f"{PROMETHEUS}/{path}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"]


def test_what_is_posted_is_answered_and_seen_by_who_watches(client: Client) -> None:
    digits = [(one.label, one.path) for one in samples(load_packages()[0]["digits-cnn"])][:12]
    seen: list[Prediction] = []

    def watch() -> None:
        with Client(client.url) as own:
            seen.extend(islice(own.predictions("door-*", after="0"), len(digits)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    answers = [
        client.post_frame(f"door-{n % 4}", path, model="digits-cnn", wait_s=30) for n, (_, path) in enumerate(digits)
    ]
    watcher.join(60)
    assert sorted(one.id for one in seen) == sorted(one.id for one in answers)
    right = [one.label == label for one, (label, _) in zip(answers, digits, strict=True)]
    assert sum(right) >= len(digits) - 1


def test_producers_and_subscribers_that_speak_redis_have_users_of_their_own(
    stand: Stand, client: Client, environ: dict[str, str]
) -> None:
    shard = shard_of("belt-1", 32)
    data = np.array([ROW], "<f4").tobytes()
    fields = ["stream", "belt-1", "kind", "samples", "model", "activity-lstm", "shape", "1,6", "data"]
    entry = broker(stand, environ, "producer", "-x", "XADD", f"rollcast:{{{shard}}}:in", "*", *fields, stdin=data)
    out = f"rollcast:{{{shard}}}:out:belt-1"
    await_true(lambda: entry in broker(stand, environ, "subscriber", "XRANGE", out, entry, entry), "its record", 60)
    assert client.newest("belt-1") == entry


def test_prometheus_finds_the_api_and_every_worker(stand: Stand, client: Client) -> None:
    client.post_samples("belt-2", [ROW], model="activity-lstm", wait_s=30)

    def up() -> list[str]:
        targets = prometheus(stand, "targets?state=active")["activeTargets"]
        return sorted(one["scrapeUrl"].rpartition(":")[2] for one in targets if one["health"] == "up")

    await_true(lambda: [port for port in up() if port in PORTS] == PORTS, "two workers and an api are scraped", 90)
    groups = prometheus(stand, "rules")["groups"]
    assert groups
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    counted = 'query?query=sum(rollcast_records_total{model="activity-lstm",type="prediction"})'
    await_true(
        lambda: any(float(one["value"][1]) >= 1 for one in prometheus(stand, counted)["result"]), "the record", 40
    )


def test_doctor_finds_nothing_to_fix(stand: Stand) -> None:
    command = ("rollcast", "doctor", "--url", "http://127.0.0.1:8000", "--json")
    looks = []

    def shared() -> bool:  # a worker is healthy with its first shard: the others may just be changing hands
        looks.append(stand.run("api", *command))
        found = json.loads(looks[-1].stdout)["findings"]
        return [one["verdict"] for one in found if one["check"] == "shards"] == ["well"]

    await_true(shared, "the workers have shared the shards")
    done = looks[-1]
    findings = json.loads(done.stdout)["findings"]
    assert [one for one in findings if one["verdict"] in ("fix", "unknown")] == []
    assert done.returncode == 0


def test_the_broker_is_out_of_reach_of_those_who_only_look(stand: Stand) -> None:
    def reaches(service: str, url: str) -> bool:
        return stand.run(service, "wget", "-q", "-T", "3", "-t", "1", "-O", "/dev/null", url).returncode == 0

    assert reaches("prometheus", "http://api:8000/livez")
    assert not reaches("prometheus", "http://redis:6379/")
    worker = stand.run("worker", "python", "-c", "import socket; socket.create_connection(('redis', 6379), 3)")
    assert worker.returncode == 0
    other = stand.run("prometheus", "wget", "-T", "3", "-t", "1", "-O", "/dev/null", "http://redis:6379/")
    assert b"redis" in other.stderr


LOOK = """
import json, os, pathlib, service
def fails(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as error:
        return error.strerror
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "rights": int(status["CapEff"], 16), "no_new": status["NoNewPrivs"],
    "code": service.__file__, "root": fails("/opt/rollcast/x"), "etc": fails("/etc/x"), "tmp": fails("/tmp/x"),
}))
"""


@pytest.mark.parametrize("service", ["api", "worker"])
def test_processes_are_nobody_and_may_write_nothing_but_tmp(stand: Stand, service: str) -> None:
    done = stand.run(service, "python", "-c", LOOK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("code").startswith("/opt/rollcast/lib/")
    read_only = "Read-only file system"
    assert found == {
        "uid": 10001, "gid": 10001, "rights": 0, "no_new": "1", "root": read_only, "etc": read_only, "tmp": None,
    }  # fmt: skip


def test_the_demo_beside_it_feeds_it_until_it_is_told_to_stop(stand: Stand) -> None:
    stand.up(demo=1)
    await_true(lambda: "digit-1 " in stand.said("demo") and "sensor-12 " in stand.said("demo"), "predictions", 120)
    status, said = stand.stop("demo")
    assert status == 0
    assert "digits-cnn: accuracy" in said


def test_a_worker_that_is_told_to_stop_drains_and_nothing_waits_for_its_lease(stand: Stand, client: Client) -> None:
    posted: dict[str, list[str]] = {f"drain-{n}": [] for n in range(8)}
    done = threading.Event()

    def post() -> None:
        with Client(stand.url("api")) as own:
            while not done.is_set():
                for stream, ids in posted.items():
                    ids.append(own.post_samples(stream, [ROW] * 4, model="activity-lstm").id)

    poster = threading.Thread(target=post)
    poster.start()
    try:
        await_true(lambda: min(map(len, posted.values())) >= 3, "entries are posted", 90)
        status, said = stand.stop("worker")
        before = {stream: len(ids) for stream, ids in posted.items()}
        await_true(lambda: all(len(ids) > before[s] + 2 for s, ids in posted.items()), "posting goes on", 90)
    finally:
        done.set()
        poster.join(90)
    assert status == 0
    assert json.loads(said.splitlines()[-1])["event"] == "stopped"
    for stream, ids in posted.items():
        await_true(lambda s=stream, last=ids[-1]: client.newest(s) == last, f"the last entry of {stream}", 90)
        page = client.history(stream, after="0", limit=1000)
        assert [record.id for record in page.records] == ids, stream


def test_what_was_there_is_there_after_all_of_it_was_stopped(stand: Stand, environ: dict[str, str]) -> None:
    with Client(stand.url("api")) as client:
        last = client.post_samples("door-9", [ROW], model="activity-lstm", wait_s=30)
        with httpx.Client(trust_env=False, timeout=30) as http:
            url, head = f"{stand.url('api')}/v1/streams/door-9/predictions", {"Accept": "text/event-stream"}
            with http.stream("GET", url, headers=head) as watched:
                assert watched.status_code == 200
                statuses = [stand.stop("api")[0]]
                assert "event: bye" in watched.read().decode()
    statuses += [stand.stop(service)[0] for service in ("worker", "prometheus", "redis")]
    assert statuses == [0, 0, 0, 0]
    stand.up(redis=1, api=1, worker=1)
    with Client(stand.url("api")) as client:
        again = client.post_samples("door-9", [ROW], model="activity-lstm", wait_s=30)
    assert id_number(again.id) > id_number(last.id)
    assert (again.step, again.restarted) == (last.step + 1, None)
