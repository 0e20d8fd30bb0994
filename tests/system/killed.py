"""A real worker process on a real ONNX model, for tests that kill it. Runs in a forked child of a fork server."""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

from prometheus_client import CollectorRegistry

import service.worker.loop
from bench.model import lstm_package
from service.broker.log import RedisLog
from service.contracts import RollingSettings
from service.engine import OnnxEngine
from service.faults import VARIABLE, fault_from, poison_from
from service.metrics import WorkerMetrics

CHECK = "if entry.number <= stream.last:"


def engine(folder: Path) -> OnnxEngine:
    """The LSTM that the killed workers run; its automaton is lively, so that doubled events would show."""
    package = lstm_package(folder)
    lively = RollingSettings(half_life_s=0.05, enter=0.3, exit=0.25, dwell_s=0.02, refractory_s=0.04, update_s=0.1)
    manifest = type(package.manifest)(
        **{**{f: getattr(package.manifest, f) for f in package.manifest.__struct_fields__}, "rolling": lively}
    )
    return OnnxEngine(package._replace(manifest=manifest))  # type: ignore[arg-type]


def without_position_check() -> ModuleType:
    """A copy of the loop in which an entry that was finished before is stepped again."""
    source = inspect.getsource(service.worker.loop)
    assert source.count(CHECK) == 1
    module = ModuleType("loop_without_check")
    sys.modules["loop_without_check"] = module
    exec(compile(source.replace(CHECK, "if False:"), "loop_without_check", "exec"), module.__dict__)
    return module


def work(
    url: str,
    prefix: str,
    shards: int,
    folder: str,
    name: str,
    fault: str,
    checked: bool,
    lease_s: float = 0.3,
    resident: int = 16_384,
) -> None:
    """The process: works until SIGTERM, or until `fault` (as in service/faults.py) kills it. `resident`: streams that
    it may have in memory."""
    stop = threading.Event()
    loop = service.worker.loop if checked else without_position_check()
    log = RedisLog(url, worker=name, prefix=prefix, shards=shards, lease_s=lease_s, records_kept=100_000)
    served = engine(Path(folder))
    worker = loop.Worker(
        log,
        {served.manifest.name: (served, "ab" * 8)},
        WorkerMetrics(CollectorRegistry()),
        lease_s=lease_s,
        batch_entries=48,
        max_resident_streams=resident,
        fault=fault_from({VARIABLE: fault}),
        poison=poison_from({VARIABLE: fault}),
    )

    def end(number: int, frame: object) -> None:
        stop.set()
        worker.wake()

    signal.signal(signal.SIGTERM, end)
    worker.run(stop)
