"""An api and a worker on one broker, in memory or real: what a caller over HTTP sees of a stream's life."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from service.api import create_app
from service.broker.predictions import RedisPredictions
from service.contracts import Manifest
from service.metrics import create_registry
from service.ports import Engine, Predictions, WorkerInfo
from service.worker import Worker
from tests.ports.fake_predictions import FakePredictions
from tests.serving import Serving
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, wait_until, working

LEASE_S = 5.0  # nobody dies here: a busy machine must not look like a dead worker


class Living:
    """`api` serves all the time; a worker works while the test says so."""

    def __init__(
        self, world: MemoryWorld | BrokerWorld, predictions: Predictions, *engines: Engine, **app: Any
    ) -> None:
        self.world, self.predictions, self.engines = world, predictions, engines
        manifests = [engine.manifest for engine in engines]
        schemas = {manifest.name: schema(manifest) for manifest in manifests}
        self.api = Serving(create_app(predictions, manifests, create_registry(), schemas=schemas, **app))

    @contextmanager
    def worker(self, name: str = "w", *engines: Engine, **settings: Any) -> Iterator[Worker]:
        served = engines or self.engines
        about = WorkerInfo(name, {engine.manifest.name: engine.manifest.version for engine in served}, name)
        if isinstance(self.predictions, FakePredictions):
            self.predictions.live = [about]
        kept = {key: settings.pop(key) for key in ("dead_kept", "dead_bytes") if key in settings}
        log = self.world.new_log(name, **kept)
        with working(log, *served, about=msgspec.json.encode(about), lease_s=LEASE_S, **settings) as worker:
            wait_until(lambda: worker.owned == SHARDS, what="the worker owns every shard")
            yield worker


@contextmanager
def living(kind: str, url: str, prefix: str, *engines: Engine, **app: Any) -> Iterator[Living]:
    """`kind`: memory, or any other for a broker at `url`."""
    world: MemoryWorld | BrokerWorld
    predictions: Predictions
    if kind == "memory":
        world = MemoryWorld(SHARDS)
        predictions = FakePredictions(world)
    else:
        world, predictions = BrokerWorld(url, prefix, LEASE_S), RedisPredictions(url, prefix, SHARDS)
    life = Living(world, predictions, *engines, **app)
    with life.api:
        yield life


def schema(manifest: Manifest) -> str:
    """As `working` gives it to the worker."""
    return manifest.sha256[:16]
