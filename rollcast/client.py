"""The client for plain, blocking programs. aio.py has the same for asyncio."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import httpx
import msgspec

from rollcast import calls
from rollcast.bounds import watch
from rollcast.calls import Call
from rollcast.entries import Entry, Logged
from rollcast.errors import BadAnswer, Problem, away, to_problem, understood
from rollcast.events import Follows, Recording, Subscription
from rollcast.flow import Flow, Steps, Waits, unsaid
from rollcast.gateway import Gateway
from rollcast.results import Prediction, Record
from rollcast.shapes import DeadSummary, StreamSummary
from rollcast.talk import Talk

DEFAULT_URL: Final = "http://127.0.0.1:8000"
RETRY_S: Final = 30.0
KEPT_S: Final = 2.0  # an idle connection; the server keeps it longer, so that it is not closed under a request
P = ParamSpec("P")
Result = TypeVar("Result")
Item = TypeVar("Item")


def _blocking(make: Callable[P, Call[Result]]) -> Callable[Concatenate[Client, P], Result]:
    """The call as a method that sends it and returns its answer."""

    @wraps(make)
    def method(self: Client, /, *args: P.args, **more: P.kwargs) -> Result:
        return self.send(make(*args, **more))

    return method


class Client:
    """Posts entries and follows predictions. Every call raises Problem (the server said no) or ServerAway.

    `retry_s`: how long a call is tried again where that is safe: the server asked to wait (429, 503), or nothing was
    appended; the last try is at its end, and a `wait_s` does not count. `numbered`: gives every entry the stream's next
    `seq`, so that whatever happens to an answer, a retry never steps twice; a stream then has one producer. `waiting`
    is called before each pause with the reason and its seconds, and with None when the server has answered. Not for
    several threads at once.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        retry_s: float = RETRY_S,
        numbered: bool = False,
        waiting: Waits = unsaid,
    ) -> None:
        self.url = url.rstrip("/")
        self._api_key, self._retry_s, self._numbered = api_key, retry_s, numbered
        self._http = httpx.Client(**settings_of(self.url, api_key), event_hooks={"response": [watch]})
        self._flow = Flow(self.url, retry_s=retry_s, numbered=numbered, waiting=waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    post_frame = _blocking(calls.post_frame)
    post_samples = _blocking(calls.post_samples)
    post_text = _blocking(calls.post_text)
    post_entry = _blocking(calls.post_entry)
    history = _blocking(calls.history)
    stream = _blocking(calls.stream)
    models = _blocking(calls.models)
    configure = _blocking(calls.configure)
    delete = _blocking(calls.delete)
    control = _blocking(calls.control)
    state = _blocking(calls.state)
    save_state = _blocking(calls.save_state)
    restore = _blocking(calls.restore)
    reset = _blocking(calls.reset)
    dead_entry = _blocking(calls.dead_entry)
    dead_bytes = _blocking(calls.dead_bytes)
    retry_dead = _blocking(calls.retry_dead)
    drop_dead = _blocking(calls.drop_dead)

    def predictions(
        self, streams: str | Sequence[str], after: str | None = None, *, when_full: str | None = None
    ) -> Iterator[Prediction]:
        """The predictions of a stream, of all that fit a pattern such as `cam-*`, or of several: after the cursor
        `after` (`0`: all that is kept; None: from now on), for ever. `records` has everything else, gaps included."""
        for record in self.records(streams, after=after, when_full=when_full):
            if isinstance(record, Prediction):
                yield record

    def records(
        self, streams: str | Sequence[str], after: str | None = None, *, when_full: str | None = None
    ) -> Iterator[Record]:
        """As `predictions`, but every record, and a Gap where some cannot be delivered.

        A lost connection is taken up again where it stopped. Raises at once when there is no server to begin with.
        """
        subscription = Subscription(streams, after, when_full)
        if after is None and not subscription.many:
            subscription.cursor, subscription.begun = self.newest(subscription.stream), True
        following: Follows[Record] = subscription
        yield from self._follow(following)

    def entries(
        self, stream: str, after: str | None = None, *, listening: Callable[[], None] | None = None
    ) -> Iterator[Logged]:
        """The entries of a stream, as they came and as they come, for ever: after the cursor `after` (`0`: all that the
        log still holds; None: what was not answered yet). A finished entry leaves the log after `input_history_s`.
        `listening` is called when the server listens, and again with all that it says."""
        yield from self._follow(Recording(stream, self.newest(stream) if after is None else after, listening))

    def _follow(self, what: Follows[Item]) -> Iterator[Item]:
        while True:
            try:
                with self._http.stream(**what.request()) as response:
                    if response.status_code != 200:
                        response.read()
                        raise to_problem(response)
                    what.begun = True
                    for line in response.iter_lines():
                        if (found := understood(self.url, what.feed, line)) is not None:
                            yield found
            except Problem as problem:
                if not problem.passes:
                    raise
            except httpx.TransportError as error:
                if not what.begun:
                    raise away(self.url, error) from None
            clock.sleep(what.pause_s())

    def newest(self, stream: str) -> str:
        """The cursor of now: resolved once, so that a connection lost before the first record loses none."""
        return self.history(stream, limit=1).next

    def streams(self, *, sort: str | None = None) -> Iterator[StreamSummary]:
        """Every stream, by name, or sorted by `lag`, `drops` or `restarts`: the worst first."""
        yield from self._pages("/v1/streams", "streams", StreamSummary, sort=sort)

    def dead(self, *, stream: str | None = None, reason: str | None = None) -> Iterator[DeadSummary]:
        """Every refused entry that is kept, without its bytes."""
        yield from self._pages("/v1/dead", "dead", DeadSummary, stream=stream, reason=reason)

    def drop_all_dead(self, *, stream: str | None = None, reason: str | None = None, everything: bool = False) -> int:
        """Removes the refused entries of a stream, of a reason, of both, or with `everything` all. Returns how many."""
        dropped = 0
        after: str | None = None
        while True:
            call = calls.drop_dead_page(stream=stream, reason=reason, everything=everything, after=after)
            answer = self.send(call)
            dropped += int(answer["dropped"])
            after = answer["next"]
            if after is None:
                return dropped

    def reasons_not_ready(self) -> list[str]:
        """Why an entry posted now would not be answered; empty when it would."""
        try:
            return understood(self.url, reasons_in, self._http.get("/readyz"))
        except httpx.TransportError as error:
            return [str(away(self.url, error))]
        except BadAnswer as error:
            return [str(error)]

    def gateway(
        self, streams: str | Sequence[str] | None = None, *, after: str | None = None, when_full: str | None = None
    ) -> Gateway:
        """A WebSocket over which many entries of many streams go at once. `streams`: whose records it gives, as for
        `predictions`; None: those of the streams posted to there; an empty list: none."""
        wanted = [streams] if isinstance(streams, str) else streams
        return Gateway(self.url, Talk(self._api_key, wanted, after, when_full), self._numbered_entry, self._retry_s)

    def _numbered_entry(self, entry: Entry) -> Entry:
        if not self._numbered or entry.seq is not None:
            return entry
        return msgspec.structs.replace(entry, seq=self._carry_out(self._flow.number(entry.stream)))

    def send(self, call: Call[Result]) -> Result:
        """Carries out a call."""
        return self._carry_out(self._flow.steps(call))

    def _carry_out(self, steps: Steps[Result]) -> Result:
        try:
            todo = next(steps)
            while True:
                if isinstance(todo, float):
                    clock.sleep(todo)
                    todo = next(steps)
                    continue
                try:
                    response = self._http.request(
                        todo.method,
                        todo.path,
                        params=todo.query,
                        content=todo.body,
                        headers=todo.headers,
                        timeout=todo.timeout,
                    )
                except httpx.TransportError as error:
                    todo = steps.throw(error)
                else:
                    todo = steps.send(response)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _pages(self, path: str, name: str, row: type, **query: object) -> Iterator[Any]:
        after: str | None = ""
        while after is not None:
            rows, after = self.send(calls.page(path, name, row, after, **query))
            yield from rows


def settings_of(url: str, api_key: str | None) -> dict[str, Any]:
    """Of httpx's clients."""
    near = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    headers = {"Accept-Encoding": "identity"}  # what is unpacked here could not be bounded
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(30.0, connect=5.0),
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEPT_S),
        "trust_env": not near,  # a proxy from the environment is no way to this machine
    }


def reasons_in(response: httpx.Response) -> list[str]:
    if response.status_code == 200:
        return []
    problem = to_problem(response)  # before it was a call: by a name that is not the server's, or without room
    return [str(problem)] if problem.is_ours else msgspec.convert(response.json()["reasons"], list[str])
