"""The page at /docs: everything it needs comes from this server (service/page), and it may load nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.api.context import Context

FOLDER: Final = Path(__file__).parents[1] / "page"
FILES: Final = {
    "docs.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of bytes that a client posted: a browser saves them, and runs nothing of them.
SAVED: Final = {"Content-Disposition": "attachment", "Content-Security-Policy": "default-src 'none'; sandbox"}


def page_routes(context: Context) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> Response:
        return _answer("docs.html", "text/html")

    @router.get("/docs/{name}")
    async def part(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return _answer(name, FILES[name])

    return router


def _answer(name: str, media_type: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(_content(name), media_type=media_type, headers=headers)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
