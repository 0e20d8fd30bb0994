"""What a gateway remembers and decides, without a socket."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollcast import Accepted, Entry, Gap, Prediction, Problem, ServerAway, frame, samples, text
from rollcast import talk as module
from rollcast.talk import HELLO_BYTES, MESSAGE_BYTES, Batch, Talk, messages
from service.api import messages as api_messages
from service.contracts import check_stream_id

HALF = {
    "type": "prediction", "stream": "a", "model": "m", "version": 1, "time": 1.0, "step": 1, "label": "x", "score": 1.0,
    "probabilities": [1.0], "rolling": {"label": "x", "score": 1.0, "probabilities": [1.0]}, "events": [],
}  # fmt: skip


def ok(stream: str = "a") -> Accepted:
    return Accepted("1-0", stream, "m")


def no(status: int, kind: str = "backlog-full", after_s: float | None = 0.5) -> Problem:
    return Problem(status, {"type": f"urn:rollcast:problem:{kind}"}, after_s)


def entries(*streams: str, seq: int | None = None) -> list[Entry]:
    return [text(stream, "word", seq=seq) for stream in streams]


def sent(batch: Batch) -> list[str]:
    return [one["stream"] for one in msgspec.msgpack.decode(batch.message())]


def said(*messages: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(list(messages))


def test_what_was_refused_for_now_is_sent_again_alone() -> None:
    batch = Batch("http://x", entries("a", "b", "c"), 30.0)
    assert batch.settle([ok("a"), no(429, after_s=2.0), no(503, after_s=1.0)]) == 2.0
    assert sent(batch) == ["b", "c"]
    batch.settle([ok("b"), ok("c")])
    assert not batch
    assert [type(one) for one in batch.answers] == [Accepted] * 3


def test_an_entry_is_not_sent_again_behind_a_later_one_of_its_stream() -> None:
    batch = Batch("http://x", entries("a", "b", "a", "a"), 30.0)
    batch.settle([no(429), ok("b"), ok("a"), no(429)])
    assert sent(batch) == ["a"]
    batch.settle([ok("a")])
    assert [type(one) for one in batch.answers] == [Problem, Accepted, Accepted, Accepted]


@pytest.mark.parametrize(
    ("problem", "seq", "again"),
    [
        (no(422, "wrong-shape"), 1, False),
        (no(503, "append-unknown"), None, False),
        (no(503, "append-unknown"), 1, True),
        (no(503, "broker-away", None), None, True),
    ],
)
def test_only_what_may_be_repeated_is(problem: Problem, seq: int | None, again: bool) -> None:
    batch = Batch("http://x", entries("a", seq=seq), 30.0)
    wait_s = batch.settle([problem])
    assert (bool(batch), wait_s > 0) == (again, again)
    assert batch.answers == ([] if again else [problem])


def test_patience_ends_with_a_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("rollcast.talk.clock.monotonic", lambda: now)
    batch = Batch("http://x", entries("a"), 8.0)
    assert batch.settle([no(429, after_s=60.0)]) == 8.0, "what the server asks for is an estimate"
    assert sent(batch) == ["a"]
    now += 8.0
    assert batch.settle([no(429, after_s=60.0)]) == 0.0
    assert [type(one) for one in batch.answers] == [Problem]
    with pytest.raises(ServerAway):
        Batch("http://x", entries("a"), 0.0).lost(OSError("cut"), False, True)


def test_a_lost_connection_is_no_loss_where_every_entry_has_a_number_or_nothing_was_sent() -> None:
    assert Batch("http://x", entries("a", seq=1), 30.0).lost(OSError("cut"), True, True) > 0
    assert Batch("http://x", entries("a"), 30.0).lost(OSError("cut"), False, True) > 0
    with pytest.raises(ServerAway, match="cut; 2 entries without seq may be in the log or not"):
        Batch("http://x", entries("a", "b"), 30.0).lost(OSError("cut"), True, True)
    with pytest.raises(ServerAway, match="no server answers at http://x"):
        Batch("http://x", entries("a"), 30.0).lost(OSError("refused"), False, False)


def test_another_connection_goes_on_after_the_last_whole_message() -> None:
    talk = Talk(None, None, None, None)
    assert msgspec.msgpack.decode(talk.hello()) == {"type": "hello"}
    talk.posting(entries("a", "b"))
    talk.take(said(HALF | {"id": "1-0"}, HALF | {"id": "2-0"}, {"type": "cursor", "cursor": "C1"}))
    assert [record.cursor for record in talk.records] == ["", "C1"]
    assert msgspec.msgpack.decode(talk.hello()) == {"type": "hello", "after": "C1", "posted": ["a", "b"]}
    talk.posting(entries("b", "c"))
    assert msgspec.msgpack.decode(talk.hello())["posted"] == ["a", "b", "c"]


def test_a_connection_goes_on_with_more_streams_than_hello_may_name() -> None:
    """All records come then; what was not posted here is left out."""
    talk = Talk(None, None, None, "drop_oldest")
    talk.posting(entries("a", *[f"{n}-" + 100 * "x" for n in range(700)]))
    talk.take(said({"type": "cursor", "cursor": "C1"}))
    wanted = {"type": "hello", "after": "C1", "streams": ["*"], "when_full": "drop_oldest"}
    assert msgspec.msgpack.decode(talk.hello()) == wanted
    gap = {"type": "gap", "reason": "trimmed"}
    talk.take(said(HALF | {"id": "1-0"}, HALF | {"id": "2-0", "stream": "b"}, gap | {"shard": 1}, gap | {"stream": "b"},
                   {"type": "cursor", "cursor": "C2"}))  # fmt: skip
    assert [type(record) for record in talk.records] == [Prediction, Gap]
    assert talk.records[-1].cursor == "C2"
    assert len(talk.hello()) < HELLO_BYTES == api_messages.HELLO_BYTES


def test_hello_names_no_stream_that_would_be_refused() -> None:
    talk = Talk(None, None, "C1", None)
    talk.posting(entries("a", "b c", "", "x" * 129, ".d", "ä"))
    hello = api_messages.read_hello(talk.hello())
    assert [check_stream_id(name) for name in hello.posted] == ["a"]


def test_a_problem_of_a_whole_message_answers_each_of_its_entries() -> None:
    """The server had no time for it."""
    busy = {"type": "problem", "problem": "urn:rollcast:problem:busy", "title": "Busy", "status": 503, "detail": "",
            "retry_after_s": 5.0}  # fmt: skip
    talk, batch = Talk(None, None, None, None), Batch("http://x", entries("a", "b", "a"), 30.0)
    talk.hello()
    talk.sending(batch)
    talk.take(said(busy))
    assert len(talk.said) == len(batch)
    assert batch.settle(talk.answers()) == 5.0
    assert sent(batch) == ["a", "b", "a"]
    talk.sending(batch)
    talk.take(said({"type": "ack", "id": "1-0", "stream": "a", "model": "m"}, busy | {"index": 1}, busy | {"index": 2}))
    assert len(talk.said) == len(batch)


def test_records_that_nobody_reads_become_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 4)
    talk = Talk(None, ["a"], None, None)
    for n in range(7):
        talk.take(said(HALF | {"id": f"{n}-0"}))
    first, *rest = talk.records
    assert isinstance(first, Gap)
    assert (first.reason, first.records) == ("slow", 4)
    assert [one.id for one in rest if isinstance(one, Prediction)] == ["4-0", "5-0", "6-0"]


def test_answers_and_the_end_are_kept_apart() -> None:
    talk = Talk(None, (), None, None)
    talk.take(said({"type": "hello"}, {"type": "ack", "id": "1-0", "stream": "a", "model": "m"}))
    talk.take(
        said(
            {
                "type": "problem",
                "problem": "urn:rollcast:problem:too-large",
                "title": "t",
                "status": 413,
                "detail": "d",
            },
            {"type": "wait", "detail": "broker away"},
            {"type": "bye", "reason": "closing"},
        )
    )
    accepted, problem = talk.answers()
    assert isinstance(accepted, Accepted)
    assert isinstance(problem, Problem)
    assert problem.is_a("too-large")
    assert talk.over
    with pytest.raises(ConnectionError):
        talk.check()
    assert not talk.answers()


def test_messages_are_smaller_than_the_server_takes() -> None:
    one = samples("a", [[0.0] * 1000] * 100)  # 0.9 MB as numbers
    large = frame("b", bytes(2 * MESSAGE_BYTES))
    parts = list(messages([one] * 10 + [large] * 2 + entries("c") * 3000))
    assert [entry for part in parts for entry in part] == [one] * 10 + [large] * 2 + entries("c") * 3000
    for part in parts:
        assert len(part) <= 1024
        assert len(part) == 1 or len(msgspec.msgpack.encode(part)) <= MESSAGE_BYTES
    assert [len(part) for part in parts[:6]] == [4, 4, 2, 1, 1, 1024]
    assert list(messages([])) == []
