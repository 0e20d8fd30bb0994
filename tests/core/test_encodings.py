"""Packed bodies: which packings are taken, and that what comes out is what went in, however it is cut."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.api.bodies import read_body
from service.api.encodings import PIECE, Unpacker, read_coding
from service.errors import Malformed, UnsupportedEncoding
from service.turns import Gate

TEXT = bytes(random.Random(1).choices(b"abcdefgh", k=200_000)) + bytes(300_000)


def raw(data: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(data) + packing.flush()


def unpacked(coding: str, *parts: bytes) -> bytes:
    unpacker, found = Unpacker(coding), bytearray()
    for part in parts:
        for piece in unpacker.pieces(part):
            assert len(piece) <= PIECE
            found += piece
    unpacker.end()
    return bytes(found)


@pytest.mark.parametrize(
    ("said", "coding"),
    [
        ([], ""),
        ([b""], ""),
        ([b"identity"], ""),
        ([b"gzip"], "gzip"),
        ([b" GZip "], "gzip"),
        ([b"x-gzip"], "gzip"),
        ([b"Deflate"], "deflate"),
        ([b"identity, gzip,"], "gzip"),
        ([b"identity", b"gzip"], "gzip"),
    ],
)
def test_what_is_taken(said: list[bytes], coding: str) -> None:
    assert read_coding([(b"content-encoding", one) for one in said]) == coding


@pytest.mark.parametrize("said", [[b"br"], [b"zstd"], [b"gzip, gzip"], [b"gzip", b"deflate"], [b"gzip;q=1"], [b"\xff"]])
def test_what_is_not_taken(said: list[bytes]) -> None:
    with pytest.raises(UnsupportedEncoding, match="expected one of gzip, deflate, or none"):
        read_coding([(b"content-encoding", one) for one in said])


def test_a_transfer_is_chunked_or_nothing() -> None:
    assert read_coding([(b"transfer-encoding", b"Chunked")]) == ""
    with pytest.raises(UnsupportedEncoding, match="'gzip, chunked'"):
        read_coding([(b"transfer-encoding", b"gzip, chunked")])


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("coding", "packed", "expected"),
    [
        ("gzip", gzip.compress(TEXT), TEXT),
        ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT), TEXT[:100] + TEXT),
        ("gzip", gzip.compress(b""), b""),
        ("gzip", b"".join(gzip.compress(bytes([n])) for n in range(256)), bytes(range(256))),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("deflate", raw(TEXT), TEXT),
        ("deflate", raw(bytes(PIECE)), bytes(PIECE)),
        ("deflate", raw(b""), b""),
    ],
    ids=["gzip", "members", "empty", "many-members", "zlib", "raw", "raw-piece", "raw-empty"],
)
def test_what_went_in_comes_out_however_it_is_cut(coding: str, packed: bytes, expected: bytes, size: int) -> None:
    assert unpacked(coding, *(packed[at : at + size] for at in range(0, len(packed), size))) == expected


@pytest.mark.parametrize(("coding", "packed"), [("gzip", gzip.compress(TEXT[:1000])), ("deflate", raw(TEXT[:1000]))])
def test_no_part_of_a_body_is_taken_for_the_whole(coding: str, packed: bytes) -> None:
    for end in range(len(packed)):
        with pytest.raises(Malformed, match="cut off"):
            unpacked(coding, packed[:end])


@pytest.mark.parametrize(
    ("coding", "packed", "told"),
    [
        ("gzip", TEXT[:100], "not what Content-Encoding gzip says"),
        ("gzip", zlib.compress(TEXT), "not what Content-Encoding gzip says"),
        ("gzip", gzip.compress(TEXT) + b"more", "not what Content-Encoding gzip says"),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8), "not what Content-Encoding gzip says"),
        ("deflate", b"\xff" * 10, "not what Content-Encoding deflate says"),
        ("deflate", zlib.compress(TEXT) + b"\0", "bytes behind the end"),
        ("deflate", raw(TEXT) + raw(TEXT), "bytes behind the end"),
    ],
)
def test_what_is_no_such_body(coding: str, packed: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        unpacked(coding, packed)


class Counting(Gate):
    """Counts who went through it."""

    entered = 0

    async def __aenter__(self) -> None:
        self.entered += 1
        await super().__aenter__()


@pytest.mark.parametrize(("size", "entered"), [(64 * 1024, 0), (64 * 1024 + 1, 1), (10 << 20, 1)])
def test_what_is_dear_to_unpack_waits_for_its_turn(size: int, entered: int) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": gzip.compress(bytes(size))}

    async def read() -> tuple[int, int]:
        gate = Counting("bodies", lambda: None, at_once=1, waiting=1, within_s=60.0)
        request = Request({"type": "http", "headers": [(b"content-encoding", b"gzip")]}, receive)
        return len(await read_body(request, 16 << 20, gate)), gate.entered

    assert asyncio.run(read()) == (size, entered)
