"""Ids and cursors that no broker gave, over HTTP: refused at once, and never taken for a broker that is away."""

from __future__ import annotations

import httpx
import pytest

from service.cursors import Place, encode_cursor
from tests.deployment import Up
from tests.hostile.watching import Bounds

SHARDS = 4  # of `target`
LAST = "18446744073709551615-18446744073709551615"
NO_IDS = [
    "18446744073709551616-0", "0-18446744073709551616", f"{1 << 200}-0", "9" * 5000 + "-0", "1-2-3", "-", "1-", "-1",
    "1e3-0", "+1-0", "1_0-0", "\u0663-0", "0x10-0", "1-0;drop", "$", "+", "(1-0",
]  # fmt: skip
IDS = [LAST, "18446744073709551615-0", "9223372036854775808-1", "10000000000000000-0", "0-0", "0-1"]
BAD = [Place(n, i, "ab12") for n, i in ((1 << 64, 0), (0, 1 << 64), ((1 << 70) - 1, 0), (1 << 500, 0))]
FAR = [Place(n, i, "ab12") for n, i in (((1 << 64) - 1, 0), ((1 << 63), 7), (1, (1 << 64) - 1))]


def many(place: Place) -> str:
    return encode_cursor([place, *[Place(0, 0, "0000")] * (SHARDS - 1)])


@pytest.fixture(scope="module")
def http(target: Up) -> httpx.Client:
    return httpx.Client(base_url=target.url, trust_env=False, timeout=30)


def first_lines(http: httpx.Client, path: str, **options: object) -> str:
    """What a subscription begins with, up to its first event that says something."""
    found = ""
    with http.stream("GET", path, **options) as events:  # type: ignore[arg-type]
        assert events.status_code == 200, events.read()
        for line in events.iter_lines():
            found += line + "\n"
            if line.startswith((":", "data:", "id:")):
                return found
    return found


def test_what_is_no_id_is_a_bad_cursor_and_what_is_one_is_answered(
    target: Up, bounded: Bounds, http: httpx.Client
) -> None:
    """The largest ids and numbers that there are lie behind everything: a gap, and what comes next."""
    row = {"samples": [[1.0] * 6]}
    assert http.post("/v1/streams/ids/samples?model=activity-lstm&wait=30", json=row).status_code == 200
    with bounded():
        for text in NO_IDS:
            for path in ("/v1/streams/ids/predictions", "/v1/predictions"):
                answer = http.get(path, params={"after": text})
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "bad-cursor"), text
                assert len(answer.text) < 1000
            assert http.get(f"/v1/dead/ids/{text.replace('/', '')}").status_code in (400, 404), text
        for place in BAD:
            answer = http.get("/v1/predictions", params={"after": many(place)})
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "bad-cursor"), place
        for text in IDS:
            page = http.get("/v1/streams/ids/predictions", params={"after": text})
            assert (page.status_code, len(page.json()["predictions"])) == (200, int(text.startswith("0-"))), text
            assert http.get(f"/v1/dead/ids/{text}").status_code == 404, text
            said = first_lines(http, "/v1/streams/ids/predictions", headers=EVENTS | {"Last-Event-ID": text})
            assert "cannot be reached" not in said, text
        for place in FAR:
            said = first_lines(http, "/v1/predictions", params={"after": many(place)}, headers=EVENTS)
            assert "cannot be reached" not in said, place
    http.close()


EVENTS = {"Accept": "text/event-stream"}
