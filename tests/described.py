"""Answers held against the OpenAPI document: status, content type, and JSON Schema as far as the document uses it."""

from __future__ import annotations

import re
from typing import Any

import httpx

REF = "#/components/schemas/"
SEEN: set[tuple[str, str]] = set()  # calls and statuses that were held against a document
_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


class Document:
    """`check` is a hook of httpx: every answer that passes is looked at."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._schemas = document["components"]["schemas"]
        self._paths = [
            (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), path, calls)
            for path, calls in document["paths"].items()
        ]

    def check(self, response: httpx.Response) -> None:
        request = response.request
        for pattern, path, calls in self._paths:
            call = calls.get(request.method.lower())
            if pattern.fullmatch(request.url.path) and call is not None:
                answer = call["responses"].get(str(response.status_code))
                assert answer is not None, f"{request.method} {path}: {response.status_code} is not described"
                self._check_content(response, answer.get("content", {}), f"{request.method} {path}")
                return

    def _check_content(self, response: httpx.Response, contents: dict[str, Any], where: str) -> None:
        media = response.headers.get("content-type", "")
        known = {name.partition(";")[0]: content for name, content in contents.items()}
        assert media.partition(";")[0] in known, f"{where}: {media} is not described"
        if "json" in media and "nd" not in media:
            response.read()
            schema = known[media.partition(";")[0]]["schema"]
            wrong = self.wrong(response.json(), schema)
            assert not wrong, f"{where}, {response.status_code}: {wrong}"
        SEEN.add((where, str(response.status_code)))

    def wrong(self, value: Any, schema: dict[str, Any], at: str = "$") -> str:
        """What is wrong with a value; nothing: it fits."""
        if "$ref" in schema:
            return self.wrong(value, self._schemas[schema["$ref"].removeprefix(REF)], at)
        for part in schema.get("allOf", ()):
            if found := self.wrong(value, part, at):
                return found
        for name in ("oneOf", "anyOf"):
            if name in schema:
                found = [self.wrong(value, part, at) for part in schema[name]]
                if all(found):
                    return f"{at}: none of {len(found)}: {found[0]}"
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds and not any(_is(value, kind) for kind in kinds):
            return f"{at}: {value!r:.60} is no {' or '.join(kinds)}"
        if "enum" in schema and value not in schema["enum"]:
            return f"{at}: {value!r} is none of {schema['enum']}"
        if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            return f"{at}: {value!r} does not match {schema['pattern']}"
        if isinstance(value, list):
            items = schema.get("items", {})
            return next((bad for i, one in enumerate(value) if (bad := self.wrong(one, items, f"{at}[{i}]"))), "")
        if isinstance(value, dict):
            return self._wrong_in(value, schema, at)
        return ""

    def _wrong_in(self, value: dict[str, Any], schema: dict[str, Any], at: str) -> str:
        if missing := set(schema.get("required", ())) - value.keys():
            return f"{at}: without {', '.join(sorted(missing))}"
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties", True)
        for name, one in value.items():
            if name not in properties and more is False:
                return f"{at}: {name!r} is not described"
            described = properties.get(name, more if isinstance(more, dict) else {})
            if bad := self.wrong(one, described, f"{at}.{name}"):
                return bad
        return ""


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind in ("boolean", "null") or not isinstance(value, bool))
