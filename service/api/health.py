"""Health and metrics: this process's own, and the workers' series with a label `process`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest

from service.api import openapi
from service.api.context import Context
from service.api.scraping import Scraper, label_value, lines_of, port_of
from service.metrics import CONTENT_TYPE


def health_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["operation"])
    scraper = Scraper(context.http)
    making = asyncio.Lock()  # one at a time: each takes its turns with the event loop
    following: asyncio.Task[bytes] | None = None  # the one that has not begun yet: of all who have come meanwhile

    @router.get("/livez", **openapi.GET_LIVEZ)
    async def livez() -> Response:
        """200 while the process answers at all."""
        return _json(200, {"live": True})

    @router.get("/readyz", **openapi.GET_READYZ)
    async def readyz() -> Response:
        """200 when an entry taken now would be answered; else 503 with the reasons. (A full backlog or broker refuses
        posts, 429 and 503, while those who follow go on.)"""
        reasons = [f"broker: {context.follower.away}"] if context.follower.away is not None else []
        if not reasons:
            reasons = context.monitor.reasons(sorted(context.models))
        if context.closing.is_set():
            reasons = ["the server is stopping"]
        return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

    @router.get("/metrics", **openapi.GET_METRICS)
    async def metrics() -> Response:
        """Prometheus metrics of this process and, with a label `process`, of every live worker on this host."""
        nonlocal following
        if following is None:
            following = asyncio.create_task(make())
        return Response(await asyncio.shield(following), media_type=None, headers={"Content-Type": CONTENT_TYPE})

    async def make() -> bytes:
        nonlocal following
        async with making:
            following = None
            here = socket.gethostname()
            workers: dict[str, int] = {}
            for worker in context.monitor.workers:
                port = port_of(worker.metrics) if worker.host in ("", here) else None  # another host's are not ours
                if port is not None:
                    workers[worker.id if worker.process in workers else worker.process or worker.id] = port
            texts = await scraper.scrape(workers)
            return await asyncio.to_thread(merge, context.registry, texts)

    return router


def merge(own: CollectorRegistry, texts: Mapping[str, str]) -> bytes:
    """One exposition in which every name stands once. By line: to parse what our own workers wrote would take a hundred
    times longer (0.2 s for four workers of 20 models)."""
    families: dict[str, list[str]] = {}
    for process, text in [("", generate_latest(own).decode()), *texts.items()]:
        label = f'process="{label_value(process)}"' if process else ""
        lines: list[str] = []
        new = False
        for line in lines_of(text):
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                new = name not in families
                lines = families.setdefault(name, [])
            if line.startswith("#"):
                if new:
                    lines.append(line)
            elif line:
                lines.append(_labelled(line, label) if label else line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()


def _labelled(line: str, label: str) -> str:
    """A sample's line with one label more."""
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"


def _json(status: int, value: object) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
