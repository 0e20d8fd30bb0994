"""Metrics cost nothing an entry, and show what was counted."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import VERSION
from service.errors import PortInUse
from service.metrics import (
    SCRAPERS,
    SECONDS,
    ApiMetrics,
    Histogram,
    MetricsServer,
    WorkerMetrics,
    create_registry,
    serve_metrics,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def worker(registry: CollectorRegistry) -> WorkerMetrics:
    return WorkerMetrics(registry)


def test_a_counter_shows_its_sum_by_label(registry: CollectorRegistry, worker: WorkerMetrics) -> None:
    worker.entries.labels("samples", "tiny").inc(3)
    worker.entries.labels("samples", "tiny").inc()
    worker.entries.labels("frame", "bright").inc(2)
    worker.duplicates.inc()
    value = registry.get_sample_value
    assert value("rollcast_entries_total", {"kind": "samples", "model": "tiny"}) == 4
    assert value("rollcast_entries_total", {"kind": "frame", "model": "bright"}) == 2
    assert value("rollcast_duplicates_total") == 1
    assert value("rollcast_fenced_total") == 0  # shown before it ever happened


def test_a_gauge_shows_its_last_value(registry: CollectorRegistry, worker: WorkerMetrics) -> None:
    worker.streams.labels("resident").set(7)
    worker.streams.labels("resident").set(5)
    worker.state_bytes.set(1024)
    assert registry.get_sample_value("rollcast_streams", {"where": "resident"}) == 5
    assert registry.get_sample_value("rollcast_state_bytes") == 1024


def test_many_observations_at_once_are_the_same_as_one_by_one() -> None:
    values = np.concatenate([np.random.default_rng(3).exponential(0.1, 1000), SECONDS, [0.0, 1e9, -1.0]])
    one, many = Histogram(SECONDS), Histogram(SECONDS)
    for _ in range(10):  # more than are sorted in at once
        many.observe_many(values.tolist())
        many.observe_many([])
        for value in values:
            one.observe(float(value))
    shown, expected = many.samples(), one.samples()
    assert shown[:-1] == expected[:-1]
    assert shown[-2] == ("_count", {}, 10 * len(values))
    assert shown[-1].value == pytest.approx(expected[-1].value)
    assert many.samples() == shown, "looking changes nothing"


def test_a_histogram_may_be_looked_at_while_it_grows() -> None:
    grows = Histogram(SECONDS)
    seen: list[float] = []

    def look() -> None:
        while not seen or seen[-1] < 100_000:
            seen.append(grows.samples()[-2].value)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(1000):
        grows.observe_many([0.01] * 100)
    thread.join(60)
    assert seen == sorted(seen)
    assert all(count % 100 == 0 for count in seen)


def test_a_value_on_a_bound_counts_below_it(registry: CollectorRegistry, worker: WorkerMetrics) -> None:
    worker.batch_entries.labels("tiny").observe(64)
    worker.batch_entries.labels("tiny").observe_many([65, 5000])
    value = registry.get_sample_value
    assert value("rollcast_batch_entries_bucket", {"model": "tiny", "le": "32.0"}) == 0
    assert value("rollcast_batch_entries_bucket", {"model": "tiny", "le": "64.0"}) == 1
    assert value("rollcast_batch_entries_bucket", {"model": "tiny", "le": "4096.0"}) == 2
    assert value("rollcast_batch_entries_bucket", {"model": "tiny", "le": "+Inf"}) == 3
    assert value("rollcast_batch_entries_count", {"model": "tiny"}) == 3
    assert value("rollcast_batch_entries_sum", {"model": "tiny"}) == 64 + 65 + 5000


def test_labels_are_resolved_once_and_checked(worker: WorkerMetrics) -> None:
    assert worker.steps.labels("tiny") is worker.steps.labels("tiny")
    assert worker.model_info.labels("tiny", 1, "abc") is worker.model_info.labels("tiny", "1", "abc")
    with pytest.raises(ValueError, match="kind"):
        worker.entries.labels("samples")


def test_what_is_shown_is_the_exposition_format(registry: CollectorRegistry, worker: WorkerMetrics) -> None:
    worker.end_to_end_seconds.labels('a"b\\c').observe(0.2)
    ApiMetrics(registry).http_request_seconds.labels("/v1/streams/{stream}", 404).observe(0.001)
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    assert families["rollcast_entries"].type == "counter"
    assert families["rollcast_lag_seconds"].type == "gauge"
    assert families["rollcast_end_to_end_seconds"].type == "histogram"
    assert {s.labels["model"] for s in families["rollcast_end_to_end_seconds"].samples} == {'a"b\\c'}


def test_a_registry_says_which_build_it_is() -> None:
    text = generate_latest(create_registry()).decode()
    assert f'rollcast_build_info{{version="{VERSION}"}} 1.0' in text
    assert "process_cpu_seconds_total" in text


# --- a worker's port ---------------------------------------------------------------------------------------------


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def server(registry: CollectorRegistry, worker: WorkerMetrics, reasons: list[str]) -> Iterator[MetricsServer]:
    server = serve_metrics(registry, 0, list, lambda: reasons)
    yield server
    server.close()


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_worker_serves_its_metrics(server: MetricsServer, worker: WorkerMetrics) -> None:
    worker.steps.labels("tiny").inc(12)
    status, text = get(server, "/metrics?name[]=x")
    assert status == 200
    assert 'rollcast_steps_total{model="tiny"} 12.0' in text


def test_a_worker_says_whether_it_is_ready_and_why_not(server: MetricsServer, reasons: list[str]) -> None:
    assert get(server, "/readyz") == (200, "ok\n")
    reasons.append("the broker is away")
    assert get(server, "/readyz") == (503, "the broker is away\n")
    assert get(server, "/livez") == (200, "ok\n")
    assert get(server, "/")[0] == 404


def test_a_port_in_use_is_named(registry: CollectorRegistry, server: MetricsServer) -> None:
    with pytest.raises(PortInUse, match=rf"metrics port {server.port}.*metrics_port"):
        serve_metrics(registry, server.port, list, list)


def test_closing_frees_the_port(registry: CollectorRegistry) -> None:
    server = serve_metrics(registry, 0, list, list)
    server.close()
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_connections_to_a_workers_port_are_bounded(server: MetricsServer) -> None:
    before = threading.active_count()
    with ExitStack() as opened:
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 60)) for _ in range(100)]
        for one in slow:
            with suppress(OSError):
                one.sendall(b"GET /metrics HTTP/1.1\r\nX-A:")
        for _ in range(3):
            assert get(server, "/livez") == (200, "ok\n")
        assert threading.active_count() <= before + SCRAPERS + 10  # some are about to end
        for one in slow[:80]:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""


def test_a_slow_request_to_a_workers_port_is_cut(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.metrics.SCRAPE_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), 60) as one:
        begun = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - begun < 20:
                one.sendall(b"G")
                time.sleep(0.02)
        assert time.monotonic() - begun < 20


@pytest.mark.parametrize("more", [b"X-A: b\r\n" * 100, b"a" * 1000])
def test_a_large_head_at_a_workers_port_is_refused(server: MetricsServer, more: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as one:
        one.sendall(b"GET /metrics HTTP/1.1\r\nX-A: b\r\n")
        with suppress(OSError):
            one.sendall(more * 64)
            assert one.recv(100).startswith(b"HTTP/1.0 431")
