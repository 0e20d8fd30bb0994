"""What the routes share: the broker, the models, the limits, and the tasks that follow the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from msgspec import UNSET, UnsetType
from prometheus_client import CollectorRegistry

from service.api.backlog import Backlog
from service.api.bindings import Bindings
from service.api.follower import Follower
from service.api.messages import ProblemSaid, problem_of
from service.api.monitor import Monitor
from service.api.readers import Readers
from service.contracts import Limits, Manifest, ModelInfo
from service.errors import RollcastError
from service.metrics import ApiMetrics
from service.ports import Predictions
from service.state import StateLayout
from service.turns import Gate

LARGE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Context:
    """One api process. Built once by `create_app`; the routes only read it."""

    predictions: Predictions
    models: Mapping[str, Manifest]
    parity: Mapping[str, Mapping[str, object]]  # model -> figures of its certificate
    defaults: Mapping[str, str]  # kind -> model
    limits: Limits
    state_ttl_s: float  # of the deployment
    heartbeat_s: float
    metrics: ApiMetrics
    registry: CollectorRegistry
    follower: Follower
    monitor: Monitor
    backlog: Backlog
    bindings: Bindings
    layouts: Mapping[str, StateLayout]  # model -> how its states are stored
    http: httpx.AsyncClient  # to the workers' metrics
    readers: Readers
    looks: Gate  # in front of what is dear to answer: lists, states, quarantine
    bodies: Gate  # in front of what is dear to read: bodies and messages above LARGE_BYTES
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, way: str, error: RollcastError, index: int | UnsetType = UNSET) -> ProblemSaid:
        """The problem as it is told there, and counted."""
        self.metrics.problems.labels(way, error.type).inc()
        return problem_of(error, index)

    def infos(self) -> dict[str, ModelInfo]:
        """What choosing a model needs."""
        return {name: m.info for name, m in self.models.items()}
