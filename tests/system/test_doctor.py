"""`rollcast doctor`: well on a deployment that is, and each fault named with its cure."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from service import VERSION
from service.codec import encode_settings, parse_head
from service.contracts import StreamSettings
from service.controls import Control, encode_control
from service.doctor import CHECKS, Finding, examine, status_of
from service.embedded import EmbeddedBroker
from service.packages import zoo_folder
from service.ports import WorkerInfo
from tests.conftest import needs
from tests.deployment import Up, await_true, rollcast
from tests.worlds import SHARDS, BrokerWorld

MODELS = {"activity-lstm": 1, "digits-cnn": 1}
LEASE_S = 60.0  # nobody renews


def copy_models(folder: Path) -> Path:
    for name in MODELS:
        shutil.copytree(zoo_folder() / name, folder / name)
    return folder


def of(findings: list[Finding], check: str) -> list[tuple[str, str, str]]:
    return [(one.verdict, one.found, one.cure) for one in findings if one.check == check]


def wrong(findings: list[Finding]) -> set[str]:
    return {one.check for one in findings if one.verdict in ("fix", "unknown")}


# --- the command -------------------------------------------------------------------------------------------------


def test_a_deployment_that_is_well_is_told_so_by_every_check(deployment: Up) -> None:
    where = ("--home", str(deployment.home), "--shards", "4")
    done = rollcast("doctor", *where, "--url", deployment.url, "--json")
    said = json.loads(done.stdout)
    assert [one for one in said["findings"] if one["verdict"] not in ("well", "advice")] == []
    assert (done.returncode, said["status"], done.stderr) == (0, "well", "")
    assert {one["check"] for one in said["findings"]} == set(CHECKS)
    assert all(set(one) == {"check", "verdict", "found", "cure"} for one in said["findings"])
    shown = rollcast("doctor", *where)
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[-1] == "all is well"
    assert "ok     eviction     maxmemory-policy noeviction" in shown.stdout.splitlines()


def test_what_is_wrong_is_told_with_its_cure_and_exit_status_1(deployment: Up, tmp_path: Path) -> None:
    done = rollcast("doctor", "--home", str(deployment.home), "--shards", "8", "--models", str(tmp_path))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index("FIX    deployment   4 shards, here the setting is 8: no process starts with that")
    assert lines[at + 1].strip() == "→ --shards 4, or another --prefix: shards are fixed for the life of a deployment"
    assert f"no package can be served from {tmp_path}" in done.stdout
    assert lines[-1] == "2 to fix"


def test_a_broker_that_does_not_answer_is_exit_status_2() -> None:
    done = rollcast("doctor", "--broker", "redis://:hunter2@127.0.0.1:1/0", "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    (broker,) = [one for one in said["findings"] if one["check"] == "broker"]
    assert (said["status"], broker["verdict"]) == ("unknown", "unknown")
    assert broker["found"].startswith("broker redis://127.0.0.1:1/0: ")
    assert "hunter2" not in done.stdout + done.stderr


def test_no_broker_at_all_is_unknown(tmp_path: Path) -> None:
    found = examine(None, home=tmp_path)
    assert of(found, "broker")[0][1] == f"no broker is known (looked for {tmp_path / 'broker.sock'})"
    assert status_of(found) == "unknown"


def test_an_api_that_is_away_is_to_be_fixed(broker_url: str) -> None:
    ((verdict, found, _),) = of(examine(broker_url, prefix="nobody", api="http://127.0.0.1:1"), "api")
    assert verdict == "fix"
    assert "no server answers at http://127.0.0.1:1" in found


def test_an_api_that_starts_again_is_asked_again(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [["the broker is away"], [], ["never asked"]]
    monkeypatch.setattr("service.doctor.machine.SETTLE_S", 60.0)
    monkeypatch.setattr("rollcast.Client.models", lambda _: {"models": []})
    monkeypatch.setattr("rollcast.Client.reasons_not_ready", lambda _: said.pop(0))
    assert of(examine(broker_url, prefix="nobody", api="http://127.0.0.1:1"), "api")[0][0] == "well"
    assert said == [["never asked"]]


# --- the broker --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A Redis of this module, to be set wrongly."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("d"), needs("redis-server", "redis-server"))
    broker.start()
    (broker.home / "parity").mkdir()  # packages are proven once
    yield broker
    broker.stop()


@pytest.fixture
def client(own: EmbeddedBroker) -> Iterator[Any]:
    """Whatever a test sets is set back."""
    client: Any = redis.Redis.from_url(own.url)
    names = (
        "maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "timeout",
        "stream-node-max-bytes", "min-replicas-to-write", "maxclients",
    )  # fmt: skip
    before = {name: client.config_get(name)[name] for name in names}
    yield client
    client.replicaof("NO", "ONE")
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


Fault = Callable[[Any], object]


def settings(**values: Any) -> Fault:
    return lambda client: [client.config_set(name.replace("_", "-"), value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("fault", "check", "verdict", "told", "cure"),
    [
        (settings(maxmemory_policy="allkeys-lru"), "eviction", "fix", "maxmemory-policy is allkeys-lru", "noeviction"),
        (settings(maxmemory_policy="volatile-ttl"), "eviction", "fix", "is volatile-ttl", "CONFIG SET"),
        (settings(appendonly="no"), "persistence", "fix", "no append-only file", "CONFIG SET appendonly yes"),
        (settings(appendfsync="no"), "persistence", "fix", "appendfsync no", "CONFIG SET appendfsync everysec"),
        (
            settings(appendfsync="always", no_appendfsync_on_rewrite="yes"),
            "persistence", "fix", "not during a rewrite", "no-appendfsync-on-rewrite no",
        ),
        (settings(timeout=5), "connections", "fix", "idle for 5 s", "CONFIG SET timeout 0"),
        (settings(min_replicas_to_write=2), "role", "fix", "no writes with fewer than 2", "start the replicas"),
        (lambda client: client.replicaof("127.0.0.1", 1), "role", "fix", "a replica of 127.0.0.1:1", "the primary"),
        (settings(stream_node_max_bytes=4096), "node-size", "advice", "4096: 3600 B more", "stream-node-max-bytes 512"),
        (settings(maxmemory="1gb"), "memory", "advice", "2.0 GiB may wait", "lower backlog_bytes"),
    ],
)  # fmt: skip
def test_a_broker_that_is_set_wrongly(
    own: EmbeddedBroker, client: Any, fault: Fault, check: str, verdict: str, told: str, cure: str
) -> None:
    before = examine(own.url, home=own.home)
    assert {one.verdict for one in before if one.check == check} == {"well"}
    fault(client)
    after = examine(own.url, home=own.home)
    ((found_verdict, found, found_cure),) = of(after, check)
    assert (found_verdict, told in found, cure in found_cure) == (verdict, True, True), (found, found_cure)
    assert wrong(after) - wrong(before) == ({check} if verdict == "fix" else set())


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "fix"), (0.75, "advice"), (0.2, "well")])
def test_a_broker_that_fills_up(own: EmbeddedBroker, client: Any, share: float, verdict: str) -> None:
    client.setrange("filling", 16 << 20, b"x")  # so that connections are small beside it
    try:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / share))
        ((found, told, _),) = of(examine(own.url, backlog_bytes=1024), "memory")
    finally:
        client.delete("filling")
    assert found == verdict
    assert "maxmemory)" in told


def test_a_rewrite_of_the_append_only_file_that_failed(own: EmbeddedBroker, client: Any) -> None:
    folder = own.home / "appendonlydir"
    moved = folder.rename(own.home / "away")
    folder.touch()  # a file where it wants its folder
    try:
        with pytest.raises(redis.ResponseError):
            client.bgrewriteaof()
        ((verdict, found, _),) = of(examine(own.url), "persistence")
    finally:
        folder.unlink()
        moved.rename(folder)
    client.bgrewriteaof()
    await_true(lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "ok", "it works again")
    assert (verdict, found) == ("fix", "the last rewrite of the append-only file failed")


def test_a_broker_that_tells_nothing_is_unknown_and_one_that_hides_its_settings_is_not(
    own: EmbeddedBroker, client: Any
) -> None:
    path = own.url.removeprefix("unix://")
    client.execute_command("ACL", "SETUSER", "quiet", "on", ">hunter2", "~*", "+@all", "-config")
    client.execute_command("ACL", "SETUSER", "mute", "on", ">hunter2", "~*", "+@all", "-info")
    quiet = examine(f"unix://quiet:hunter2@{path}", home=own.home)
    assert of(quiet, "persistence") == [("well", "append-only file, appendfsync unknown (it refuses CONFIG GET)", "")]
    assert "broker" not in wrong(quiet)
    mute = examine(f"unix://mute:hunter2@{path}", home=own.home)
    assert status_of(mute) == "unknown"
    assert of(mute, "broker")[0][1].endswith("refuses INFO")
    assert "hunter2" not in repr(quiet + mute)


def test_a_disk_without_room_for_a_rewrite(own: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(own.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1 << 20))
    ((verdict, found, _),) = of(examine(own.url, home=own.home), "disk")
    assert (verdict, "1.0 MiB free" in found) == ("fix", True)


@pytest.mark.parametrize(("off_s", "verdict"), [(3.0, "fix"), (-3.0, "fix"), (0.2, "well")])
def test_a_clock_that_is_wrong(broker_url: str, off_s: float, verdict: str) -> None:
    ((found, told, _),) = of(examine(broker_url, clock=lambda: time.time() + off_s), "clock")
    assert found == verdict
    (said,) = re.findall(r"(\d+\.\d+) s", told)
    assert float(said) == pytest.approx(abs(off_s), abs=0.2)
    assert ("behind" if off_s > 0 else "ahead of") in told


# --- this installation -------------------------------------------------------------------------------------------


def test_two_distributions_of_opencv(broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "opencv_python-4.12.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python\nVersion: 4.12.0\n")
    assert of(examine(broker_url), "opencv")[0][0] == "well"
    monkeypatch.syspath_prepend(tmp_path)
    ((verdict, found, cure),) = of(examine(broker_url), "opencv")
    assert (verdict, "opencv-python and opencv-python-headless" in found) == ("fix", True)
    assert cure.endswith("pip install opencv-python-headless")


def test_a_package_that_is_not_what_it_was(broker_url: str, tmp_path: Path) -> None:
    copy_models(tmp_path / "zoo")
    graph = tmp_path / "zoo" / "digits-cnn" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    refused, served = of(examine(broker_url, models=tmp_path / "zoo"), "packages")
    assert (refused[0], "refused (sha256)" in refused[1], str(graph) in refused[1]) == ("fix", True, True)
    assert served == ("well", "activity-lstm 1: equal to their certificates", "")


# --- what runs -----------------------------------------------------------------------------------------------------


class Deployed(BrokerWorld):
    """A deployment whose workers say what the test wants, and own what it wants."""

    def __init__(self, url: str, prefix: str, home: Path, models: Path) -> None:
        super().__init__(url, prefix, LEASE_S)
        self.home, self.models = home, models
        self.client.hset(f"{prefix}:meta", mapping={"format": 1, "shards": SHARDS})
        self.logs: list[Any] = []

    def worker(self, name: str, shards: range = range(0), **about: Any) -> None:
        log = self.new_log(name)
        self.logs.append(log)
        assert all(log.acquire(shard) is not None for shard in shards)
        said = WorkerInfo(**{"id": name, "models": MODELS, "process": name, "rollcast": VERSION} | about)
        log.renew(list(shards), msgspec.json.encode(said))

    def examine(self, **more: Any) -> list[Finding]:
        return examine(self.url, prefix=self.prefix, shards=SHARDS, home=self.home, models=self.models, **more)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong here stays so: nobody need wait for it."""
    monkeypatch.setattr("service.doctor.shards.SETTLE_S", 0.3)
    monkeypatch.setattr("service.doctor.machine.SETTLE_S", 0.3)
    monkeypatch.setattr("service.doctor.shards.AGAIN_S", 0.01)


@pytest.fixture
def deployed(broker: EmbeddedBroker, prefix: str, two_models: Path) -> Iterator[Deployed]:
    (broker.home / "parity").mkdir(exist_ok=True)
    world = Deployed(broker.url, prefix, broker.home, two_models)
    yield world
    for log in world.logs:
        log.close()
    world.client.close()


def test_workers_that_are_well(deployed: Deployed) -> None:
    deployed.worker("a", range(0, 3))
    deployed.worker("b", range(3, 4))
    found = deployed.examine()
    assert status_of(found) == "well"
    assert of(found, "workers") == [("well", "2 live: a, b", "")]
    assert of(found, "shards") == [("well", "all 4 have an owner: a has 3, b has 1", "")]
    assert of(found, "lag") == [("well", "0 entries wait, the oldest for 0.0 s", "")]
    assert of(found, "quarantine") == [("well", "empty", "")]


def test_nothing_ever_ran_under_this_prefix(broker_url: str) -> None:
    ((verdict, found, cure),) = of(examine(broker_url, prefix="nobody"), "deployment")
    assert (verdict, "under the prefix 'nobody'" in found, "--prefix" in cure) == ("fix", True, True)


def test_a_deployment_of_another_format(deployed: Deployed) -> None:
    deployed.client.hset(f"{deployed.prefix}:meta", "format", 7)
    ((verdict, found, _),) = of(deployed.examine(), "deployment")
    assert (verdict, found.startswith("format 7, ")) == ("fix", True)


def test_no_worker_lives(deployed: Deployed) -> None:
    found = deployed.examine()
    assert of(found, "workers")[0][:2] == ("fix", "no live worker: entries wait")
    assert of(found, "shards")[0][:2] == ("fix", "4 of 4 have no owner: 0, 1, 2, 3")
    assert wrong(found) == {"workers", "shards"}


@pytest.mark.parametrize(
    ("about", "check", "told"),
    [
        ({"trouble": "OOM command not allowed"}, "workers", "b: the broker refuses its commits: OOM command not"),
        ({"models": {"digits-cnn": 1}}, "models", "activity-lstm is not served by b"),
        ({"models": {"digits-cnn": 2, "activity-lstm": 1}}, "models", "digits-cnn is there in versions 1 and 2"),
    ],
)
def test_a_worker_that_is_not_like_the_others(deployed: Deployed, about: dict[str, Any], check: str, told: str) -> None:
    deployed.worker("a", range(SHARDS))
    deployed.worker("b", **about)
    found = deployed.examine()
    ((verdict, said, cure),) = of(found, check)
    assert (verdict, said.startswith(told), bool(cure)) == ("fix", True, True), said
    assert wrong(found) == {check}


@pytest.mark.parametrize("newer", [{"models": {"digits-cnn": 2}}, {"models": MODELS | {"gesture-lstm": 1}}, {}])
def test_an_upgrade_that_goes_on_worker_by_worker_is_told_and_is_nothing_to_fix(
    deployed: Deployed, newer: dict[str, Any]
) -> None:
    deployed.worker("a", range(SHARDS))
    deployed.worker("b", rollcast="99.0.0", **newer)
    found = deployed.examine()
    assert status_of(found) == "well"
    ((verdict, said, cure),) = of(found, "workers")
    assert (verdict, said) == ("advice", f"different versions of rollcast: 1 run {VERSION}, 1 run 99.0.0")
    assert "wait for its end" in cure
    assert {one[0] for one in of(found, "models")} == ({"advice"} if newer else {"well"})


def test_two_workers_of_one_host_with_the_same_name_are_two(deployed: Deployed) -> None:
    """As those of two `rollcast up`."""
    for name, shards in (("a", range(0, 3)), ("b", range(3, SHARDS))):
        deployed.worker(name, shards, process="worker-0", host="here")
    deployed.worker("c", process="worker-1", host="here", models={"digits-cnn": 1})
    found = deployed.examine()
    two = "worker-0 on here (a), worker-0 on here (b)"
    assert of(found, "workers") == [("well", f"3 live: {two}, worker-1 on here", "")]
    assert of(found, "shards")[0][1] == ("all 4 have an owner: worker-0 on here (a) has 3, worker-0 on here (b) has 1")
    assert of(found, "models")[0][1] == "activity-lstm is not served by worker-1 on here"


class Moving:
    """Looks at shards while what they say changes between two looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> None:
        self.looks, left = 0, list(changes)

        def sleep(_: float) -> None:
            self.looks += 1
            if left:
                left.pop(0)()

        monkeypatch.setattr("service.doctor.shards.time.sleep", sleep)
        monkeypatch.setattr("service.doctor.shards.SETTLE_S", 60.0)


def test_a_shard_between_two_owners_is_looked_at_again(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.worker("a", range(SHARDS))
    owner, other = deployed.keys[2].owner, deployed.keys[3].owner
    said = deployed.client.get(owner)
    deployed.client.delete(owner)

    def moves() -> None:
        deployed.client.set(owner, said)  # type: ignore[arg-type]
        deployed.client.delete(other)

    looking = Moving(monkeypatch, moves)
    found = deployed.examine()
    assert looking.looks == 1, "each had an owner at one look"
    assert status_of(found) == "well"
    assert of(found, "shards") == [("well", "1 of 4 change hands, all others have an owner: a has 3", "")]


def test_a_worker_that_comes_and_one_that_goes_are_looked_at_again(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only worker starts anew under another name, while the one before is still listed."""
    deployed.client.zadd(f"{deployed.prefix}:workers", {"gone": 1})
    looking = Moving(
        monkeypatch,
        lambda: deployed.client.set(deployed.keys[0].owner, "b 00"),
        lambda: deployed.worker("b", range(1, SHARDS)),
    )
    found = deployed.examine()
    assert looking.looks == 2
    assert status_of(found) == "well"
    assert of(found, "workers") == [("well", "1 live: b", "")]


def test_a_worker_that_cannot_be_understood(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    deployed.worker("b")
    deployed.client.set(f"{deployed.prefix}:worker:b", b"\x00")
    assert of(deployed.examine(), "workers")[0][:2] == (
        "fix",
        "b: listed, but says nothing that this version can read",
    )


def test_a_model_that_the_api_knows_and_no_worker(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS), models={"activity-lstm": 1})
    ((verdict, found, _),) = of(deployed.examine(), "models")
    assert (verdict, found) == ("fix", "known to the api, served by no live worker: digits-cnn 1")


def test_streams_of_a_model_that_is_gone(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    bound = {f"old-{n}": encode_settings(StreamSettings(model="last-years")) for n in range(3)}
    deployed.client.hset(deployed.keys[1].settings, mapping=bound | {"?": b"17-0"})  # type: ignore[arg-type]
    ((verdict, found, _),) = of(deployed.examine(), "models")
    assert (verdict, found) == ("fix", "3 streams are bound to last-years, which no live worker serves")


def test_a_shard_held_by_nobody_who_lives(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    deployed.client.set(deployed.keys[2].owner, "ghost 00")
    assert of(deployed.examine(), "shards")[0][:2] == ("fix", "held by a worker that is not live: 2")


def test_a_shard_that_is_lost_again_and_again(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    keys = deployed.keys[1]
    head = parse_head(bytes(deployed.client.get(keys.head)))  # type: ignore[arg-type]
    deployed.client.set(keys.head, head._replace(tries=4).encode())
    deployed.client.set(keys.suspect, "17-0 2")
    ((verdict, found, _),) = of(deployed.examine(), "shards")
    assert (verdict, found) == ("fix", "1 was lost 4 times without a commit, now trying entry 17-0")


def test_entries_that_nobody_commits_and_ids_before_their_time(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    now_ms = int(time.time() * 1000)
    entry = {"stream": "s", "kind": "control", "data": encode_control(Control("reset"))}
    for late_s in (90, 80):
        deployed.client.xadd(deployed.keys[3].inbox, entry, id=f"{now_ms - late_s * 1000}-0")  # type: ignore[arg-type]
    found = deployed.examine()
    ((verdict, said, _),) = of(found, "lag")
    waited = re.match(r"2 entries wait, the oldest for (\d+) s", said)
    assert (verdict, waited is not None and int(waited[1]) >= 90) == ("fix", True), said
    assert said.endswith("behind: shards 3; nothing is committed in 3")
    assert wrong(found) == {"lag"}
    deployed.client.xadd(deployed.keys[0].inbox, entry, id=f"{now_ms + 3_600_000}-0")  # type: ignore[arg-type]
    assert any("s ahead of the broker's clock" in said for _, said, _ in of(deployed.examine(), "clock"))


def test_entries_that_wait_for_long_but_are_worked_off(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    keys, over = deployed.keys[3], threading.Event()
    deployed.client.xadd(keys.inbox, {"stream": "s"}, id=f"{int(time.time() * 1000) - 90_000}-0")
    head = parse_head(bytes(deployed.client.get(keys.head)))  # type: ignore[arg-type]

    def commit() -> None:
        n = head.n
        while not over.wait(0.05):
            n += 1
            deployed.client.set(keys.head, head._replace(n=n).encode())

    thread = threading.Thread(target=commit)
    thread.start()
    ((verdict, said, cure),) = of(deployed.examine(), "lag")
    over.set()
    thread.join()
    assert (verdict, said.endswith("they are worked off"), "more workers" in cure) == ("fix", True, True)


def test_what_is_in_quarantine_is_counted_by_reason_and_is_no_fault(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    for shard, reason in ((0, "bad_image"), (2, "bad_image"), (2, "wrong_shape")):
        refused = {"id": "17-0", "stream": "s", "kind": "frame", "reason": reason, "detail": "", "data": b"\xff"}
        deployed.client.xadd(deployed.keys[shard].dead, refused)  # type: ignore[arg-type]
    found = deployed.examine()
    assert of(found, "quarantine")[0][:2] == ("advice", "3 refused entries: bad_image 2, wrong_shape 1")
    assert status_of(found) == "well"


def test_streams_are_counted_and_said_before_new_ones_are_refused(deployed: Deployed) -> None:
    deployed.worker("a", range(SHARDS))
    assert of(deployed.examine(), "streams") == [("well", "0 of 100,000 that may be (max_streams)", "")]
    for n in range(3):
        deployed.client.zadd(deployed.keys[0].streams, {f"s{n}": 1})
    deployed.client.hset(deployed.keys[1].settings, "gone", '{"model":"tiny"}')
    ((verdict, said, cure),) = of(deployed.examine(max_streams=5), "streams")
    assert (verdict, said) == ("advice", "4 of 5 that may be (max_streams): beyond that new ones are refused")
    assert "max_streams" in cure
