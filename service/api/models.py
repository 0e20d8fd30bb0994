"""GET of model packages: what each takes, what it answers, what was proven of it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Response

from service import VERSION
from service.api import openapi
from service.api.context import Context
from service.contracts import Manifest
from service.errors import UnknownModel


def model_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", **openapi.GET_MODELS)
    async def list_models() -> Response:
        """The model packages, by name: their manifests, their parity figures, and whether a live worker has them.

        `rollcast` is the version of this server.
        """
        return _json(
            {"rollcast": VERSION, "models": [describe(manifest) for _, manifest in sorted(context.models.items())]}
        )

    @router.get("/v1/models/{name}", **openapi.GET_MODEL)
    async def get_model(name: str) -> Response:
        """One model package."""
        manifest = context.models.get(name)
        if manifest is None:
            known = ", ".join(sorted(context.models)) or "none"
            raise UnknownModel(f"unknown model {name[:100]!r}; known are: {known}")
        return _json(describe(manifest))

    def describe(manifest: Manifest) -> dict[str, Any]:
        served = any(manifest.name in worker.models for worker in context.monitor.workers)
        parity = context.parity.get(manifest.name, {})
        described: dict[str, Any] = msgspec.to_builtins(manifest)
        return described | {"parity": parity, "served": served}

    return router


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
