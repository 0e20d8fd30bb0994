"""What the routes share: the broker, the models, the limits, and the tasks that follow the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client import CollectorRegistry

from service.api.bindings import Bindings
from service.api.follower import Follower
from service.api.monitor import Monitor
from service.contracts import Limits, Manifest, ModelInfo
from service.metrics import ApiMetrics
from service.ports import Predictions


@dataclass(frozen=True)
class Context:
    """One api process. Built once by `create_app`; the routes only read it."""

    predictions: Predictions
    models: Mapping[str, Manifest]
    parity: Mapping[str, Mapping[str, object]]  # model -> figures of its certificate
    defaults: Mapping[str, str]  # kind -> model
    limits: Limits
    heartbeat_s: float
    metrics: ApiMetrics
    registry: CollectorRegistry
    follower: Follower
    monitor: Monitor
    bindings: Bindings
    http: httpx.AsyncClient  # to the workers' metrics
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def infos(self) -> dict[str, ModelInfo]:
        """What choosing a model needs."""
        return {name: m.info for name, m in self.models.items()}
