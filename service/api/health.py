"""Health and metrics: this process's own, and the workers' series with a label `process`."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping

import httpx
import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.api import openapi
from service.api.context import Context
from service.metrics import CONTENT_TYPE

SCRAPE_S = 1.0  # a worker that does not answer within this is left out
log = logging.getLogger("rollcast.api")


def health_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/livez", **openapi.GET_LIVEZ)
    async def livez() -> Response:
        """200 while the process answers at all."""
        return _json(200, {"live": True})

    @router.get("/readyz", **openapi.GET_READYZ)
    async def readyz() -> Response:
        """200 when an entry posted now would be answered; else 503 with the reasons."""
        reasons = [f"broker: {context.follower.away}"] if context.follower.away is not None else []
        if not reasons:
            reasons = context.monitor.reasons(sorted(context.models))
        if context.closing.is_set():
            reasons = ["the server is stopping"]
        return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

    @router.get("/metrics", **openapi.GET_METRICS)
    async def metrics() -> Response:
        """Prometheus metrics of this process and, with a label `process`, of every live worker on this host."""
        here = socket.gethostname()
        workers: dict[str, str] = {}
        for worker in context.monitor.workers:
            if worker.metrics and worker.host in ("", here):  # another host's 127.0.0.1 is not ours
                workers[worker.id if worker.process in workers else worker.process or worker.id] = worker.metrics
        texts = await scrape(context.http, workers)
        body = await asyncio.to_thread(merge, context.registry, texts)
        return Response(body, media_type=None, headers={"Content-Type": CONTENT_TYPE})

    return router


async def scrape(http: httpx.AsyncClient, addresses: Mapping[str, str]) -> dict[str, str]:
    """Process -> its metrics; those that do not answer are left out."""

    async def get(url: str) -> str | None:
        try:
            return (await http.get(url, timeout=SCRAPE_S)).raise_for_status().text
        except httpx.HTTPError as error:
            log.warning("a worker's metrics cannot be read", extra={"url": url, "detail": str(error)})
            return None

    texts = await asyncio.gather(*map(get, addresses.values()))
    return {process: text for process, text in zip(addresses, texts, strict=True) if text is not None}


def merge(own: CollectorRegistry, texts: Mapping[str, str]) -> bytes:
    """One exposition in which every name stands once."""
    families: dict[str, Metric] = {metric.name: metric for metric in own.collect()}
    for process, text in texts.items():
        for metric in text_string_to_metric_families(text):
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
    return generate_latest(_Families(families.values()))


class _Families(CollectorRegistry):
    """What `generate_latest` asks a registry for, and no more."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _json(status: int, value: object) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
