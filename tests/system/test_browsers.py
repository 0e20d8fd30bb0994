"""Whose pages may call the api, and by which names: over HTTP and WebSockets, without keys, on loopback."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rollcast import Client, Problem
from service.api import Names, create_app
from service.errors import ForeignHost, ForeignOrigin, RequestError
from service.metrics import create_registry
from tests.doubles import MemoryBroker, tiny_manifest
from tests.ports.fake_predictions import FakePredictions
from tests.serving import Serving

PAGE = Path(__file__).parents[2] / "service" / "page"
EVIL = "https://evil.example"
ROWS = {"samples": [[1.0, 2.0, 3.0]]}


@pytest.fixture(scope="module")
def api() -> Iterator[Serving]:
    names = Names("127.0.0.1", ["api", "rollcast.example.org"], ["https://app.example.org"])
    app = create_app(FakePredictions(MemoryBroker()), [tiny_manifest()], create_registry(), names=names)
    with Serving(app) as serving:
        yield serving


def ask(api: Serving, *lines: str, version: str = "1.1", method: str = "GET", path: str = "/livez") -> int:
    """The status of a request with these header lines and no others."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        head = "".join(f"{line}\r\n" for line in lines)
        connection.sendall(f"{method} {path} HTTP/{version}\r\n{head}Connection: close\r\n\r\n".encode("latin-1"))
        answer = connection.makefile("rb").read()
    return int(answer.split()[1])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:80", 200), ("localhost:8000", 200), ("LOCALHOST.", 200), ("[::1]:8000", 200),
        ("api:8000", 200), ("Rollcast.Example.org", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("127.0.0.1.evil.example", 421), ("x" * 5000, 421),
        ("localhost@evil.example", 421), ("evil.example:127.0.0.1", 421), ("10.0.0.1", 421), ("xlocalhost", 421),
        ("127.0.0.1,evil.example", 421), ("0x7f000001", 421), ("\xe9.example", 421), ("", 400),
    ],
)  # fmt: skip
def test_a_call_must_name_the_api(api: Serving, host: str, status: int) -> None:
    assert ask(api, f"Host: {host}") == status
    assert ask(api, f"Host: {host}", method="DELETE", path="/v1/streams/x") in (status, 404)


def test_a_client_that_names_it_wrong_is_told_so(api: Serving) -> None:
    with Client(api.url) as client:
        client._http.headers["Host"] = "evil.example:8000"
        with pytest.raises(Problem, match=r"evil.example:8000.*allowed_hosts"):
            client.models()
        assert re.match(r"421 .*evil.example:8000.*allowed_hosts", client.reasons_not_ready()[0])


def test_a_call_names_it_once(api: Serving) -> None:
    assert ask(api) == 400
    assert ask(api, "Host: 127.0.0.1", "Host: evil.example") == 400
    assert ask(api, version="1.0") == 200


CROSS = ["sec-fetch-site: cross-site"]
HEADERS = [
    ([], True),
    (["sec-fetch-site: same-origin"], True),
    (["sec-fetch-site: none"], True),
    (["origin: http://{host}"], True),
    (["origin: http://{host}", "sec-fetch-site: same-origin"], True),
    (["origin: https://app.example.org", *CROSS], True),
    (["origin: https://app.example.org:443"], True),
    (["origin: " + EVIL], False),
    (["origin: null"], False),
    (["origin: "], False),
    (["origin: http://127.0.0.1:1"], False),
    (["origin: http://127.0.0.1"], False),
    (["origin: file://"], False),
    (["origin: http://{host}.evil.example"], False),
    (["origin: http://{host}", "origin: " + EVIL], False),
    (["origin: http://app.example.org"], False),
    (CROSS, False),
    (["sec-fetch-site: same-site"], False),
    ([*CROSS, "sec-fetch-mode: no-cors"], False),
]
CALLS = [
    ("POST", "/v1/streams/x/text", "text/plain", b"word"),
    ("POST", "/v1/streams/x/frames", "multipart/form-data; boundary=b", b"--b--"),
    ("POST", "/v1/streams/x/samples", "application/json", b'{"samples": []}'),
    ("POST", "/v1/dead/x/1-0/retry?drop=1", None, b""),
    ("DELETE", "/v1/streams/x", None, b""),
    ("PUT", "/v1/streams/x?wait=0", "application/json", b"{}"),
    ("GET", "/v1/streams", None, b""),
    ("GET", "/v1/predictions", None, b""),
]


@pytest.mark.parametrize(("headers", "allowed"), HEADERS)
def test_pages_of_other_sites_are_refused(api: Serving, headers: list[str], allowed: bool) -> None:
    lines = [line.format(host=f"127.0.0.1:{api.port}") for line in headers]
    given = [tuple(line.split(": ", 1)) for line in lines]
    for method, path, media, body in CALLS:
        typed = [("content-type", media)] if media else []
        with api.http.stream(method, path, headers=[*given, *typed], content=body) as answer:
            assert (answer.status_code != 403) == allowed, (method, path)
            if not allowed:
                assert answer.read().startswith(b'{"type":"urn:rollcast:problem:foreign-origin"')


@pytest.mark.parametrize(("headers", "allowed"), HEADERS)
def test_so_are_their_web_sockets(api: Serving, headers: list[str], allowed: bool) -> None:
    given = [line.format(host=f"127.0.0.1:{api.port}").split(": ", 1) for line in headers]
    for path in ("/v1/ws", "/v1/streams/x/ws"):
        url = f"ws://127.0.0.1:{api.port}{path}"
        if allowed:
            with connect(url, additional_headers=given, proxy=None) as socket:
                socket.send('{"type": "hello"}')
                assert "hello" in str(socket.recv(10))
        else:
            with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=given, proxy=None):
                pass
            assert refused.value.response.status_code in (400, 403)  # 400: two of them


def test_a_web_socket_must_name_the_api(api: Serving) -> None:
    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        head = "\r\n".join(["GET /v1/ws HTTP/1.1", "Host: evil.example", *lines, key])
        connection.sendall(head.encode() + b"\r\n\r\n")
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 421")


def test_a_link_to_the_page_may_be_followed(api: Serving) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert api.http.get("/docs", headers=link).status_code == 200
    assert api.http.delete("/v1/streams/x", headers=link).status_code == 403
    form = link | {"origin": "null", "content-type": "text/plain"}
    assert api.http.post("/v1/streams/x/text", headers=form, content=b"x").status_code == 403


def test_nothing_redirects(api: Serving) -> None:
    for path in ("/v1/streams/?x", "/docs/", "/v1/models/", "//evil.example/v1/streams", "/v1/streams//evil.example/"):
        assert api.http.get(f"{api.url}{path}").status_code in (404, 400), path


def test_refusals_are_counted(api: Serving) -> None:
    def counted(reason: str) -> float:
        text = api.http.get("/metrics").text
        found = re.search(rf'^rollcast_requests_refused_total{{reason="{reason}"}} (\S+)', text, re.M)
        assert found is not None
        return float(found[1])

    before = counted("host"), counted("origin")
    ask(api, "Host: evil.example")
    api.http.get("/livez", headers={"origin": EVIL})
    assert (counted("host"), counted("origin")) == (before[0] + 1, before[1] + 1)


def test_no_answer_is_guessed_at(api: Serving) -> None:
    for path in ("/", "/docs", "/docs/docs.js", "/livez", "/metrics", "/openapi.json", "/v1/streams", "/v1/nothing"):
        assert api.http.get(path).headers["x-content-type-options"] == "nosniff"
    assert api.http.get("/livez", headers={"host": "x"}).headers["x-content-type-options"] == "nosniff"


# --- the page at /docs -------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(api: Serving) -> None:
    answer = api.http.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert [path for path in loaded if path != "data:,"] == [
        "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/docs.js",
    ]  # fmt: skip
    assert not re.findall(r"<script(?! src=)|<style| on\w+=", answer.text)
    for path in loaded[1:]:
        part = api.http.get(path)
        assert part.status_code == 200
        assert part.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
        assert part.headers["content-security-policy"] == answer.headers["content-security-policy"]
    for path in ("/docs/README.md", "/docs/..%2fapp.py", "/docs/docs.html"):
        assert api.http.get(path).status_code == 404


def test_what_others_wrote_of_the_page_is_as_it_was_published() -> None:
    digests = dict(reversed(line.split()) for line in (PAGE / "SHA256SUMS").read_text().splitlines())
    assert digests == {name: hashlib.sha256((PAGE / name).read_bytes()).hexdigest() for name in digests}
    ours = {"docs.html", "docs.js", "README.md", "SHA256SUMS"}
    assert {path.name for path in PAGE.iterdir()} == digests.keys() | ours


# --- names, without a server -------------------------------------------------------------------------------------


def scope(host: str, *, server: str = "172.18.0.5", **headers: str) -> dict[str, object]:
    given = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers.items())]
    return {"type": "http", "method": "POST", "http_version": "1.1", "server": (server, 8000), "headers": given}


def test_the_address_of_the_connection_is_a_name() -> None:
    names = Names("0.0.0.0")
    names.check(scope("172.18.0.5:8000"))  # as Prometheus finds a container
    names.check(scope("[fd00::5]:8000", server="fd00::5"))
    with pytest.raises(ForeignHost):
        names.check(scope("172.18.0.6:8000"))


def test_behind_a_proxy() -> None:
    names = Names("0.0.0.0", ["rollcast.example.org"])
    names.check(scope("rollcast.example.org", origin="https://rollcast.example.org"))
    with pytest.raises(ForeignOrigin):
        names.check(scope("172.18.0.5:8000", origin="https://rollcast.example.org"))  # it does not pass Host on
    Names("0.0.0.0", (), ["https://rollcast.example.org"]).check(
        scope("172.18.0.5:8000", origin="https://rollcast.example.org")
    )


def test_any_name_may_be_allowed_but_not_any_page() -> None:
    names = Names("0.0.0.0", ["*"])
    names.check(scope("what.ever"))
    with pytest.raises(ForeignOrigin):
        names.check(scope("what.ever", origin=EVIL))
    with pytest.raises(RequestError):
        names.check(scope(""))
