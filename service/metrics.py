"""Every metric, in base units, never labelled by stream. docs/metrics.md explains each; a test keeps the two together.

Counting costs a batch microseconds and an entry nothing: plain ints, floats and numpy arrays, written by one thread,
read by the collector whenever somebody scrapes. `labels()` is resolved once, by the caller:

    steps = metrics.steps.labels("activity-lstm")
    steps.inc(int(rows))                                    # per batch
    metrics.stage_seconds.labels("step").observe(seconds)   # per batch
    end_to_end.observe_many(latencies)                      # of B entries, s
"""

from __future__ import annotations

import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service import VERSION
from service.errors import PortInUse

SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
ENTRIES: Final = tuple(float(2**n) for n in range(13))  # 1 … 4096
SCORES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
AT_ONCE: Final = 8192  # values that a histogram sorts in together
SCRAPERS: Final = 16  # connections to a worker's port, at most
SCRAPE_S: Final = 5.0  # how long one of them may last
HEAD_BYTES: Final = 16 * 2**10  # of a request to it
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


# --- what the writers hold ---------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    suffix: str
    labels: dict[str, str]  # besides the family's own
    value: float


class Counter:
    """Only grows. One writer."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, n: float = 1) -> None:
        self.value += n

    def set(self, n: float) -> None:
        """What somebody else counted: it may begin anew, as at a restart."""
        self.value = n

    def samples(self) -> list[_Sample]:
        return [_Sample("_total", {}, self.value)]


class Gauge:
    """The last value set. One writer."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, x: float) -> None:
        self.value = x

    def samples(self) -> list[_Sample]:
        return [_Sample("", {}, self.value)]


class Histogram:
    """Counts by upper bound (inclusive), and the sum. One writer.

    Many values at once are only kept: they are sorted in when AT_ONCE have come, or when somebody looks. In small
    batches most of the time would go into numpy's calls (bench.metrics_cost).
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_sum", "_waiting")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)  # the last: above every bound
        self._sum = 0.0
        self._waiting: list[float] = []
        self._lock = threading.Lock()  # of what waits: looked at by another thread

    def observe(self, x: float) -> None:
        self._counts[bisect_left(self._bounds, x)] += 1
        self._sum += x

    def observe_many(self, values: Sequence[float]) -> None:
        with self._lock:
            self._waiting += values
            if len(self._waiting) >= AT_ONCE:
                self._counts, self._sum = self._sorted_in()
                self._waiting.clear()

    def samples(self) -> list[_Sample]:
        with self._lock:
            counts, total = self._sorted_in()
        below = np.cumsum(counts).tolist()
        bounds = [*map(repr, self._bounds), "+Inf"]
        buckets = [_Sample("_bucket", {"le": bound}, n) for bound, n in zip(bounds, below, strict=True)]
        return [*buckets, _Sample("_count", {}, below[-1]), _Sample("_sum", {}, total)]

    def _sorted_in(self) -> tuple[np.ndarray, float]:
        values = np.array(self._waiting, np.float64)
        below = [np.count_nonzero(values <= bound) for bound in self._bounds]
        return self._counts + np.diff(below, prepend=0, append=len(values)), self._sum + float(values.sum())


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """One name, a child for each set of label values. `labels()` makes a child on first call: keep what it returns."""

    __slots__ = ("children", "make", "names")

    def __init__(self, names: Sequence[str], make: Callable[[], Child]) -> None:
        self.names = tuple(names)
        self.children: dict[tuple[str, ...], Child] = {}
        self.make: Callable[[], Child] = make

    def labels(self, *values: object) -> Child:
        """The child of these label values, in the order of `names`."""
        key = tuple(map(str, values))
        child = self.children.get(key)
        if child is None:
            if len(key) != len(self.names):
                raise ValueError(f"labels {key}: expected one value each for {self.names}")
            child = self.children.setdefault(key, self.make())
        return child

    def samples(self) -> Iterator[_Sample]:
        for values, child in list(self.children.items()):  # copied in one step, while the writer may add a child
            labels = dict(zip(self.names, values, strict=True))
            for suffix, more, value in child.samples():
                yield _Sample(suffix, labels | more, value)


# --- the metrics -------------------------------------------------------------------------------------------------


class WorkerMetrics:
    """What a worker counts. Written only by Worker.run (`stage_seconds` of decode and read: by their one thread)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        add = _Exposition(registry)
        self.entries = add.counters("entries", "Entries taken from the log", "kind", "model")
        self.records = add.counters("records", "Records committed, one an entry", "model", "type")
        self.steps = add.counters("steps", "Steps of the recurrent state committed", "model")
        self.predicted = add.counters("predicted", "Predictions by the label of the last step", "model", "label")
        self.confidence = add.histograms("confidence", "Scores of the predicted labels", SCORES, "model")
        self.events = add.counters("events", "Events decided by the rolling automaton", "model", "label", "type")
        self.stage_seconds = add.histograms("stage_seconds", "Time of one batch in a stage", SECONDS, "stage")
        self.end_to_end_seconds = add.histograms(
            "end_to_end_seconds", "From an entry's id to the commit of its record", SECONDS, "model"
        )
        self.batch_entries = add.histograms("batch_entries", "Entries in one call of the model", ENTRIES, "model")
        self.dropped = add.counters("dropped", "Entries that came too late to be stepped", "reason")
        self.dead = add.counters("dead", "Entries put into quarantine", "reason")
        self.dead_overflow = add.counter("dead_overflow", "Entries that left quarantine: it was full")
        self.entries_trimmed = add.counter("entries_trimmed", "Entries that left the log before they were answered")
        self.duplicates = add.counter("duplicates", "Entries whose seq was finished before")
        self.restarts = add.counters("restarts", "States that started anew", "model", "reason")
        self.silenced = add.counters("silenced", "Streams that fell silent with labels inside", "model")
        self.streams = add.gauges("streams", "Streams whose state is held", "where")
        self.state_bytes = add.gauge("state_bytes", "Bytes of the resident states")
        self.evictions = add.counter("evictions", "Streams that left memory because others needed the room")
        self.loads = add.counter("loads", "States read back from the broker")
        self.swept = add.counters("swept", "What was removed because its time was over", "what")
        self.nonfinite = add.counters("nonfinite", "Steps not committed: the state would not be finite", "model")
        self.shards_held = add.gauge("shards_held", "Shards this worker holds")
        self.shards_lost = add.counters("shards_lost", "Shards that were thrown away because of a doubt", "reason")
        self.fenced = add.counter("fenced", "Commits refused because the shard was lost")
        self.commit_errors = add.counter("commit_errors", "Commits the broker answered with an error")
        self.model_info = add.gauges("model_info", "Models served; always 1", "model", "version", "sha256")


class ApiMetrics:
    """What an api process counts, and what it measures of the shards. Written only by its event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        add = _Exposition(registry)
        self.lag_entries = add.gauges("lag_entries", "Unfinished entries in the log", "shard")
        self.lag_seconds = add.gauges("lag_seconds", "Age of the oldest unfinished entry", "shard")
        self.lag_bytes = add.gauges("lag_bytes", "About what the unfinished entries take in the broker", "shard")
        self.shard_owned = add.gauges("shard_owned", "1 while a worker holds the shard's lease", "shard")
        self.streams_known = add.gauge("streams_known", "Streams of the deployment, idle ones among them")
        self.streams_limit = add.gauge("streams_limit", "How many there may be (max_streams)")
        self.workers_live = add.gauge("workers_live", "Workers that told the broker that they live")
        self.appended = add.counter("appended", "Entries put into the log by this process")
        self.turned_away = add.counters("turned_away", "Entries not taken for now, whatever way they came", "reason")
        self.problems = add.counters("problems", "Problems that clients were told, in whatever way", "way", "type")
        self.subscribers = add.gauges("subscribers", "Open subscriptions", "transport")
        self.subscriber_drops = add.counter("subscriber_drops", "Gaps given to subscribers that read too slowly")
        self.http_request_seconds = add.histograms(
            "http_request_seconds", "From a request to the head of its answer", SECONDS, "route", "status"
        )
        self.requests_refused = add.counters(
            "requests_refused", "Requests and connections that were refused, or cut, before a call was found", "reason"
        )
        self.connections = add.gauge("connections", "Open connections of clients")
        self.unfinished_bytes = add.gauge("unfinished_bytes", "Bytes of bodies and messages held until their answer")
        self.broker_up = add.gauge("broker_up", "1 while the broker answers")
        self.broker_seconds = add.histogram("broker_seconds", "One small question to the broker and back", SECONDS)
        self.broker_memory_bytes = add.gauge("broker_memory_bytes", "Memory of the broker that counts for its limit")
        self.broker_memory_limit_bytes = add.gauge("broker_memory_limit_bytes", "Its limit (maxmemory); 0: none")
        self.broker_system_memory_bytes = add.gauge("broker_system_memory_bytes", "Memory of the broker's machine")
        self.broker_noeviction = add.gauge("broker_noeviction", "1 while the broker never evicts")
        self.broker_evicted = add.counter("broker_evicted", "Keys that the broker has evicted")
        self.broker_aof_enabled = add.gauge("broker_aof_enabled", "1 while the broker keeps an append-only file")
        self.broker_disk_ok = add.gauge("broker_disk_ok", "0 after a write of the broker to its disk failed")
        self.broker_clients = add.gauge("broker_clients", "Connections of the broker")
        self.broker_commands = add.counter("broker_commands", "Commands that the broker has carried out")


def create_registry() -> CollectorRegistry:
    """A process's registry, with its CPU time, memory and file descriptors, and `rollcast_build_info`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    _Exposition(registry).gauges("build_info", "Version of rollcast; always 1", "version").labels(VERSION).set(1)
    return registry


# --- how they are shown ------------------------------------------------------------------------------------------


class _Exposition(Collector):
    """Shows a set of families; the only place that knows prometheus_client's types."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows: list[tuple[str, str, str, Family[Counter] | Family[Gauge] | Family[Histogram]]] = []
        registry.register(self)

    def counters(self, name: str, doc: str, *labels: str) -> Family[Counter]:
        family = Family(labels, Counter)
        self._rows.append((name, doc, "counter", family))
        return family

    def gauges(self, name: str, doc: str, *labels: str) -> Family[Gauge]:
        family = Family(labels, Gauge)
        self._rows.append((name, doc, "gauge", family))
        return family

    def histograms(self, name: str, doc: str, bounds: Sequence[float], *labels: str) -> Family[Histogram]:
        family = Family(labels, lambda: Histogram(bounds))
        self._rows.append((name, doc, "histogram", family))
        return family

    def counter(self, name: str, doc: str) -> Counter:
        return self.counters(name, doc).labels()

    def gauge(self, name: str, doc: str) -> Gauge:
        return self.gauges(name, doc).labels()

    def histogram(self, name: str, doc: str, bounds: Sequence[float]) -> Histogram:
        return self.histograms(name, doc, bounds).labels()

    def describe(self) -> Iterable[Metric]:
        return [Metric(f"rollcast_{name}", doc, kind) for name, doc, kind, _ in self._rows]

    def collect(self) -> Iterator[Metric]:
        for name, doc, kind, family in self._rows:
            metric = Metric(f"rollcast_{name}", doc, kind)
            for suffix, labels, value in family.samples():
                metric.add_sample(f"rollcast_{name}{suffix}", labels, value)
            yield metric


# --- a worker's port ---------------------------------------------------------------------------------------------

Check = Callable[[], Sequence[str]]  # reasons why not; empty: all is well


class MetricsServer:
    """`/metrics`, `/livez` and `/readyz` of one process. `close()` frees the port."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """A thread a connection, SCRAPERS of them at most: the oldest makes room. None lasts longer than SCRAPE_S."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._since: dict[object, float] = {}  # connection -> when it was made
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._since) >= SCRAPERS:
                self._cut(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        with self._lock:
            overdue = [one for one, since in self._since.items() if time.monotonic() - since > SCRAPE_S]
            for connection in overdue:
                self._cut(connection)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or was cut, is no event."""

    def _cut(self, connection: Any) -> None:
        del self._since[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it


class _Head:
    """The lines of a request's head, HEAD_BYTES at most."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, HEAD_BYTES

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        return line

    def close(self) -> None:
        self._file.close()


def serve_metrics(
    registry: CollectorRegistry, port: int, livez: Check, readyz: Check, host: str = "127.0.0.1"
) -> MetricsServer:
    """Serves until closed; port 0: any free one. The checks answer with reasons (503) or with none (200).

    Raises PortInUse.
    """

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            self.rfile = _Head(self.rfile)  # type: ignore[assignment]

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE, generate_latest(registry))
            elif path in ("/livez", "/readyz"):
                reasons = livez() if path == "/livez" else readyz()
                text = "".join(f"{reason}\n" for reason in reasons) or "ok\n"
                self._answer(503 if reasons else 200, "text/plain; charset=utf-8", text.encode())
            else:
                self._answer(404, "text/plain; charset=utf-8", b"expected /metrics, /livez or /readyz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape every few seconds is no event."""

    try:
        server = _Server((host, port), Handler)
    except OSError as error:
        raise PortInUse(
            f"metrics port {port} of {host}: {error.strerror}; choose another metrics_port or metrics_host"
        ) from None
    return MetricsServer(server)
