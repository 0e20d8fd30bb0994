"""A client of rollcast's HTTP interface. Answers are the JSON of the interface, as dictionaries."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import httpx

DEFAULT_URL: Final = "http://127.0.0.1:8000"
STATE_TYPE: Final = "application/vnd.rollcast.state+msgpack"  # of a stream's saved state
_SILENCE_S: Final = 60.0  # the server says something every 15 s; longer silence is a lost connection
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class Problem(Exception):
    """The server answered with an error (RFC 9457): `status`, the stable `type`, `title` and `detail`."""

    def __init__(self, status: int, body: dict[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.type = str(body.get("type", "about:blank"))
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        self.body = body
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {self.title}: {self.detail}")


class ServerAway(Exception):
    """No server answers at this URL."""


class StreamRecord(NamedTuple):
    """One event of a subscription: `event` is `prediction`, `refused`, `dropped`, `duplicate`, `done` or `gap`."""

    event: str
    id: str  # the cursor after it
    body: dict[str, Any]


class Client:
    """Plain, blocking calls. Raises Problem and ServerAway. Not for several threads at once."""

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        near = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            trust_env=not near,  # a proxy from the environment is no way to this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- posting -------------------------------------------------------------------------------------------------

    def post_frame(
        self,
        stream: str,
        image: bytes,
        *,
        model: str | None = None,
        seq: int | None = None,
        time: float | None = None,
        start: bool = False,
        end: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Posts one encoded image. Returns `{"id", "stream", "model"}`, or with `wait_s` the prediction."""
        query = _query(model=model, seq=seq, time=time, start=start, end=end, wait=wait_s)
        return self._post(f"/v1/streams/{stream}/frames", query, image, media_type(image), wait_s)

    def post_samples(
        self,
        stream: str,
        rows: Sequence[Sequence[float]],
        *,
        model: str | None = None,
        seq: int | None = None,
        time: float | None = None,
        start: bool = False,
        end: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Posts one block of rows; `time` is the last row's. Returns as `post_frame`."""
        query = _query(model=model, seq=seq, time=time, start=start, end=end, wait=wait_s)
        body = json.dumps({"samples": [list(map(float, row)) for row in rows]}).encode()
        return self._post(f"/v1/streams/{stream}/samples", query, body, "application/json", wait_s)

    def post_text(
        self,
        stream: str,
        text: str,
        *,
        model: str | None = None,
        seq: int | None = None,
        time: float | None = None,
        start: bool = False,
        end: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Posts a piece of text, whole words. Returns as `post_frame`."""
        query = _query(model=model, seq=seq, time=time, start=start, end=end, wait=wait_s)
        return self._post(f"/v1/streams/{stream}/text", query, text.encode(), "text/plain", wait_s)

    # --- reading -------------------------------------------------------------------------------------------------

    def predictions(
        self, stream: str, *, after: str | None = None, limit: int | None = None, every_type: bool = False
    ) -> dict[str, Any]:
        """`{"predictions": […], "next": cursor}`; without `after` the newest."""
        query = _query(after=after, limit=limit, type="all" if every_type else None)
        return self._get(f"/v1/streams/{stream}/predictions", query)

    def models(self) -> dict[str, Any]:
        return self._get("/v1/models")

    def streams(self) -> Iterator[dict[str, Any]]:
        """Every stream, by name."""
        after: str | None = ""
        while after is not None:
            page = self._get("/v1/streams", _query(after=after or None, limit=1000))
            yield from page["streams"]
            after = page["next"]

    def stream(self, stream: str) -> dict[str, Any]:
        """One stream: model, steps, cursors, last record, what waits, its state in words, its settings."""
        return self._get(f"/v1/streams/{stream}")

    # --- a stream's life: each is carried out in its turn in the stream's log, and answered by its `done` record ---

    def configure(
        self,
        stream: str,
        *,
        model: str | None = None,
        rolling: Mapping[str, float] | None = None,
        gap: Mapping[str, Any] | None = None,
        freshness: Mapping[str, Any] | None = None,
        state_ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """Sets all of a stream's settings: what is None is as the package or the deployment says; the model stays."""
        given = {"model": model, "rolling": rolling, "gap": gap, "freshness": freshness, "state_ttl_s": state_ttl_s}
        body = json.dumps({name: value for name, value in given.items() if value is not None}).encode()
        return self._call("PUT", f"/v1/streams/{stream}", body, "application/json")

    def delete(self, stream: str) -> dict[str, Any]:
        """Removes all that is kept of a stream."""
        return self._call("DELETE", f"/v1/streams/{stream}")

    def state(self, stream: str) -> dict[str, Any]:
        """What a stream remembers, in words: steps, age, norm, bytes, model, version, schema."""
        return self._get(f"/v1/streams/{stream}/state")

    def save_state(self, stream: str) -> bytes:
        """The state itself, one object that describes itself; `restore` takes it."""
        return self._bytes(f"/v1/streams/{stream}/state", STATE_TYPE)

    def restore(self, stream: str, state: bytes) -> dict[str, Any]:
        """Puts a saved state back, or into another stream of the same model."""
        return self._call("PUT", f"/v1/streams/{stream}/state", state, STATE_TYPE)

    def reset(self, stream: str) -> dict[str, Any]:
        """Drops the state; the next prediction says so."""
        return self._call("DELETE", f"/v1/streams/{stream}/state")

    # --- quarantine ----------------------------------------------------------------------------------------------

    def dead(self, *, stream: str | None = None, reason: str | None = None) -> Iterator[dict[str, Any]]:
        """Every refused entry that is kept, without its bytes."""
        after: str | None = ""
        while after is not None:
            page = self._get("/v1/dead", _query(stream=stream, reason=reason, after=after or None, limit=1000))
            yield from page["dead"]
            after = page["next"]

    def dead_entry(self, stream: str, entry_id: str) -> dict[str, Any]:
        """One refused entry: why, its fields, and its bytes in base64 (`data`)."""
        return self._get(f"/v1/dead/{_quoted(stream)}/{entry_id}")

    def dead_bytes(self, stream: str, entry_id: str) -> bytes:
        """Its bytes alone, as they came."""
        return self._bytes(f"/v1/dead/{_quoted(stream)}/{entry_id}", "application/octet-stream")

    def retry_dead(
        self, stream: str, entry_id: str, *, model: str | None = None, drop: bool = False, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Appends it again as a new entry; with `drop` the old one leaves quarantine. Returns as `post_frame`."""
        query = _query(model=model, drop=drop, wait=wait_s)
        path = f"/v1/dead/{_quoted(stream)}/{entry_id}/retry"
        return self._post(path, query, b"", "application/octet-stream", wait_s)

    def drop_dead(self, stream: str, entry_id: str) -> dict[str, Any]:
        return self._call("DELETE", f"/v1/dead/{_quoted(stream)}/{entry_id}")

    def reasons_not_ready(self) -> list[str]:
        """Why an entry posted now would not be answered; empty when it would."""
        try:
            answer = self._http.get("/readyz")
            return [] if answer.status_code == 200 else [str(reason) for reason in answer.json()["reasons"]]
        except (httpx.TransportError, ValueError, KeyError) as error:
            return [_away(self.url, error)]

    def follow(self, stream: str, *, after: str | None = None) -> Iterator[StreamRecord]:
        """Every record of a stream after the cursor `after` (`0`: all kept; None: from now on), for ever.

        A lost connection is taken up again where it stopped. Raises at once when there is no server to begin with.
        """
        cursor = self.newest(stream) if after is None else after
        pause_s, begun = _FIRST_PAUSE_S, after is None
        while True:
            try:
                for record in self._subscribe(stream, cursor):
                    cursor, pause_s, begun = record.id or cursor, _FIRST_PAUSE_S, True
                    if record.event != "bye":
                        yield record
            except Problem as problem:
                if problem.status not in (429, 503):
                    raise
            except httpx.TransportError as error:
                if not begun:
                    raise ServerAway(_away(self.url, error)) from None
            clock.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def newest(self, stream: str) -> str:
        """The cursor of now: resolved once, so that a connection lost before the first record loses none."""
        try:
            return str(self.predictions(stream, limit=1)["next"])
        except Problem as problem:
            if problem.status != 404:
                raise
            return "0"  # nothing yet: all of it is to come

    def _subscribe(self, stream: str, after: str | None) -> Iterator[StreamRecord]:
        headers = {"Accept": "text/event-stream"}
        path = f"/v1/streams/{stream}/predictions"
        timeout = httpx.Timeout(_SILENCE_S, connect=5.0)
        with self._http.stream("GET", path, params=_query(after=after), headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                raise _problem(response)
            yield from parse_events(response.iter_lines())

    # --- the wire ------------------------------------------------------------------------------------------------

    def _post(
        self, path: str, query: dict[str, str], body: bytes, content_type: str, wait_s: float | None
    ) -> dict[str, Any]:
        timeout = httpx.Timeout((wait_s or 0.0) + 30.0, connect=5.0)
        try:
            response = self._http.post(
                path, params=query, content=body, headers={"Content-Type": content_type}, timeout=timeout
            )
        except httpx.TransportError as error:
            raise ServerAway(_away(self.url, error)) from None
        return _answer(response)

    def _get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        return _answer(self._send("GET", path, params=query, headers={"Accept": "application/json"}))

    def _bytes(self, path: str, content_type: str) -> bytes:
        response = self._send("GET", path, headers={"Accept": content_type})
        if response.status_code >= 400:
            raise _problem(response)
        return response.content

    def _call(self, method: str, path: str, body: bytes = b"", content_type: str | None = None) -> dict[str, Any]:
        headers = {"Content-Type": content_type} if content_type is not None else {}
        return _answer(self._send(method, path, content=body, headers=headers))

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise ServerAway(_away(self.url, error)) from None


def parse_events(lines: Iterable[str]) -> Iterator[StreamRecord]:
    """Server-sent events (HTML Living Standard, 9.2) whose data is JSON. An unnamed event is a prediction.

    >>> list(parse_events(["id: 17-0", 'data: {"label": "7"}', ""]))
    [StreamRecord(event='prediction', id='17-0', body={'label': '7'})]
    """
    event, cursor = "", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data or event:
                yield StreamRecord(event or "prediction", cursor, json.loads("\n".join(data)) if data else {})
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            cursor = value


def media_type(image: bytes) -> str:
    """By its first bytes; the server says what it makes of anything else.

    >>> media_type(bytes([0xFF, 0xD8, 0xFF]))
    'image/jpeg'
    """
    if image[:2] == b"\xff\xd8":
        return "image/jpeg"
    if image[:4] == b"\x89PNG":
        return "image/png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _query(**values: object) -> dict[str, str]:
    """What was given: None and False are left out, True is 1."""
    return {
        name: "1" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }


def _quoted(stream: str) -> str:
    """Entries without a legal stream are kept under `?`."""
    return quote(stream, safe="")


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code >= 400:
        raise _problem(response)
    answer: dict[str, Any] = response.json()
    return answer


def _problem(response: httpx.Response) -> Problem:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"title": response.reason_phrase, "detail": response.text[:200].strip() or "no explanation was given"}
    retry_after = response.headers.get("Retry-After", "")
    return Problem(response.status_code, body, float(retry_after) if retry_after.isdecimal() else None)


def _away(url: str, error: Exception) -> str:
    return f"no server answers at {url} ({error or type(error).__name__})"
