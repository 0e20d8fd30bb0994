"""The client for asyncio: the same calls as Client, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
import msgspec

from rollcast import calls
from rollcast.aio_gateway import AsyncGateway
from rollcast.bounds import watch_async
from rollcast.calls import Call
from rollcast.client import DEFAULT_URL, RETRY_S, reasons_in, settings_of
from rollcast.entries import Entry, Logged
from rollcast.errors import BadAnswer, Problem, away, to_problem, understood
from rollcast.events import Follows, Recording, Subscription
from rollcast.flow import Flow, Steps
from rollcast.results import Prediction, Record
from rollcast.shapes import DeadSummary, StreamSummary
from rollcast.talk import Talk

P = ParamSpec("P")
Result = TypeVar("Result")
Item = TypeVar("Item")


def _awaited(make: Callable[P, Call[Result]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[Result]]:
    """The call as a coroutine method that sends it and returns its answer."""

    @wraps(make)
    async def method(self: AsyncClient, /, *args: P.args, **more: P.kwargs) -> Result:
        return await self.send(make(*args, **more))

    return method


class AsyncClient:
    """As Client, for one event loop; many calls may run at once, those of a numbered stream one after another."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        retry_s: float = RETRY_S,
        numbered: bool = False,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(**settings_of(self.url, api_key), event_hooks={"response": [watch_async]})
        self._flow = Flow(self.url, retry_s=retry_s, numbered=numbered)
        self._api_key, self._retry_s, self._numbered = api_key, retry_s, numbered
        self._turns: dict[str, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    post_frame = _awaited(calls.post_frame)
    post_samples = _awaited(calls.post_samples)
    post_text = _awaited(calls.post_text)
    post_entry = _awaited(calls.post_entry)
    history = _awaited(calls.history)
    stream = _awaited(calls.stream)
    models = _awaited(calls.models)
    configure = _awaited(calls.configure)
    delete = _awaited(calls.delete)
    control = _awaited(calls.control)
    state = _awaited(calls.state)
    save_state = _awaited(calls.save_state)
    restore = _awaited(calls.restore)
    reset = _awaited(calls.reset)
    dead_entry = _awaited(calls.dead_entry)
    dead_bytes = _awaited(calls.dead_bytes)
    retry_dead = _awaited(calls.retry_dead)
    drop_dead = _awaited(calls.drop_dead)

    async def predictions(
        self, streams: str | Sequence[str], after: str | None = None, *, when_full: str | None = None
    ) -> AsyncIterator[Prediction]:
        """As Client.predictions."""
        async for record in self.records(streams, after=after, when_full=when_full):
            if isinstance(record, Prediction):
                yield record

    async def records(
        self, streams: str | Sequence[str], after: str | None = None, *, when_full: str | None = None
    ) -> AsyncIterator[Record]:
        """As Client.records."""
        subscription = Subscription(streams, after, when_full)
        if after is None and not subscription.many:
            subscription.cursor, subscription.begun = await self.newest(subscription.stream), True
        following: Follows[Record] = subscription
        async for record in self._follow(following):
            yield record

    async def entries(
        self, stream: str, after: str | None = None, *, listening: Callable[[], None] | None = None
    ) -> AsyncIterator[Logged]:
        """As Client.entries."""
        begun = await self.newest(stream) if after is None else after
        async for entry in self._follow(Recording(stream, begun, listening)):
            yield entry

    async def _follow(self, what: Follows[Item]) -> AsyncIterator[Item]:
        while True:
            try:
                async with self._http.stream(**what.request()) as response:
                    if response.status_code != 200:
                        await response.aread()
                        raise to_problem(response)
                    what.begun = True
                    async for line in response.aiter_lines():
                        if (found := understood(self.url, what.feed, line)) is not None:
                            yield found
            except Problem as problem:
                if not problem.passes:
                    raise
            except httpx.TransportError as error:
                if not what.begun:
                    raise away(self.url, error) from None
            await asyncio.sleep(what.pause_s())

    async def newest(self, stream: str) -> str:
        """As Client.newest."""
        return (await self.history(stream, limit=1)).next

    async def streams(self, *, sort: str | None = None) -> AsyncIterator[StreamSummary]:
        """As Client.streams."""
        async for found in self._pages("/v1/streams", "streams", StreamSummary, sort=sort):
            yield found

    async def dead(self, *, stream: str | None = None, reason: str | None = None) -> AsyncIterator[DeadSummary]:
        """Every refused entry that is kept, without its bytes."""
        async for found in self._pages("/v1/dead", "dead", DeadSummary, stream=stream, reason=reason):
            yield found

    async def drop_all_dead(
        self, *, stream: str | None = None, reason: str | None = None, everything: bool = False
    ) -> int:
        """As Client.drop_all_dead."""
        dropped = 0
        after: str | None = None
        while True:
            call = calls.drop_dead_page(stream=stream, reason=reason, everything=everything, after=after)
            answer = await self.send(call)
            dropped += int(answer["dropped"])
            after = answer["next"]
            if after is None:
                return dropped

    async def reasons_not_ready(self) -> list[str]:
        """Why an entry posted now would not be answered; empty when it would."""
        try:
            return understood(self.url, reasons_in, await self._http.get("/readyz"))
        except httpx.TransportError as error:
            return [str(away(self.url, error))]
        except BadAnswer as error:
            return [str(error)]

    def gateway(
        self, streams: str | Sequence[str] | None = None, *, after: str | None = None, when_full: str | None = None
    ) -> AsyncGateway:
        """As Client.gateway."""
        wanted = [streams] if isinstance(streams, str) else streams
        talk = Talk(self._api_key, wanted, after, when_full)
        return AsyncGateway(self.url, talk, self._numbered_entry, self._retry_s)

    async def _numbered_entry(self, entry: Entry) -> Entry:
        if not self._numbered or entry.seq is not None:
            return entry
        async with self._turns.setdefault(entry.stream, asyncio.Lock()):
            return msgspec.structs.replace(entry, seq=await self._carry_out(self._flow.number(entry.stream)))

    async def send(self, call: Call[Result]) -> Result:
        """Carries out a call. Entries of a numbered stream wait for each other: their numbers must arrive in order."""
        if not self._numbered or call.entry is None:
            return await self._send(call)
        async with self._turns.setdefault(call.entry, asyncio.Lock()):
            return await self._send(call)

    async def _send(self, call: Call[Result]) -> Result:
        return await self._carry_out(self._flow.steps(call))

    async def _carry_out(self, steps: Steps[Result]) -> Result:
        try:
            todo = next(steps)
            while True:
                if isinstance(todo, float):
                    await asyncio.sleep(todo)
                    todo = next(steps)
                    continue
                try:
                    response = await self._http.request(
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

    async def _pages(self, path: str, name: str, row: type, **query: object) -> AsyncIterator[Any]:
        after: str | None = ""
        while after is not None:
            rows, after = await self.send(calls.page(path, name, row, after, **query))
            for found in rows:
                yield found
