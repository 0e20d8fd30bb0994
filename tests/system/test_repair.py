"""`rollcast doctor --repair`: a shard that stands at ids which no clock gives is worked on again, with ids of now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from service.codec import AHEAD_MS, Position, id_number, parse_head, parse_position
from service.doctor import repair
from service.doctor.reading import Reading
from service.doctor.repair import look
from service.embedded import EmbeddedBroker
from service.errors import BadHead, BrokerAway
from service.keys import shard_of
from tests.deployment import rollcast
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, answered, wait_until, working

FAR = 10**16  # ms
LAST = "18446744073709551615-18446744073709551615"
A = [name for name in map(str, range(100)) if shard_of(name, SHARDS) == shard_of("a", SHARDS)]


def rows(stream: str, value: float = 1.0, **more: bytes) -> dict[str, bytes]:
    return rows_fields(stream, np.full((1, 3), value, np.float32)) | more


class Poisoned(BrokerWorld):
    """Streams that stepped, and then what earlier versions made of an id of no clock."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, prefix)
        self.here = self.keys[shard_of("a", SHARDS)]
        with working(self.new_log(), TinyEngine(tiny_manifest())):
            for stream in ("a", *A[:2]):
                self.append(stream, rows(stream, seq=b"3"))
            answered(self, dict.fromkeys(("a", *A[:2]), 1))
        self.n = parse_head(self.head("a")).n

    def record(self, stream: str, entry_id: str) -> None:
        """As the owner did that took the id for one: record, position, low."""
        was = parse_position(self.position(stream))
        body = json.dumps({"type": "refused", "id": entry_id, "stream": stream, "reason": "crash", "detail": ""})
        self.client.xadd(self.here.out(stream), {"type": "refused", "body": body, "prev": was.record}, id=entry_id)
        position = Position(id_number(entry_id), entry_id.encode(), was.seq, was.seq_id, was.stepped)
        self.client.hset(self.here.pos, stream, position.encode())  # type: ignore[arg-type]
        self.client.zadd(self.here.streams, {stream: id_number(entry_id) >> 64})

    def stand_at(self, entry_id: str) -> None:
        head = parse_head(self.head("a"))
        self.set_head("a", head._replace(low=id_number(entry_id), tries=0).encode())
        self.client.set(self.here.suspect, f"{entry_id} 2")

    def harms(self) -> list[str]:
        reading = Reading(self.url)
        try:
            return [str(harm) for harm in look(reading, self.prefix, SHARDS)]
        finally:
            reading.close()

    def mend(self) -> list[str]:
        told: list[str] = []
        repair(self.url, self.prefix, told.append)
        return told

    def ids(self) -> list[int]:
        """All that are kept of the shard, but in quarantine."""
        client, here = self.client, self.here
        info: Any = client.xinfo_stream(here.inbox)
        found = [parse_head(self.head("a")).low, id_number(info["last-generated-id"])]
        for stream, value in client.hgetall(here.pos).items():  # type: ignore[union-attr]
            position = parse_position(value)
            found += [position.last, id_number(position.record)]
            found += [id_number(word) for word in (position.seq_id, position.stepped) if word[:1].isdigit()]
            found += [id_number(entry_id) for entry_id, _ in client.xrange(here.out(stream.decode()))]  # type: ignore[union-attr]
        found += [id_number(entry_id) for entry_id, _ in client.xrange(here.inbox)]  # type: ignore[union-attr]
        return found + [int(ms) << 64 for _, ms in client.zrange(here.streams, 0, -1, withscores=True)]  # type: ignore[union-attr]

    def is_honest(self) -> bool:
        return max(self.ids()) >> 64 <= self.now_ms() + AHEAD_MS


@pytest.fixture(params=["valkey", "redis"])
def world(request: pytest.FixtureRequest, prefix: str, start_broker: Callable[[str], EmbeddedBroker]) -> Iterator[Any]:
    one = Poisoned(start_broker(request.param).url, prefix)
    yield one
    one.client.close()


def test_a_head_at_the_last_possible_id(world: Poisoned) -> None:
    """No entry could be appended, and no process could read the head."""
    world.append("a", rows("a", 7.0), entry_id=LAST)
    world.record("a", LAST)
    world.stand_at(LAST)
    (harm,) = world.harms()
    assert harm == (
        f"shard {world.here.shard}: its head stands at {LAST}, its log's last id is {LAST}, "
        "the positions of 1 streams lie beyond the clock"
    )
    told = world.mend()
    assert [line.partition(":")[0] for line in told] == [f"shard {world.here.shard}", "will do", "did"]
    assert "mended" in told[-1]
    assert world.harms() == []
    assert world.mend() == ["no shard waits for a repair"]
    assert world.is_honest()
    head = parse_head(world.head("a"))
    assert (head.n, head.tries, world.client.exists(world.here.suspect, world.here.owner)) == (world.n, 0, 0)
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        for stream in ("a", *A[:2]):
            world.append(stream, rows(stream, seq=b"4"))
        bodies = answered(world, dict.fromkeys(("a", *A[:2]), 2))
        world.append("a", rows("a", seq=b"4"))
        wait_until(lambda: world.records("a")[-1][1] == "duplicate", 60, "the producer's numbers are remembered")
    assert [bodies[stream][1]["restarted"] for stream in ("a", *A[:2])] == [None, None, None], "their states are honest"
    assert [bodies[stream][1]["step"] for stream in ("a", *A[:2])] == [2, 2, 2]


def test_streams_that_went_on_under_such_ids_begin_anew_and_what_waits_of_them_is_answered(world: Poisoned) -> None:
    """Their states were made at times that are none; what was not finished is moved to ids of now."""
    world.append(A[0], rows(A[0]), entry_id=f"{FAR}-0")
    for n in (0, 1):
        world.record(A[n], f"{FAR}-{n}")
        position = parse_position(world.position(A[n]))
        world.client.hset(world.here.pos, A[n], position._replace(stepped=b"%d-%d" % (FAR, n)).encode())  # type: ignore[arg-type]
    world.stand_at(f"{FAR}-1")
    world.append(A[1], rows(A[1]))  # finished as well
    waiting = [world.append(A[1], rows(A[1])) for _ in range(3)]
    assert waiting[0] == f"{FAR}-2"
    world.mend()
    assert world.harms() == []
    assert world.is_honest()
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        world.append("a", rows("a"))
        world.append(A[0], rows(A[0]))
        bodies = answered(world, {"a": 2, A[0]: 2, A[1]: 4})
    assert [body["step"] for body in bodies[A[1]]] == [1, 1, 2, 3]
    assert [bodies["a"][1]["restarted"], bodies[A[0]][1]["restarted"], bodies[A[1]][1]["restarted"]] == [
        None, "lost", "lost",
    ]  # fmt: skip
    assert world.dead() == []


@pytest.mark.parametrize("foreign", ["nonsense", f"life 00 7 {FAR}-99999999999999999999 0 0", "", None])
def test_a_head_that_nobody_can_read_begins_again_from_the_positions(world: Poisoned, foreign: str | None) -> None:
    """What waits in the log is answered, what was finished is not stepped a second time."""
    waiting = world.append("a", rows("a"))
    if foreign is None:
        world.client.delete(world.here.head)
        world.client.rpush(world.here.head, "a list")
    else:
        world.set_head("a", foreign.encode() or b" ")
    assert world.harms() == [f"shard {world.here.shard}: its head cannot be read"]
    world.mend()
    assert world.harms() == []
    assert parse_head(world.head("a")).n == world.n
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"a": 2, A[0]: 1})["a"]
    assert ([body["step"] for body in bodies], bodies[1]["id"]) == ([1, 2], waiting)


def test_what_lies_beyond_in_an_unreadable_shard_is_quarantined_with_its_bytes(world: Poisoned) -> None:
    """Nobody knows what of it was finished: nothing is lost, and nothing is done twice."""
    world.append("a", rows("a"))
    for n in range(3):
        world.append("a", rows("a", n), entry_id=f"{FAR}-{n}")
    world.set_head("a", b"nonsense")
    world.mend()
    assert [(reason, data) for reason, _, data in world.dead()] == [("bad_id", rows("a", n)["data"]) for n in range(3)]
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"a": 2})
    assert world.is_honest()


def test_a_log_whose_clock_was_put_back_gives_ids_of_now_again(world: Poisoned) -> None:
    ahead = world.now_ms() + 72 * 3_600_000
    world.append("a", rows("a"), entry_id=f"{ahead}-0")
    world.stand_at(f"{ahead}-0")
    world.record("a", f"{ahead}-0")
    waiting = world.append("a", rows("a"))
    assert waiting == f"{ahead}-1"
    world.mend()
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"a": 2})
    assert world.dead() == []
    assert world.is_honest()


def test_who_owns_the_shard_commits_nothing_more_and_takes_it_again_when_it_is_mended(world: Poisoned) -> None:
    with working(world.new_log(), TinyEngine(tiny_manifest())) as worker:
        wait_until(lambda: worker.owned == SHARDS, 60, "it owns all")
        world.stand_at(f"{FAR}-0")  # behind its back
        world.append(A[0], rows(A[0]))
        wait_until(lambda: worker.owned == SHARDS - 1, 60, "it leaves the shard alone")
        assert len(world.mend()) == 3
        wait_until(lambda: worker.owned == SHARDS, 60, "it has it again")
        world.append("a", rows("a"))
        answered(world, {"a": 2})


def test_a_repair_that_was_cut_short_is_done_by_the_next(world: Poisoned) -> None:
    """Whatever it did: the head is put right last, and until then nobody takes the shard."""
    world.append("a", rows("a"), entry_id=f"{FAR}-0")
    world.record("a", f"{FAR}-0")
    world.stand_at(f"{FAR}-0")
    world.client.rename(world.here.inbox, f"{world.prefix}:aside")
    world.client.set(world.here.inbox, "of another type")  # so that it breaks off
    reading = Reading(world.url)
    (harm,) = look(reading, world.prefix, SHARDS)
    reading.close()
    with pytest.raises(BrokerAway, match="the repair stopped: the broker answered"):
        world.mend()
    assert harm.streams.keys() == {"a"}
    world.client.rename(f"{world.prefix}:aside", world.here.inbox)
    log = world.new_log()
    assert log.acquire(world.here.shard) is None, "the repair has the lease"
    world.client.delete(world.here.owner)  # it has run out
    with pytest.raises(BadHead):
        log.acquire(world.here.shard)
    log.close()
    world.mend()
    assert world.harms() == []
    assert world.is_honest()


def test_the_command_says_what_is_wrong_what_it_will_do_and_what_it_did(world: Poisoned) -> None:
    world.record("a", f"{FAR}-0")
    world.stand_at(f"{FAR}-0")
    where = ("doctor", "--broker", world.url, "--prefix", world.prefix, "--shards", str(SHARDS))
    before = rollcast(*where)
    assert before.returncode == 1
    lines = before.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if f"its head stands at {FAR}-0" in line)
    assert lines[at].startswith("FIX    shards")
    assert "doctor --repair" in lines[at + 1]
    after = json.loads(rollcast(*where, "--repair", "--json").stdout)
    assert [line.partition(":")[0] for line in after["repair"]] == [f"shard {world.here.shard}", "will do", "did"]
    assert not any("head stands" in one["found"] for one in after["findings"])
    again = rollcast(*where, "--repair")
    assert again.stdout.splitlines()[0] == "no shard waits for a repair"
