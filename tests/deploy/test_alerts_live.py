"""A running deployment, a real Prometheus, the shipped rules: under faults the right alerts fire and no others, and
they end when their causes do.

The rules are those of deploy/prometheus with a minute made a second, but for `for`: a takeover takes as long as ever,
and longer on a busy machine.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.keys import ShardKeys, shard_of
from service.processes import stop, tied
from tests.deployment import COMMAND, ROOT, await_true, environment
from tests.prometheus import Prometheus

SHARDS = 4
BACKLOG_BYTES = 20_000
MODEL = "activity-lstm"
STREAMS = [f"belt-{n}" for n in range(8)]
# On a machine that others use, too, everything may be slow. What is judged by speed alone may fire; nothing else.
SLOW = {
    "RollcastBrokerSlow", "RollcastApiSlow", "RollcastApiSlowBudget", "RollcastAnswersLate",
    "RollcastAnswersLateBudget", "RollcastLagRising",
}  # fmt: skip
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 500ms}}
rule_files: [recording.yml, alerts.yml]
scrape_configs:
  - {{job_name: rollcast-api, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}
"""


def shortened(rules: str) -> str:
    """The same rules, sixty times faster; what must last a minute does so for 8 s, what must last longer for 4 s."""

    def faster(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) * {'m': 60, 'h': 3600, 'd': 86_400}[match[3]] * 1000 // 60}ms"

    rules = re.sub(r"(\[|offset )(\d+)([mhd])", faster, rules)
    rules = re.sub(r"for: (\w+)", lambda match: "for: 8s" if match[1] == "1m" else "for: 4s", rules)
    assert rules.count("rate15m * 900 >") == 1 or "alert:" not in rules
    return rules.replace("rate15m * 900 >", "rate15m * 15 >")


class Deployment:
    """An api and workers that nobody starts again, on a broker under a prefix of their own."""

    def __init__(self, folder: Path, broker: str, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.settings = [
            "--broker", broker, "--prefix", prefix, "--shards", str(SHARDS), "--home", str(folder),
            "--log-format", "json",
        ]  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("api", "api", "--port", "0", "--backlog-bytes", str(BACKLOG_BYTES))
        self.hire(0)
        self.hire(1)
        await_true(lambda: "listening" in self.log("api"), "the api listens", 60)
        lines = [json.loads(line) for line in self.log("api").splitlines()]
        self.url = str(next(line["url"] for line in lines if line["event"] == "listening"))
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    def ready(self) -> None:
        await_true(lambda: self.http.get("/readyz").status_code == 200, "the api is ready", 60)
        await_true(lambda: self.live() == 2, "both workers live", 60)

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                tied([*COMMAND, *command, *self.settings], signal.SIGKILL), stdout=log, stderr=log, env=environment()
            )

    def hire(self, number: int) -> None:
        self.start(f"worker-{number}", "worker", "--number", str(number), "--metrics-port", "0", "--lease-s", "3")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def live(self) -> float:
        (value,) = re.findall(r"^rollcast_workers_live (\S+)$", self.http.get("/metrics").text, re.M)
        return float(value)

    def post(self, lines: list[dict[str, Any]]) -> None:
        body = "".join(json.dumps(line) + "\n" for line in lines)
        self.http.post("/v1/entries", content=body, headers={"Content-Type": "application/x-ndjson"})

    def close(self) -> None:
        self.http.close()
        for name in sorted(self.processes, reverse=True):  # workers first
            stop(self.processes[name], 10)


class Load:
    """What producers do all the time, in a thread; `flood` adds more than the backlog may hold."""

    def __init__(self, deployment: Deployment) -> None:
        self.flood = threading.Event()
        self._deployment = deployment
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rows = base64.b64encode(np.ones((64, 6), "<f4").tobytes()).decode()
        block = {"stream": STREAMS[0], "kind": "samples", "data": rows, "model": MODEL}
        while not self._closing.wait(0.2):
            lines: list[dict[str, Any]] = [
                {"stream": stream, "kind": "samples", "samples": [[1, 2, 3, 4, 5, 6]], "model": MODEL}
                for stream in STREAMS[1:]
            ]
            self._deployment.post(lines + [block] * (30 if self.flood.is_set() else 1))

    def close(self) -> None:
        self._closing.set()
        self._thread.join(60)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Alerts with what tells them apart."""
    found = prometheus.now('ALERTS{alertstate="firing"}')
    alerts = {(labels["alertname"], labels.get("reason") or labels.get("model") or "") for labels, _ in found}
    return {alert for alert in alerts if alert[0] not in SLOW}


def poison(broker: str, prefix: str) -> None:
    """Entries that no api would take: nobody's kind, and rows that are not finite."""
    with redis.Redis.from_url(broker) as client:
        for n in range(10):
            stream = STREAMS[n % len(STREAMS)]
            inbox = ShardKeys(prefix, shard_of(stream, SHARDS)).inbox
            client.xadd(inbox, {"stream": stream, "kind": "smell", "data": b"?"})
            if n < 3:
                data = np.full((1, 6), np.nan, "<f4").tobytes()
                client.xadd(inbox, {"stream": stream, "kind": "samples", "shape": "1,6", "data": data, "model": MODEL})


def test_the_right_alerts_fire_and_no_others_and_they_end(
    tmp_path: Path, broker_url: str, prefix: str, stack: ExitStack
) -> None:
    for name in ("recording.yml", "alerts.yml"):
        (tmp_path / name).write_text(shortened((ROOT / "deploy" / "prometheus" / "rules" / name).read_text()))
    deployment = Deployment(tmp_path, broker_url, prefix)
    stack.callback(deployment.close)
    config = CONFIG.format(port=deployment.url.rpartition(":")[2])
    prometheus = stack.enter_context(Prometheus(tmp_path, config))
    deployment.ready()
    load = Load(deployment)
    stack.callback(load.close)
    await_true(lambda: (prometheus.one("rollcast:appended:rate5m") or 0) > 5, "the load is seen")
    await_true(lambda: prometheus.one("max_over_time(rollcast_workers_live[1m])") == 2, "both workers are seen")
    await_true(lambda: firing(prometheus) == set(), "nothing is left of the start")
    began = time.time()

    deployment.processes["worker-1"].kill()
    load.flood.set()
    poison(broker_url, prefix)
    expected = {
        ("RollcastWorkerDown", ""), ("RollcastQuarantine", "malformed"), ("RollcastNonFinite", MODEL),
        ("RollcastEntriesTurnedAway", "backlog_full"),
    }  # fmt: skip
    seen: set[tuple[str, str]] = set()

    def all_seen() -> bool:
        seen.update(firing(prometheus))
        return seen >= expected

    await_true(all_seen, f"all of {expected} fire", 40)
    told = {alert["labels"]["alertname"]: alert["annotations"] for alert in alerts(prometheus)}
    assert told["RollcastEntriesTurnedAway"]["summary"] == "Entries are not taken: backlog_full"
    assert told["RollcastWorkerDown"]["runbook_url"] == "docs/operations.md#rollcastworkerdown"

    load.flood.clear()
    deployment.processes["worker-1"].wait()
    deployment.hire(1)
    await_true(lambda: firing(prometheus) == set(), "they end with their causes", 60)
    assert ever_fired(prometheus, began) - SLOW == {alert for alert, _ in expected}
    missing = "max(last_over_time(process:rollcast_unrecorded:entries[5m]))"
    await_true(lambda: prometheus.one(missing) == 0, "every entry has its record")


def ever_fired(prometheus: Prometheus, since: float) -> set[str]:
    query = {"query": 'ALERTS{alertstate="firing"}', "start": str(since), "end": str(time.time()), "step": "0.5"}
    found = prometheus.http.get("/api/v1/query_range", params=query).json()["data"]["result"]
    return {one["metric"]["alertname"] for one in found}


def alerts(prometheus: Prometheus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = prometheus.http.get("/api/v1/alerts").json()["data"]["alerts"]
    return found
