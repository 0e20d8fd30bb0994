"""Dashboards: the JSON is what the code makes, and shows what happened, asked of a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import yaml
from prometheus_client import CollectorRegistry

from deploy.grafana.generate import DASHBOARDS, FOLDER, rendered
from deploy.grafana.panels import COLUMNS
from service.embedded import EmbeddedBroker
from service.keys import ShardKeys, shard_of
from service.metrics import ApiMetrics, WorkerMetrics
from service.packages import zoo_folder
from service.processes import stop, tied
from tests.deployment import COMMAND, await_true, environment
from tests.prometheus import Prometheus

ZOO = [folder.name for folder in zoo_folder().iterdir()]

SHARDS = 4
PATIENCE_S = 100.0  # processes start slowly where many do
RATE = "10s"  # on a busy machine scrapes are late: Grafana takes four times the interval, at least
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 500ms}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: rollcast
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
RULES = FOLDER.parents[1] / "prometheus" / "rules" / "alerts.yml"
SAMPLES = zoo_folder() / "digits-cnn" / "1" / "samples"
DIGITS = sorted(SAMPLES.glob("*.png"))
ROWS = [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3]] * 2


# --- as files ----------------------------------------------------------------------------------------------------


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """(dashboard, panel), as they are committed."""
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            if panel["type"] != "row":
                yield path.stem.removeprefix("rollcast-"), panel


def test_the_committed_json_is_what_the_code_makes() -> None:
    assert {path: path.read_text("utf-8") for path in FOLDER.glob("*")} == dict(rendered())


def test_panels_say_what_they_answer_and_do_not_overlap() -> None:
    for path in FOLDER.glob("*.json"):
        dashboard = json.loads(path.read_text("utf-8"))
        taken = Counter[tuple[int, int]]()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= COLUMNS
            taken.update(
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            )
            assert panel["type"] == "row" or (panel["description"] and panel["targets"]), panel["title"]
        assert max(taken.values()) == 1
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({dashboard.uid for dashboard in DASHBOARDS}) == 5


def test_every_metric_has_a_panel_and_every_panel_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    ApiMetrics(registry)
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    there = {"rollcast_build_info": "rollcast_build_info"}
    there |= {family.name + suffix: family.name for family in registry.collect() for suffix in suffixes[family.type]}
    used = {
        name
        for _, panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"rollcast_\w+", target["expr"])
    }
    assert used <= set(there)
    assert {there[name] for name in used} == set(there.values())


def test_provisioning_names_what_is_there() -> None:
    folder = FOLDER.parent / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "rollcast.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "${PROMETHEUS_URL}")
    (provider,) = yaml.safe_load((folder / "dashboards" / "rollcast.yaml").read_text())["providers"]
    assert (provider["type"], Path(provider["options"]["path"]).parts[-2:]) == ("file", ("dashboards", "rollcast"))


# --- alive -------------------------------------------------------------------------------------------------------


class Fleet:
    """A broker, an api and workers as processes of their own, so that workers can stay dead for a while."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = EmbeddedBroker(folder / "b")
        self.broker.start()
        self.client: Any = redis.Redis.from_url(self.broker.url)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.api = self._start("api", "--port", "0")
        await_true(lambda: b"listening" in self.said("api"), "the api listens", PATIENCE_S)
        url = re.search(rb"http://[0-9.:]+", self.said("api"))
        assert url is not None
        self.http = httpx.Client(base_url=url[0].decode(), trust_env=False, timeout=30)

    def hire(self, workers: int = 2) -> None:
        self.workers = [
            self._start("worker", "--number", str(n), "--lease-s", "3", "--metrics-port", "0") for n in range(workers)
        ]

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers = []

    def said(self, name: str) -> bytes:
        return (self.folder / f"{name}.log").read_bytes()

    def ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def add(self, stream: str, **fields: Any) -> None:
        """A producer that writes into the log itself."""
        keys = ShardKeys("rollcast", shard_of(stream, SHARDS))
        self.client.xadd(keys.inbox, {"stream": stream, **fields})

    def add_rows(self, stream: str, rows: Any) -> None:
        data = np.array(rows, "<f4")
        shape = ",".join(map(str, data.shape))
        self.add(stream, kind="samples", model="activity-lstm", shape=shape, data=data.tobytes())

    def post(self, stream: str, **query: Any) -> httpx.Response:
        """A digit; `which` of them."""
        content = DIGITS[query.pop("which", 0) % len(DIGITS)].read_bytes()
        params = {"model": "digits-cnn", "wait": 20} | query
        headers = {"Content-Type": "image/png"}
        return self.http.post(f"/v1/streams/{stream}/frames", content=content, params=params, headers=headers)

    @contextmanager
    def listening(self, stream: str) -> Iterator[None]:
        headers = {"Accept": "text/event-stream"}
        with self.http.stream("GET", f"/v1/streams/{stream}/predictions", headers=headers) as response:
            assert response.status_code == 200
            yield

    def close(self) -> None:
        self.http.close()
        self.kill()
        stop(self.api, 10)
        self.client.close()
        self.broker.stop()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        where = ("--broker", self.broker.url, "--home", str(self.folder), "--shards", str(SHARDS))
        command = [*COMMAND, *arguments, *where]
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(
                tied(command, signal.SIGKILL), stdout=log, stderr=log, env=environment(), stdin=subprocess.DEVNULL
            )


class Shown:
    """What a panel shows."""

    def __init__(self, prometheus: Prometheus, start: float) -> None:
        self.prometheus, self.start = prometheus, start
        self.panels = {(dashboard, panel["title"]): panel for dashboard, panel in panels()}

    def values(self, dashboard: str, title: str, model: str = ".*") -> list[tuple[dict[str, str], float]]:
        panel, now = self.panels[dashboard, title], time.time()
        return [
            row
            for target in panel["targets"]
            for row in self.prometheus.now(self.filled(target["expr"], now, model), now)
        ]

    def value(self, dashboard: str, title: str, model: str = ".*") -> float:
        found = self.values(dashboard, title, model)
        return found[0][1] if len(found) == 1 else math.nan

    def counts(self, title: str, name: str, model: str = ".*") -> dict[str, float]:
        """Of a panel about models."""
        return {labels[name]: value for labels, value in self.values("models", title, model)}

    def labels(self, dashboard: str, title: str, name: str) -> set[str]:
        return {labels[name] for labels, _ in self.values(dashboard, title)}

    def data(self, panel: dict[str, Any], target: dict[str, Any], end: float) -> list[float]:
        expr = self.filled(target["expr"], end)
        if target["instant"]:
            return [value for _, value in self.prometheus.now(expr, end) if math.isfinite(value)]
        return self.prometheus.over(expr, self.start, end)

    def filled(self, expr: str, end: float, model: str = ".*") -> str:
        """As Grafana fills in its variables."""
        values = {
            "$__rate_interval": RATE,
            "$__range": f"{math.ceil(end - self.start)}s",
            "$job": ".*",
            "$model": model,
        }
        filled = expr
        for name, value in values.items():
            filled = filled.replace(name, value)
        assert "$" not in filled
        return filled


def at_once(rules: str) -> Any:
    """Alert rules that fire without waiting."""
    groups = yaml.safe_load(rules)
    for group in groups["groups"]:
        for rule in group["rules"]:
            rule |= {"for": "0s"}
            rule.pop("keep_firing_for", None)
    return groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("g")


def test_panels_show_what_happened_and_every_one_of_them_has_data(folder: Path) -> None:
    fleet = Fleet(folder)
    with ExitStack() as stack:
        stack.callback(fleet.close)
        fleet.hire()
        port = fleet.http.base_url.port
        (folder / "alerts.yml").write_text(yaml.safe_dump(at_once(RULES.read_text("utf-8"))))
        prometheus = stack.enter_context(Prometheus(folder, CONFIG.format(port=port)))
        await_true(fleet.ready, "everything is ready", PATIENCE_S)
        await_true(
            lambda: prometheus.one("sum(rollcast_shards_held)") == SHARDS,
            "Prometheus sees every shard owned",
            PATIENCE_S,
        )
        shown = Shown(prometheus, time.time())

        def see(dashboard: str, title: str, expected: float, model: str = ".*") -> None:
            await_true(
                lambda: shown.value(dashboard, title, model) == expected,
                f"{dashboard}: {title!r} shows {expected}, not {shown.values(dashboard, title, model)}",
                PATIENCE_S,
            )

        # a quiet time, with nothing wrong
        stack.enter_context(fleet.listening("cam-0"))
        stack.enter_context(fleet.listening("cam-1"))
        see("overview", "Live workers", 2)
        see("overview", "Shards without an owner", 0)
        see("overview", "Refused entries", 0)

        # load, with everything that can be wrong with an entry
        labels = Counter[str]()
        for n in range(30):
            labels[fleet.post(f"cam-{n % 6}", which=n).json()["label"]] += 1
            fleet.add_rows(f"belt-{n % 4}", ROWS)
        assert fleet.post("cam-7", seq=7).status_code == 200
        assert [fleet.post("cam-7", seq=seq).status_code for seq in (7, 7, 7, 3)] == [409, 409, 409, 410]
        for _ in range(5):
            fleet.add("cam-0", kind="frame", data=b"\x89PNG\r\n\x1a\n")
        for _ in range(2):
            fleet.add_rows("belt-0", [[math.nan] * 6])
        labels[fleet.post("cam-7", seq=8).json()["label"]] += 2  # and seq 7: the same picture
        assert fleet.http.delete("/v1/streams/cam-5/state").status_code == 200
        answered = 30 + 30 + 1 + 4 + 5 + 2 + 1 + 1
        await_true(
            lambda: prometheus.one("sum(rollcast_records_total)") == answered,
            f"Prometheus saw {answered} records, not {prometheus.one('sum(rollcast_records_total)')}",
        )

        # every worker dies, a state is lost, and entries wait
        fleet.kill()
        keys = ShardKeys("rollcast", shard_of("cam-2", SHARDS))
        assert fleet.client.delete(keys.state("cam-2")) == 1
        for _ in range(7):
            fleet.add_rows("belt-1", ROWS)
        see("overview", "Shards without an owner", 4)
        see("overview", "Entries that wait", 7)
        see("overview", "Live workers", 0)
        await_true(lambda: "RollcastNoWorker" in shown.labels("overview", "Alerts that fire", "alertname"), "it fires")
        await_true(lambda: shown.value("overview", "Alerts") >= 1, "and is counted")
        await_true(lambda: shown.value("overview", "Oldest entry that waits") > 0, "and their age is seen")
        assert fleet.post("cam-3").status_code == 503

        # and they come back
        fleet.hire()
        await_true(
            lambda: prometheus.one("sum(rollcast_shards_held)") == SHARDS, "every shard is owned again", PATIENCE_S
        )
        see("overview", "Entries that wait", 0)
        found = fleet.post("cam-2").json()
        labels[found["label"]] += 1
        assert found["restarted"] == "lost"
        fresh = answered + 7 + 1
        see("overview", "States lost", 1)
        see("overview", "Live workers", 2)
        see("overview", "Broker", 1)
        see("overview", "Entries without a record", 0)
        see("overview", "Refused entries", 7)
        see("streams", "Streams known", 6 + 4 + 1)
        see("streams", "Subscriptions", 2)
        see("models", "Not finite", 2)
        see("broker", "Keys evicted", 0)
        total = pytest.approx(labels.total(), rel=0.06)  # `increase` reckons with what it did not see at the ends
        await_true(lambda: shown.value("models", "Predictions", "digits-cnn") == total, f"{total} predictions")
        await_true(lambda: shown.counts("Versions", "model") == dict.fromkeys(ZOO, 2), "versions")
        each = {label: pytest.approx(n, abs=1) for label, n in labels.items()}
        await_true(
            lambda: shown.counts("Predictions of each label", "label", "digits-cnn") == each,
            f"{each}, not {shown.counts('Predictions of each label', 'label', 'digits-cnn')}",
        )
        records = pytest.approx(fresh, rel=0.06)
        await_true(lambda: prometheus.one("sum(increase(rollcast_records_total[10m]))") == records, "every record")

        # every panel
        queries = [(name, panel, target) for name, panel in panels() for target in panel["targets"]]
        assert len(queries) > 90

        def empty() -> list[str]:
            assert fleet.post("cam-1").status_code == 200  # a score is shown while something is scored
            fleet.add_rows("belt-1", ROWS)
            end = time.time()
            return [
                f"{name}: {panel['title']}: {target['expr']}"
                for name, panel, target in queries
                if not shown.data(panel, target, end)
            ]

        try:
            await_true(lambda: not empty(), "every panel has data", PATIENCE_S)  # a scrape may be late
        finally:
            print("\n".join(empty()))

        # what the broker's page says of a broker that was set wrongly
        see("broker", "Never evicts", 1)
        fleet.client.config_set("maxmemory-policy", "allkeys-lru")
        see("broker", "Never evicts", 0)
