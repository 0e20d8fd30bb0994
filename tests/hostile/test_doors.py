"""Connections that send too much, too slowly, too many at once, or nothing; and pages of other sites."""

from __future__ import annotations

import json
import zlib
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx

from tests.deployment import Up
from tests.hostile.watching import Bounds
from tests.raw import BINARY, CONT, HELLO, HOST, PING, TEXT, Raw, frame

POST = b"POST /v1/streams/crowd/samples HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
HEADS = {
    "headers": (b"GET /livez HTTP/1.1\r\n" + HOST, b"X-A: b\r\n" * 8192),
    "url": (b"GET /", b"a" * 65_536),
    "value": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: ", b"a" * 65_536),
    "trailers": (CHUNKED, b"X-A: b\r\n" * 8192),
    "chunk extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536),
    "empty lines": (b"", b"\r\n" * 32_768),
}
EVIL = {"origin": "https://evil.example"}


def port_of(target: Up) -> int:
    port = urlsplit(target.url).port
    assert port is not None
    return port


def test_heads_that_never_end(target: Up, bounded: Bounds) -> None:
    """Each may send 16 MB; it is cut at 64 kB."""
    with bounded(memory=32 << 20):
        for name, (begin, more) in HEADS.items():
            with Raw(port_of(target)) as client:
                client.send(begin, *[more] * 256)
                assert client.rest().startswith(b"HTTP/1.1 431"), name


def test_web_sockets_that_would_fill_the_memory(target: Up, bounded: Bounds) -> None:
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflated.compress(bytes(60 << 20)) + deflated.flush(zlib.Z_SYNC_FLUSH)[:-4]
    compressed = bytes([0x80 | 0x40 | BINARY]) + frame(BINARY, bomb)[1:]
    inputs = {
        "bomb": ([compressed], 1002),
        "hello": ([frame(TEXT, b"", said=8 << 20), b" " * (8 << 20)], 1009),
        "fragments": ([HELLO, frame(TEXT, b"", fin=False), frame(CONT, b"", fin=False) * 100_000], 1008),
        "pings": ([HELLO, frame(PING, b"x" * 100) * 20_000], 1008),
        "nested": ([frame(TEXT, b"[" * 60_000)], 1008),
        "nested MessagePack": ([frame(BINARY, b"\x91" * 60_000)], 1008),
    }
    with bounded(memory=64 << 20):
        for name, (sent, code) in inputs.items():
            for _ in range(3):
                with Raw(port_of(target)) as client:
                    assert client.upgrade(b"Sec-WebSocket-Extensions: permessage-deflate").startswith(b"HTTP/1.1 101")
                    client.send(*sent)
                    assert client.closed_with() == code, name


def test_connections_that_wait(target: Up, bounded: Bounds) -> None:
    """Some say nothing, some half a head, some half a body: they hold little, and nobody waits for them."""
    half = POST + b"Content-Length: 8000000\r\n\r\n"
    with bounded(), ExitStack() as opened:
        for _ in range(150):
            opened.enter_context(Raw(port_of(target)))
            opened.enter_context(Raw(port_of(target))).send(b"GET /livez HTTP/1.1\r\nHos")
        bodies = [opened.enter_context(Raw(port_of(target))) for _ in range(22)]
        for client in bodies:
            client.send(half, *[b" " * (1 << 20)] * 7)
        assert bodies[0].rest().startswith(b"HTTP/1.1 503")
        assert httpx.get(f"{target.url}/livez").status_code == 200


def test_pages_of_other_sites(target: Up, bounded: Bounds) -> None:
    with bounded(), httpx.Client(base_url=target.url) as http:
        posted = {"content": b"word", "headers": EVIL | {"content-type": "text/plain"}}
        assert http.post("/v1/streams/crowd/text", **posted).status_code == 403  # type: ignore[arg-type]
        assert http.post("/v1/dead/crowd/1-0/retry?drop=1", headers={"origin": "null"}).status_code == 403
        assert http.get("/v1/streams", headers={"host": "evil.example"}).status_code == 421
        with Raw(port_of(target)) as client:
            assert client.upgrade(b"Origin: https://evil.example").startswith(b"HTTP/1.1 403")


def test_bodies_that_no_parser_likes(target: Up, bounded: Bounds) -> None:
    """None of them is a fault of the server."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\nContent-Type: %s\r\n\r\nx\r\n--b--\r\n'
    charsets = ("undefined", "idna", "punycode", "rot13", "hex", "utf-7", "\x00", "x" * 300, "\xff", "unicode_escape")
    deep = "[" * 100_000
    with bounded(), httpx.Client(base_url=target.url) as http:
        for charset in charsets:
            given = f"multipart/form-data; boundary=b; charset={charset}".replace("\x00", "%00").encode("latin-1")
            for name in (b"frame", b"\xff\xfe", b"xn--a"):
                for own in (b"image/png", b"text/plain; charset=" + charset.encode("latin-1")):
                    headers = {b"content-type": given}
                    answer = http.post("/v1/streams/crowd/frames", content=part % (name, own), headers=headers)
                    assert 400 <= answer.status_code < 500, (charset, name, answer.text)
        for given in (b"multipart/form-data", b"multipart/form-data; boundary=\xff", b"multipart/form-data; boundary="):
            answer = http.post("/v1/streams/crowd/frames", content=b"--b--", headers={b"content-type": given})
            assert answer.status_code == 400
        as_json = {"content-type": "application/json"}
        for method, path in (("POST", "samples"), ("POST", "text"), ("PUT", "")):
            for body in (deep, '{"samples": ' + deep, '{"text": ' + deep, '{"x": NaN, "samples": ' + deep, "\ud800"):
                sent = body.encode("utf-8", "surrogatepass")
                answer = http.request(method, f"/v1/streams/crowd/{path}".rstrip("/"), content=sent, headers=as_json)
                assert answer.status_code in (400, 413, 422), (method, path, body[:20], answer.text)
        lines = b'{"stream": "crowd", "kind": "text", "text": "x", "y": ' + deep.encode() + b"\n" + deep.encode()
        answer = http.post("/v1/entries", content=lines, headers={"content-type": "application/x-ndjson"})
        assert [json.loads(line)["status"] for line in answer.text.splitlines()] == [400, 400]
