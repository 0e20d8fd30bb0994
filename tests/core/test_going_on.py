"""Which answers end a client, and which it outlives: for calls, messages of a gateway, and subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

import service.errors as errors
from rollcast import AsyncClient, Client, Problem, ServerAway, calls, text
from rollcast.errors import to_problem
from rollcast.events import Subscription
from rollcast.flow import Flow
from rollcast.talk import Batch, Talk
from service.api.examples import STREAM
from service.api.problems import TYPE_PREFIX

ENDS, TRIED, GOES_ON = "ends it", "tried again with a seq", "tried again"
OURS = [
    (408, "too-slow", GOES_ON),
    (429, "backlog-full", GOES_ON),
    (429, "too-many-streams", GOES_ON),
    (503, "busy", GOES_ON),
    (503, "crowded", GOES_ON),
    (503, "broker-away", GOES_ON),
    (503, "broker-full", GOES_ON),
    (503, "no-worker", GOES_ON),
    (503, "unavailable", GOES_ON),
    (503, "append-unknown", TRIED),
    (400, "bad-cursor", ENDS),
    (404, "unknown-model", ENDS),
    (409, "duplicate", ENDS),
    (410, "dropped", ENDS),
    (413, "too-large", ENDS),
    (422, "wrong-shape", ENDS),
    (500, "internal", ENDS),
    (501, "no-fsync", ENDS),
    (504, "wait-timeout", ENDS),  # the entry is in the log, and the problem names it
]
STOPPING = {"type": TYPE_PREFIX + "wait-timeout", "id": "17-0", "stream": "talk-1", "stopping": True}
OF_A_PROXY = [(429, GOES_ON), (503, GOES_ON), (502, TRIED), (504, TRIED), (403, ENDS), (500, ENDS)]
ANSWERS = [(status, {"type": TYPE_PREFIX + kind}, what) for status, kind, what in OURS]
ANSWERS += [(status, None, what) for status, what in OF_A_PROXY]
every_answer = pytest.mark.parametrize(("status", "body", "what"), ANSWERS)


def answer(status: int, body: dict[str, Any] | None) -> httpx.Response:
    return httpx.Response(status, json=body) if body is not None else httpx.Response(status, html="<h1>A proxy</h1>")


def every_error(of: type[errors.RollcastError]) -> Iterator[type[errors.RollcastError]]:
    yield of
    for kind in of.__subclasses__():
        yield from every_error(kind)


def test_a_client_outlives_every_answer_that_says_to_try_again_and_no_other() -> None:
    for kind in every_error(errors.RollcastError):
        problem = Problem(kind.status, {"type": TYPE_PREFIX + kind.type})
        assert problem.passes == (issubclass(kind, errors.Unavailable) or kind.status == 408), kind.__name__


@every_answer
@pytest.mark.parametrize("seq", [None, 7])
def test_a_post(status: int, body: dict[str, Any] | None, what: str, seq: int | None) -> None:
    call = calls.post_text("talk-1", "a word", seq=seq)
    steps = Flow("http://x", retry_s=30.0, numbered=False).steps(call)
    assert next(steps) is call
    if what == GOES_ON or (what == TRIED and seq is not None):
        pause_s = steps.send(answer(status, body))
        assert isinstance(pause_s, float)
        assert next(steps) == call
    else:
        with pytest.raises(Problem) as refused:
            steps.send(answer(status, body))
        assert refused.value.status == status


def test_who_waited_on_a_server_that_stopped_asks_again_with_a_number_and_never_without() -> None:
    call = calls.post_text("talk-1", "a word", seq=7, wait_s=10.0)
    steps = Flow("http://x", retry_s=30.0, numbered=False).steps(call)
    next(steps)
    assert isinstance(steps.send(answer(504, STOPPING)), float)
    assert next(steps) == call
    steps = Flow("http://x", retry_s=30.0, numbered=False).steps(calls.post_text("talk-1", "a word", wait_s=10.0))
    next(steps)
    with pytest.raises(Problem) as failed:
        steps.send(answer(504, STOPPING))
    assert failed.value.stopped


def test_what_a_server_was_asked_to_wait_takes_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("rollcast.flow.clock.monotonic", lambda: now)
    steps = Flow("http://x", retry_s=5.0, numbered=False).steps(calls.post_text("a", "a word", seq=7, wait_s=60.0))
    next(steps)
    now += 50.0
    assert isinstance(steps.send(answer(504, STOPPING)), float)
    next(steps)
    now += 50.0
    assert isinstance(steps.throw(httpx.ReadError("lost")), float)
    next(steps)
    now += 65.1
    with pytest.raises(ServerAway):
        steps.throw(httpx.ReadTimeout("no answer"))


def first_of(kind: str, **more: Any) -> Any:
    """Of a numbered post whose first try was lost, whose second is a duplicate of 17-0, which has this record."""
    steps = Flow("http://x", retry_s=5.0, numbered=False).steps(calls.post_text("a", "a word", seq=7, wait_s=1.0))
    next(steps)
    assert isinstance(steps.send(answer(503, {"type": TYPE_PREFIX + "append-unknown"})), float)
    next(steps)
    asked = steps.send(answer(409, {"type": TYPE_PREFIX + "duplicate", "of": "17-0"}))
    assert isinstance(asked, calls.Call)
    assert (asked.path, asked.query["after"]) == ("/v1/streams/a/predictions", f"16-{2**64 - 1}")
    record = {"type": kind, "id": "17-0", "stream": "a", **more}
    with pytest.raises(StopIteration) as done:
        steps.send(httpx.Response(200, json={"predictions": [record], "next": "17-0", "gap": False}))
    return done.value.value


def test_who_finds_that_its_entry_was_taken_gets_what_it_was_answered() -> None:
    scores = {"label": "x", "score": 1.0, "probabilities": [1.0]}
    found = first_of("prediction", model="m", version=1, time=1.0, step=3, rolling=scores, **scores)
    assert (found.id, found.cursor, found.step) == ("17-0", "17-0", 3)
    with pytest.raises(Problem, match="a newer entry was waiting") as dropped:
        first_of("dropped", reason="superseded", detail="a newer entry was waiting")
    assert (dropped.value.status, dropped.value.is_a("dropped"), dropped.value.body["id"]) == (410, True, "17-0")
    with pytest.raises(Problem) as gone:
        first_of("done", action="delete")
    assert gone.value.is_a("duplicate")


@every_answer
def test_a_call_that_appends_nothing(status: int, body: dict[str, Any] | None, what: str) -> None:
    steps = Flow("http://x", retry_s=30.0, numbered=False).steps(calls.models())
    next(steps)
    if what == ENDS:
        with pytest.raises(Problem):
            steps.send(answer(status, body))
    else:
        assert isinstance(steps.send(answer(status, body)), float)


@every_answer
@pytest.mark.parametrize("seq", [None, 7])
def test_an_entry_of_a_gateways_message(status: int, body: dict[str, Any] | None, what: str, seq: int | None) -> None:
    batch = Batch("http://x", [text("talk-1", "a word", seq=seq)], 30.0)
    again = batch.settle([to_problem(answer(status, body))]) > 0
    assert again == bool(batch) == (what == GOES_ON or (what == TRIED and seq is not None))


@every_answer
def test_a_subscription_and_the_hello_of_a_gateway(status: int, body: dict[str, Any] | None, what: str) -> None:
    problem = to_problem(answer(status, body))
    assert problem.passes == (what != ENDS)
    talk = Talk(None, None, None, None)
    kind = (body or {"type": ""})["type"]
    said = {"type": "problem", "problem": kind, "title": "", "status": status, "detail": ""}
    talk.take(msgspec.msgpack.encode([said]))
    with pytest.raises(Problem if what == ENDS else ConnectionError):
        talk.check_welcome()


def test_the_last_try_is_when_patience_ends_however_long_the_server_asks_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("rollcast.flow.clock.monotonic", lambda: now)
    full = httpx.Response(429, json={"type": TYPE_PREFIX + "backlog-full"}, headers={"Retry-After": "60"})
    steps = Flow("http://x", retry_s=10.0, numbered=False).steps(calls.models())
    next(steps)
    assert steps.send(full) == 10.0
    now += 10.0
    next(steps)
    with pytest.raises(Problem):
        steps.send(full)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("post_frame", ("a", b"\xff\xd8\xff")),
        ("post_samples", ("a", [[1.0]])),
        ("post_text", ("a", "a word")),
        ("post_entry", (text("a", "a word"),)),
        ("retry_dead", ("a", "17-0")),
    ],
)
def test_both_clients_listen_longer_than_they_ask_the_server_to_wait(name: str, given: tuple[Any, ...]) -> None:
    heard: list[tuple[str, float]] = []

    def answer_all(request: httpx.Request) -> httpx.Response:
        heard.append((request.url.params["wait"], request.extensions["timeout"]["read"]))
        return httpx.Response(400, json={"type": TYPE_PREFIX + "malformed"})

    async def ask() -> None:
        async with AsyncClient("http://x") as client:
            client._http._mounts, client._http._transport = {}, httpx.MockTransport(answer_all)
            with pytest.raises(Problem):
                await getattr(client, name)(*given, wait_s=60)

    with Client("http://x") as client:
        client._http._mounts, client._http._transport = {}, httpx.MockTransport(answer_all)
        with pytest.raises(Problem):
            getattr(client, name)(*given, wait_s=60)
    asyncio.run(ask())
    assert [asked for asked, _ in heard] == ["60", "60"]
    assert all(60 + 10 <= limit_s <= 60 + 60 for _, limit_s in heard)


@pytest.mark.parametrize("retry_s", [0.0, 30.0])
def test_without_patience_or_a_server_a_call_ends_at_once(retry_s: float) -> None:
    steps = Flow("http://x", retry_s=retry_s, numbered=False).steps(calls.models())
    next(steps)
    if retry_s:
        with pytest.raises(ServerAway):
            steps.throw(httpx.ConnectError("refused"))
    else:
        with pytest.raises(Problem):
            steps.send(answer(503, None))


def test_who_waits_is_told_why_and_for_how_long_and_when_it_is_over() -> None:
    told: list[tuple[str | None, float]] = []
    flow = Flow("http://x", retry_s=30.0, numbered=False, waiting=lambda why, s: told.append((type(why).__name__, s)))
    for _ in range(2):  # the second call finds a server that answers at once
        steps = flow.steps(calls.models())
        next(steps)
        if not told:
            assert steps.send(answer(503, None)) == 0.1
            next(steps)
            assert steps.throw(httpx.ReadError("cut")) == 0.2
            next(steps)
        with pytest.raises(StopIteration):
            steps.send(httpx.Response(200, json={"models": []}))
    assert told == [("Problem", 0.1), ("ServerAway", 0.2), ("NoneType", 0.0)]
    steps = flow.steps(calls.models())
    next(steps)
    steps.send(answer(503, None))
    next(steps)
    with pytest.raises(Problem):
        steps.send(answer(500, None))
    assert told[3:] == [("Problem", 0.1), ("NoneType", 0.0)], "whatever the answer is"


def test_pauses_grow_and_a_number_follows_the_last() -> None:
    flow = Flow("http://x", retry_s=100.0, numbered=True)
    steps = flow.steps(calls.post_text("talk-1", "a word"))
    assert isinstance(asked := next(steps), calls.Call)
    assert asked.path == "/v1/streams/talk-1"
    pauses = []
    for _ in range(8):
        pauses.append(steps.send(answer(503, None)))
        next(steps)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    posted = steps.send(httpx.Response(200, json=STREAM | {"seq": 41}))
    assert isinstance(posted, calls.Call)
    assert posted.query["seq"] == "42"


def test_a_subscription_that_was_told_a_cursor_goes_on_and_pauses_anew() -> None:
    subscription = Subscription("cam-*", None, None)
    assert not subscription.begun
    assert [round(subscription.pause_s(), 1) for _ in range(3)] == [0.1, 0.2, 0.4]
    for line in ("id: AQE", ""):
        assert subscription.feed(line) is None
    assert (subscription.begun, subscription.request()["params"][-1]) == (True, ("after", "AQE"))
    for line in ("event: dropped", "id: AQF", 'data: {"type":"dropped","id":"17-0","stream":"cam-1","reason":"late"}'):
        subscription.feed(line)
    assert subscription.feed("") is not None
    assert round(subscription.pause_s(), 1) == 0.1
