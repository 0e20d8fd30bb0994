"""What a commit of a shard says of it: how far everything is finished, what may leave the log, which doubts end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec import NOWHERE, Head, id_number, parse_entry, parse_head, predecessor
from service.contracts import StreamSettings
from service.ports import Commit
from service.worker.loop import COMMIT_BYTES, COMMIT_ENTRIES, _split
from service.worker.shard import Group, Item, Shard, Stream


def owned(low: int = id_number("10-0"), tries: int = 0) -> Shard:
    return Shard(0, Head("life", "token", 7, low, 0, tries).encode())


def read(shard: Shard, *ids: int, stream: str = "a") -> list[Item]:
    """Entries of a stream that wait."""
    found = shard.streams.setdefault(stream, Stream(stream, shard, NOWHERE, StreamSettings()))
    items = []
    for ms in ids:
        fields = [b"stream", stream.encode(), b"kind", b"samples", b"shape", b"1,1", b"data", bytes(4)]
        items.append(Item(parse_entry(b"%d-0" % ms, fields), found, 0.0))
        items[-1].type, items[-1].body = b"prediction", b"{}"
        shard.cursor = items[-1].number
    shard.unfinished.extend(items)
    return items


def committed(shard: Shard, *items: Item, trim: int | None = None) -> Commit:
    return shard.build(list(items), {}, 600_000, trim)


def test_low_stands_before_the_oldest_unfinished_entry_and_at_the_cursor_where_there_is_none() -> None:
    shard = owned()
    slow, quick = read(shard, 20), read(shard, 30, 40, stream="b")
    lows = [parse_head(committed(shard, item).after).low for item in (quick[0], slow[0], quick[1])]
    assert lows == [predecessor(id_number("20-0")), predecessor(id_number("40-0")), id_number("40-0")]
    assert parse_head(committed(shard).after).low == id_number("40-0")


def test_nothing_unfinished_leaves_the_log_however_old_it_is() -> None:
    shard = owned()
    slow, quick = read(shard, 20), read(shard, 30, stream="b")
    assert committed(shard, *quick, trim=id_number("99-0")).trim_below == b"20-0"
    assert committed(shard, *slow, trim=id_number("99-0")).trim_below == b"30-1"
    assert committed(shard, trim=id_number("25-0")).trim_below == b"25-0", "what is younger than its age stays"
    assert committed(shard).trim_below is None


def test_a_shard_is_in_doubt_until_its_oldest_entry_is_finished() -> None:
    shard = owned(predecessor(id_number("20-0")), tries=2)
    slow, quick = read(shard, 20), read(shard, 30, stream="b")
    read(shard, 40)
    heads = [parse_head(committed(shard, *items).after) for items in ((), quick, slow)]
    assert [(head.n, head.tries) for head in heads] == [(8, 2), (9, 2), (10, 0)]


def test_a_commit_has_at_most_1024_entries_however_small_they_are() -> None:
    shard = owned()
    items = [item for n in range(1500) for item in read(shard, 100 + n, stream=f"s{n}")]
    first, rest = _split(items)
    assert (len(first), len(rest)) == (1024, 476)
    assert _split(first) == (first, [])


def test_a_commit_counts_its_records_among_the_finished_entries_that_the_log_still_has() -> None:
    shard = owned()
    heads = [parse_head(committed(shard, *read(shard, ms, ms + 1)).after) for ms in (20, 30)]
    assert [(head.n, head.kept) for head in heads] == [(8, 2), (9, 4)]


def test_a_commit_stores_the_last_state_of_a_stream_or_forgets_it() -> None:
    shard = owned()
    for ends in (True, False):
        first, second = read(shard, 100 + ends, 200 + ends)
        (first if ends else second).state = b"state"
        (second if ends else first).forget = True
        commit = committed(shard, first, second)
        assert (commit.states, commit.forgotten) == (({}, ["a"]) if ends else ({"a": b"state"}, []))


def test_a_commit_counts_every_drop_and_every_state_begun_anew_but_the_first() -> None:
    shard = owned()
    dropped, others = read(shard, 20, 30, 40), read(shard, 50, 60, 70, 80, stream="b")
    for item in dropped[:2]:
        item.type = b"dropped"
    for item, reason in zip(others, ("first", "gap", "ttl", None), strict=True):
        item.reason, item.group = reason, Group(None, [item], [0], [1.0])  # type: ignore[arg-type, assignment]
    commit = committed(shard, *dropped, *others)
    assert (commit.drops, commit.restarts) == ({"a": 2}, {"b": 2})


def test_a_deletion_takes_with_it_what_its_commit_said_of_the_stream_before() -> None:
    shard = owned()
    settled, dropped, deleted, settled_again = read(shard, 20, 30, 40, 50)
    settled.settings = settled_again.settings = StreamSettings(model="tiny")
    dropped.type = b"dropped"
    deleted.deleted = deleted.forget = True
    commit = committed(shard, settled, dropped, deleted)
    assert (commit.deleted, commit.settings, commit.configured, commit.drops) == (["a"], {"?": b"40-0"}, {}, {})
    commit = committed(shard, settled_again)
    assert (commit.settings, commit.configured) == ({"a": b'{"model":"tiny"}', "?": b"50-0"}, {"a": 50})


def test_records_that_are_too_old_go_with_the_first_record_of_a_minute() -> None:
    shard = owned()
    items = read(shard, 1_000_000, 1_000_001, 1_019_999, 1_020_000, 1_020_001)
    cuts = [record.cut for record in committed(shard, *items).records]
    assert cuts == [b"400000-0", None, None, b"420000-0", None], "600 s older"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.sampled_from([20, 900, 300_000, 3_000_000])), min_size=1, max_size=60))
def test_a_batch_that_is_too_large_is_split_between_streams_the_earlier_first(runs: list[tuple[int, int]]) -> None:
    shard, left = owned(), []
    for number, (count, size) in enumerate(runs):
        items = read(shard, *range(100 + 64 * number, 100 + 64 * number + count), stream=f"s{number}")
        items[-1].state = bytes(size)
        left += items
    expected, parts = list(left), []
    while left:
        part, left = _split(left)
        parts.append(part)
    assert [item for part in parts for item in part] == expected
    for part, after in pairwise(parts):
        assert part[-1].key is not after[0].key, "what was stepped together is committed together"
    for part in parts:
        alone = part[0].key is part[-1].key
        size = sum(len(item.body) + len(item.state or b"") for item in part)
        assert alone or (len(part) <= COMMIT_ENTRIES and size <= COMMIT_BYTES)
