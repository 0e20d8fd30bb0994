"""docs/streams.md: its tables of fields are those of the types that are encoded; its examples are what they accept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.api.messages import Ack, Hello, ProblemSaid, Welcome, read_entry, read_hello, split_message
from service.api.notices import Bye, Cursor, Gap, Wait
from service.api.posted import PostedEntry
from service.contracts import Done, Dropped, Duplicate, Event, Prediction, Refused, Rolling
from service.cursors import decode_cursor

PAGE = Path(__file__).parents[2] / "docs" / "streams.md"
MARK = "<!-- made by tests/docs/test_streams_page.py: run it with REWRITE=1 after changing a type -->\n"
SENT = (Hello, PostedEntry)  # by the client
RECORDS = (Prediction, Rolling, Event, Refused, Dropped, Duplicate, Done)
TOLD = (Gap, Bye, Wait, Cursor, Welcome, Ack, ProblemSaid)
TYPES = (*SENT, *RECORDS, *TOLD)
NAMES = {"PostedEntry": "entry", "Welcome": "hello, answered", "ProblemSaid": "problem"}


def tables() -> str:
    parts = []
    for one in TYPES:
        info: Any = msgspec.inspect.type_info(one)
        doc = " ".join((one.__doc__ or "").split()).replace("|", "\\|")
        rows = [f"| `{field.encode_name}` | {words(field.type)} | {needed(field)} |" for field in info.fields]
        if info.tag_field:
            rows.insert(0, f"| `{info.tag_field}` | `{info.tag}` | always |")
        title = NAMES.get(one.__name__, one.__name__.lower())
        parts.append("\n".join([f"### {title}\n", f"{doc}\n", "| field | type | |", "| --- | --- | --- |", *rows]))
    return "\n" + "\n\n".join(parts) + "\n"


def needed(field: Any) -> str:
    return "always" if field.required else "may be missing"


def words(kind: Any) -> str:
    match type(kind).__name__:
        case "UnionType":
            return " or ".join(dict.fromkeys(words(part) for part in kind.types if type(part).__name__ != "UnsetType"))
        case "LiteralType":
            return ", ".join(f"`{value}`" for value in kind.values)
        case "ListType":
            return f"list of {words(kind.item_type)}"
        case "TupleType":
            return ", ".join(words(part) for part in kind.item_types)
        case "StructType":
            return f"[{kind.cls.__name__.lower()}](#{kind.cls.__name__.lower()})"
        case "Metadata":
            return words(kind.type)
        case name:
            return {"NoneType": "null", "FloatType": "number", "IntType": "integer", "StrType": "string",
                    "BoolType": "boolean", "BytesType": "bytes"}[name]  # fmt: skip


def test_the_fields_are_those_of_the_types() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, mark, after = text.partition(MARK)
    assert mark
    if os.environ.get("REWRITE") == "1":
        PAGE.write_text(before + mark + tables(), encoding="utf-8")
        return
    assert after == tables()


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
def test_the_examples_are_accepted(example: str) -> None:
    if example.startswith("["):
        assert {read_entry(part, packed=False).kind for part in split_message(example)} == {"samples", "text"}
    else:
        hello = read_hello(example)
        assert hello.after is not None
        assert decode_cursor(hello.after, 2, "after")
