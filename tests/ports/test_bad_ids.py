"""Entries under ids that no clock gives: refused without becoming low, a position, or a time; ids of now go on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import numpy as np
import pytest
import redis

from service.broker import idle
from service.codec import AHEAD_MS, MAX_MS, Head, id_number, number_id, parse_entry, parse_head, parse_position
from service.errors import BadHead, BadId, Fenced
from service.keys import shard_of
from service.worker.runs import event_time_us
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, World, answered, wait_until, working

HOUR_MS = 3_600_000
LAST = "18446744073709551615-18446744073709551615"
ALIKE = [name for name in map(str, range(1000)) if shard_of(name, SHARDS) == shard_of("a", SHARDS)]  # live in one shard
ELSEWHERE = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) != shard_of("a", SHARDS))
FORGED: dict[str, Callable[[int], str]] = {
    "the last possible one": lambda now: LAST,
    "the last possible time": lambda now: "18446744073709551615-0",
    "a time of 64 bits": lambda now: "9223372036854775808-7",
    "a time beyond all dates": lambda now: "10000000000000000-0",
    "the end of the year 9999": lambda now: f"{MAX_MS - 1}-18446744073709551615",
    "25 hours from now": lambda now: f"{now + 25 * HOUR_MS}-0",
}


def rows(stream: str, value: float = 1.0) -> dict[str, bytes]:
    return rows_fields(stream, np.full((1, 3), value, np.float32))


def honest(world: World, stream: str) -> bool:
    """No id of what is kept of a stream, nor of its shard's head, lies beyond a day from now."""
    limit = (world.now_ms() + AHEAD_MS) << 64
    position = parse_position(world.position(stream))
    ids = [position.last, id_number(position.record), parse_head(world.head(stream)).low]
    return max(ids + [id_number(entry_id) for entry_id, *_ in world.records(stream)]) < limit


@pytest.mark.parametrize("forged", FORGED)
def test_such_an_entry_is_refused_and_the_shard_goes_on_with_ids_of_now(world: World, forged: str) -> None:
    """What honest producers appended behind it is answered, in order, under ids of now."""
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        world.append("a", rows("a"))
        answered(world, {"a": 1})
        world.append(ALIKE[0], rows(ALIKE[0], 7.0), shard_of("a", SHARDS), FORGED[forged](world.now_ms()))
        wait_until(lambda: [reason for reason, *_ in world.dead()] == ["bad_id"], 60, "it lies in quarantine")
        assert world.dead() == [("bad_id", ALIKE[0], rows(ALIKE[0], 7.0)["data"])]
        world.append("a", rows("a"))
        world.append(ALIKE[0], rows(ALIKE[0]))
        bodies = answered(world, {"a": 2, ALIKE[0]: 1})
    assert [body["step"] for body in bodies["a"]] == [1, 2]
    assert honest(world, "a")
    assert honest(world, ALIKE[0])
    assert abs(bodies["a"][1]["time"] * 1000 - world.now_ms()) < HOUR_MS


@pytest.mark.parametrize("forged", FORGED)
def test_what_waited_before_and_behind_it_is_answered_in_order(world: World, forged: str) -> None:
    for n in range(3):
        world.append("a", rows("a") | {"seq": b"%d" % n})
    bad = world.append("a", rows("a", 7.0), entry_id=FORGED[forged](world.now_ms()))
    came = 3
    with suppress(redis.ResponseError, AssertionError):  # behind the last possible id nothing is taken
        for _ in range(3):
            world.append("a", rows("a") | {"seq": b"%d" % came})
            came += 1
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"a": came})["a"]
        wait_until(lambda: len(world.dead()) == 1, 60, "the forged one alone lies in quarantine")
        world.append("a", rows("a") | {"seq": b"%d" % came})
        bodies = answered(world, {"a": came + 1})["a"]
    assert [body["step"] for body in bodies] == list(range(1, came + 2))
    assert all("missed" not in body for body in bodies), "in the order of their numbers"
    assert bad not in [body["id"] for body in bodies]
    assert honest(world, "a")


def test_an_id_within_a_day_is_taken(world: World) -> None:
    given = f"{world.now_ms() + 23 * HOUR_MS}-0"
    world.append("a", rows("a"), entry_id=given)
    behind = world.append("a", rows("a"))
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        assert [body["id"] for body in answered(world, {"a": 2})["a"]] == [given, behind]
    assert world.dead() == []


def test_an_id_that_is_made_up_again_and_again_is_kept_once(world: World) -> None:
    """What is kept of an entry goes by its id: else what is kept of others would stay when they have left."""
    with working(world.new_log(dead_kept=3), TinyEngine(tiny_manifest())):
        for n in range(6):
            world.append("a", rows("a", float(n)), entry_id="18446744073709551615-7")
            wait_until(lambda: world.dead()[-1:] == [("bad_id", "a", rows("a", float(n))["data"])], 60)  # noqa: B023
    assert len(world.dead()) == 1


def test_a_shard_goes_on_where_its_brokers_clock_was_put_back(world: World) -> None:
    """By more than a day: the broker counts on from its last id."""
    low = (world.now_ms() + 72 * HOUR_MS) << 64 | 5
    world.set_head("a", Head("life", "0", 5, low, 0, 0).encode())
    ids = [world.append("a", rows("a"), entry_id=number_id(low + 1).decode())]
    ids += [world.append("a", rows("a")) for _ in range(2)]
    assert [id_number(entry_id) for entry_id in ids] == [low + 1, low + 2, low + 3]
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        assert [body["id"] for body in answered(world, {"a": 3})["a"]] == ids
    assert world.dead() == []


@pytest.mark.parametrize("low", ["no id", "x", LAST, "10000000000000000-0", "99999999999999999999-0", "1-0 0 0 0"])
def test_a_shard_whose_head_is_none_is_left_alone_and_all_others_are_worked_on(world: World, low: str) -> None:
    head = f"life 00 7 {low} 0 0".encode()
    world.append("a", rows("a"))
    world.append(ELSEWHERE, rows(ELSEWHERE))
    world.set_head("a", head)
    log, other_log = world.new_log(), world.new_log("x")
    with pytest.raises(BadHead, match=f"shard {shard_of('a', SHARDS)}: "):
        log.acquire(shard_of("a", SHARDS))
    with working(log, TinyEngine(tiny_manifest())) as worker:
        answered(world, {ELSEWHERE: 1})
        wait_until(lambda: worker.owned == SHARDS - 1, 60, "it has all others")
        assert world.head("a") == head
        assert world.records("a") == []
        for other in (b"life 00 %b 1-0 0 0" % (b"9" * 20), b"\xff 00 7 1-0 0 0", b"life 00 7 %b1-0 0 0" % (b"0" * 50)):
            world.set_head("a", other)
            with pytest.raises(BadHead):
                other_log.acquire(shard_of("a", SHARDS))
        other_log.close()
        world.set_head("a", b"life 00 7 0-0 0 0")
        answered(world, {"a": 1})
        assert worker.owned == SHARDS


def test_an_id_that_is_no_time_is_no_entrys_time() -> None:
    beyond, last = (parse_entry(b"%d-0" % ms, [b"stream", b"a"]) for ms in (MAX_MS + 1, MAX_MS))
    with pytest.raises(BadId, match="the end of the year 9999"):
        event_time_us(beyond)
    assert event_time_us(last) == MAX_MS * 1000
    assert event_time_us(msgspec.structs.replace(beyond, time=1.5)) == 1_500_000


def test_many_are_taken_out_a_few_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "EXPELLED", (3, 1 << 20))
    world.append("a", rows("a"))
    for n in range(10):
        world.append("a", rows("a", n), entry_id=f"{10**16 + n}-0")
    world.append("a", rows("a"))
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"a": 2})
        wait_until(lambda: len(world.dead()) == 10, 60, "the others lie in quarantine")
    assert [data for _, _, data in world.dead()] == [rows("a", n)["data"] for n in range(10)]
    assert honest(world, "a")


def test_who_lost_the_shard_takes_nothing_out_of_its_log(world: World) -> None:
    first, second = world.new_log(), world.new_log()
    shard = shard_of("a", SHARDS)
    world.append("a", rows("a"), entry_id="10000000000000000-0")
    head = first.acquire(shard)
    newer = second.acquire(shard)
    assert head is not None
    assert newer is not None
    with pytest.raises(Fenced):
        first.expel(shard, head)
    assert (world.logged(), world.dead()) == (1, [])
    found = second.expel(shard, newer)
    assert (found.first, found.refused, found.moved) == ("10000000000000000-0", 1, 0)
    assert (world.logged(), len(world.dead())) == (0, 1)
    assert second.expel(shard, newer).first == "", "there is nothing more to do"
    first.close()
    second.close()


def test_nothing_is_taken_out_before_all_before_it_is_finished(world: World) -> None:
    log, shard = world.new_log(), shard_of("a", SHARDS)
    world.append("a", rows("a"))
    world.append("a", rows("a"), entry_id=LAST)
    head = log.acquire(shard)
    assert head is not None
    assert log.expel(shard, head).first == ""
    assert (world.logged(), world.dead()) == (2, [])
    log.close()


@pytest.mark.parametrize("world", ["valkey", "redis"], indirect=True)
def test_of_a_hostile_entry_quarantine_keeps_what_is_bounded(world: BrokerWorld) -> None:
    """Whatever fields it has, and however many of them come behind it."""
    huge = {f"f{n}": b"x" for n in range(5000)} | {"model": b"m" * 5000, "seq": b"7", "kind": b"k" * 5000}
    keys = world.keys[0]
    world.client.xadd(keys.inbox, huge | {"stream": b"\xff" * 500, "data": b"a"}, id="10000000000000000-9")  # type: ignore[arg-type]
    world.client.xadd(keys.inbox, huge | {"stream": b"a", "data": b"b"})  # type: ignore[arg-type]
    world.client.set(keys.dead, "somebody else's")
    log = world.new_log()
    head = log.acquire(0)
    assert head is not None
    found = log.expel(0, head)
    assert (found.refused, found.moved, found.more) == (2, 0, False)
    (_, first), (_, second) = world.client.xrange(keys.dead)  # type: ignore[misc]
    assert {name: value for name, value in first.items() if name != b"detail"} == {
        b"id": b"10000000000000000-9", b"stream": b"?", b"kind": b"k" * 60, b"reason": b"bad_id", b"bytes": b"1",
        b"model": b"m" * 1024, b"seq": b"7",
    }  # fmt: skip
    assert first[b"detail"].startswith(b"id 10000000000000000-9: expected one that the broker gave")
    assert (second[b"id"], second[b"stream"]) == (b"10000000000000000-10", b"a")
    assert world.client.hgetall(keys.dead_data) == {first[b"id"]: b"a", second[b"id"]: b"b"}
    assert set(world.client.hgetall(keys.dead_places)) == {first[b"id"], second[b"id"]}  # type: ignore[arg-type]
    log.close()


@pytest.mark.parametrize("world", ["valkey", "redis"], indirect=True)
def test_the_log_goes_on_although_somebody_deleted_such_an_entry_by_hand(world: BrokerWorld) -> None:
    """Then the broker does not let the log's last id be set below it."""
    stream = "a"
    inbox = world.keys[shard_of(stream, SHARDS)].inbox
    world.append(stream, rows(stream), entry_id="10000000000000000-0")
    world.client.xdel(inbox, "10000000000000000-0")
    world.append(stream, rows(stream))
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        wait_until(lambda: len(world.dead()) == 1, 60, "what came behind it lies in quarantine")
        world.append(stream, rows(stream))
        (body,) = answered(world, {stream: 1})[stream]
    assert body["step"] == 1
    assert honest(world, stream)
