"""The front door: HTTP in, records out. `create_app` builds it around the broker's port.

`Server` serves it. Before it stops, it sets `app.state.closing`: open subscriptions then say `bye` and end, instead of
holding the server up for its whole grace time. `await app.state.said_bye(limit_s)` waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from service import VERSION
from service.api import document
from service.api.backlog import Backlog, Bounds
from service.api.bindings import Bindings
from service.api.browsers import Names
from service.api.context import Context
from service.api.dead import dead_routes
from service.api.doors import DoorLimits
from service.api.follower import Follower
from service.api.health import health_routes
from service.api.ingest import ingest_routes
from service.api.logged import logged_routes
from service.api.models import model_routes
from service.api.monitor import Monitor
from service.api.outermost import Outermost
from service.api.pages import page_routes
from service.api.problems import HTTP, LINE, MESSAGE, add_handlers
from service.api.readers import Readers
from service.api.records import record_routes
from service.api.schemas import problem_errors
from service.api.server import Server, message_bytes
from service.api.settings import setting_routes
from service.api.sockets import socket_routes
from service.api.states import state_routes
from service.api.streams import stream_routes
from service.api.tasks import end
from service.contracts import Limits, Manifest
from service.errors import Busy, EntryError, Unavailable
from service.metrics import ApiMetrics
from service.ports import Predictions
from service.state import StateLayout
from service.turns import Gate

__all__ = ["Bounds", "DoorLimits", "Names", "Server", "create_app", "message_bytes"]

ROUTES = (
    ingest_routes, logged_routes, record_routes, socket_routes, stream_routes, setting_routes, state_routes,
    dead_routes, model_routes, health_routes, page_routes,
)  # fmt: skip


def create_app(
    predictions: Predictions,
    models: Sequence[Manifest],
    registry: CollectorRegistry,
    *,
    parity: Mapping[str, Mapping[str, object]] | None = None,
    defaults: Mapping[str, str] | None = None,
    schemas: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    bounds: Bounds | None = None,
    names: Names | None = None,
    state_ttl_s: float = 86_400.0,
    heartbeat_s: float = 15.0,
) -> FastAPI:
    """`parity`: model -> figures of its certificate; `defaults`: kind -> model of new streams that name none;
    `schemas`: model -> its package's schema, without which its states are not read; `bounds`: of what may wait;
    `names`: by which the api may be called; `state_ttl_s`: the deployment's, as its workers have it.

    The app closes `predictions` when it stops.
    """
    metrics = ApiMetrics(registry)
    follower = Follower(predictions, metrics)
    backlog = Backlog(predictions, follower, bounds or Bounds())
    for error in problem_errors():
        for way in (HTTP, LINE, MESSAGE) if issubclass(error, EntryError | Unavailable) else (HTTP,):
            metrics.problems.labels(way, error.type)
    known = schemas or {}
    busy = metrics.turned_away.labels(Busy.reason).inc
    context = Context(
        predictions=predictions,
        models={manifest.name: manifest for manifest in models},
        parity=parity or {},
        defaults=defaults or {},
        limits=limits or Limits(),
        state_ttl_s=state_ttl_s,
        heartbeat_s=heartbeat_s,
        metrics=metrics,
        registry=registry,
        follower=follower,
        monitor=Monitor(predictions, metrics, backlog),
        backlog=backlog,
        bindings=Bindings(predictions, follower, backlog),
        layouts={
            manifest.name: StateLayout(manifest, known[manifest.name]) for manifest in models if manifest.name in known
        },
        readers=Readers(predictions, busy),
        looks=Gate("lists, states and quarantine", busy, at_once=2, waiting=64, within_s=5.0),
        bodies=Gate("bodies and messages above 64 kB", busy, at_once=2, waiting=64, within_s=5.0),
        http=httpx.AsyncClient(trust_env=False, verify=False),  # plain HTTP on this machine
    )
    app = FastAPI(
        title="rollcast",
        version=VERSION,
        description=(
            "Rolling classifications over live video, sensor and text streams. "
            "A body may be packed: `Content-Encoding: gzip` or `deflate`."
        ),
        lifespan=lambda app: _running(app, context),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to whatever Host the client names
    )
    app.state.closing = context.closing
    app.state.said_bye = follower.ended
    app.state.metrics = metrics
    app.add_middleware(Outermost, metrics=metrics, names=names or Names())
    add_handlers(app, metrics.problems)
    for routes in ROUTES:
        app.include_router(routes(context))

    @app.get("/", include_in_schema=False)
    async def pointer() -> dict[str, str]:
        return {"name": "rollcast", "version": app.version, "docs": "/docs", "models": "/v1/models"}

    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    encoded = cache(lambda: JSONResponse(app.openapi()).body)  # which takes 5 ms

    @app.get("/openapi.json", include_in_schema=False)
    async def description() -> Response:
        return Response(encoded(), media_type="application/json")

    return app


@asynccontextmanager
async def _running(app: FastAPI, context: Context) -> AsyncIterator[None]:
    """The tasks that follow the shards live as long as the server. Its description is made before the first request."""
    _described(app)

    async def end_subscriptions() -> None:
        await context.closing.wait()
        context.follower.close()

    works = context.follower.run(), context.monitor.run(), context.backlog.run(), end_subscriptions()
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        await end(tasks)
        await context.readers.end()
        await context.http.aclose()
        await context.predictions.close()


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document.describe(app)
    return app.openapi_schema
