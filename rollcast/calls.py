"""Every call of the interface as a value: what is sent, how its answer is read. Client and AsyncClient send them."""

from __future__ import annotations

import warnings
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from rollcast.content import JSON, ROWS, Frame, Table, body_of, image_of, media_type
from rollcast.entries import Entry
from rollcast.results import Accepted, History, Prediction, Record, read_record
from rollcast.shapes import DeadDetail, Models, StateSummary, StreamDetail

STATE: Final = "application/vnd.rollcast.state+msgpack"  # of a stream's saved state
LEFT_OUT: Final = "Rollcast-Left-Out"  # of an answer: columns of a table that are no signal
_MARGIN_S: Final = 30.0  # beyond what the server was asked to wait
Result = TypeVar("Result", covariant=True)
_accepted = msgspec.json.Decoder(Accepted)
_prediction = msgspec.json.Decoder(Prediction)


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request. `entry`: the stream it appends to, which a retry must not append to twice."""

    method: str
    path: str
    read: Callable[[httpx.Response], Result]
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    entry: str | None = None

    @property
    def timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.wait_s + _MARGIN_S, connect=5.0)


# --- entries -----------------------------------------------------------------------------------------------------


def post_frame(
    stream: str,
    image: bytes | str | Path | Frame,
    *,
    model: str | None = None,
    seq: int | None = None,
    time: float | None = None,
    start: bool = False,
    end: bool = False,
    ack: str | None = None,
    wait_s: float | None = None,
) -> Call[Accepted | Prediction]:
    """Posts one frame: the bytes or the path of a JPEG, PNG or WebP, or an array (H, W) or (H, W, 3) uint8 in RGB,
    which is sent as PNG (needs OpenCV).

    Returns Accepted, or with `wait_s` the Prediction. Raises Problem, also when the entry was refused, and ServerAway.
    """
    data = image_of(image)
    query = _query(model=model, seq=seq, time=time, start=start, end=end, ack=ack, wait=wait_s)
    return _post(stream, "frames", query, data, media_type(data), wait_s)


def post_samples(
    stream: str,
    rows: Sequence[Sequence[float]] | Table,
    *,
    model: str | None = None,
    seq: int | None = None,
    time: float | None = None,
    start: bool = False,
    end: bool = False,
    interval_s: float | None = None,
    ack: str | None = None,
    wait_s: float | None = None,
) -> Call[Accepted | Prediction]:
    """Posts one block of rows (T, F): an array, a DataFrame (columns by name, in any order; those of time or index are
    left out) or lists. `time` is the last row's, `interval_s` lies between rows (else as a DataFrame's column of times
    says, else the model's rate). Returns and raises as `post_frame`."""
    query = _query(
        model=model, seq=seq, time=time, start=start, end=end, interval_s=interval_s, ack=ack, wait=wait_s
    )  # fmt: skip
    body, media = body_of(rows)
    return _post(stream, "samples", query, body, media, wait_s)


def post_text(
    stream: str,
    text: str,
    *,
    model: str | None = None,
    seq: int | None = None,
    time: float | None = None,
    start: bool = False,
    end: bool = False,
    ack: str | None = None,
    wait_s: float | None = None,
) -> Call[Accepted | Prediction]:
    """Posts a piece of text, whole words. Returns and raises as `post_frame`."""
    query = _query(model=model, seq=seq, time=time, start=start, end=end, ack=ack, wait=wait_s)
    return _post(stream, "text", query, text.encode(), "text/plain", wait_s)


def post_entry(entry: Entry, *, ack: str | None = None, wait_s: float | None = None) -> Call[Accepted | Prediction]:
    """Posts an entry that was made before. Returns and raises as `post_frame`."""
    more = {"model": entry.model, "seq": entry.seq, "time": entry.time, "start": entry.start, "end": entry.end}
    query = _query(**more, ack=ack, wait=wait_s)
    if entry.kind == "frame" and entry.data is not None:
        return _post(entry.stream, "frames", query, entry.data, media_type(entry.data), wait_s)
    if entry.kind == "text" and entry.text is not None:
        return _post(entry.stream, "text", query, entry.text.encode(), "text/plain", wait_s)
    query |= _query(interval_s=entry.interval_s)
    if entry.kind == "samples" and entry.data is not None:
        return _post(entry.stream, "samples", query, entry.data, ROWS, wait_s)
    if entry.kind == "samples" and entry.samples is not None:
        return _post(entry.stream, "samples", query, *body_of(entry.samples), wait_s)
    raise ValueError(f"entry of kind {entry.kind!r} without its content: expected frame, samples or text")


def _post(
    stream: str, kind: str, query: dict[str, str], body: bytes, media: str, wait_s: float | None
) -> Call[Accepted | Prediction]:
    def read(response: httpx.Response) -> Accepted | Prediction:
        if (left_out := response.headers.get(LEFT_OUT)) is not None:
            warnings.warn(f"left out, as no signal: {left_out}", stacklevel=2)
        return _accepted.decode(response.content) if wait_s is None else _record_of(response)

    path = f"/v1/streams/{quoted(stream)}/{kind}"
    return Call("POST", path, read, query, body, {"Content-Type": media}, wait_s or 0.0, stream)


def _record_of(response: httpx.Response) -> Prediction:
    found = read_record(response.text)
    assert isinstance(found, Prediction), "the server answers a wait with a prediction or a problem"
    return msgspec.structs.replace(found, cursor=found.id)


# --- reading -----------------------------------------------------------------------------------------------------


class _Page(msgspec.Struct):
    predictions: list[msgspec.Raw]
    next: str
    gap: bool


_page = msgspec.json.Decoder(_Page)


def history(
    stream: str, after: str | None = None, *, limit: int | None = None, every_type: bool = False
) -> Call[History]:
    """A page of what is kept of a stream, oldest first: after the cursor `after`, or the newest. Predictions only, or
    every type of record."""

    def read(response: httpx.Response) -> History:
        page = _page.decode(response.content)
        records: list[Record] = []
        for raw in page.predictions:
            record = read_record(bytes(raw).decode())
            assert not isinstance(record, Prediction) or record.id
            records.append(record)  # type: ignore[arg-type]
        return History(records, page.next, page.gap)

    query = _query(after=after, limit=limit, type="all" if every_type else None)
    return Call("GET", f"/v1/streams/{quoted(stream)}/predictions", read, query, headers={"Accept": JSON})


def page(path: str, name: str, row: type, after: str, **query: object) -> Call[tuple[list[Any], str | None]]:
    """A page of rows, and the `after` of the next one."""

    def read(response: httpx.Response) -> tuple[list[Any], str | None]:
        found = response.json()
        msgspec.convert(found[name], list[row])  # type: ignore[valid-type]
        following = msgspec.convert(found["next"], str | None)
        if following == after:
            raise ValueError(f"a page of {name} whose next page is itself")
        return found[name], following

    asked = _query(after=after or None, limit=1000, **query)
    return Call("GET", path, read, asked, headers={"Accept": JSON})


def stream(stream: str) -> Call[StreamDetail]:
    """One stream: model, steps, cursors, last record, what waits, its state, its settings."""
    return Call("GET", f"/v1/streams/{quoted(stream)}", _shape(StreamDetail), headers={"Accept": JSON})


def models() -> Call[Models]:
    """The model packages: `{"models": […]}`."""
    return Call("GET", "/v1/models", _shape(Models), headers={"Accept": JSON})


# --- a stream's life: each is carried out in its turn in the stream's log, and answered by its `done` record --------


def configure(
    stream: str,
    *,
    model: str | None = None,
    rolling: Mapping[str, float] | None = None,
    gap: Mapping[str, Any] | None = None,
    freshness: Mapping[str, Any] | None = None,
    state_ttl_s: float | None = None,
    idle_exit_s: float | None = None,
) -> Call[dict[str, Any]]:
    """Sets all of a stream's settings: what is None is as the package or the deployment says; the model stays."""
    given = {
        "model": model, "rolling": rolling, "gap": gap, "freshness": freshness, "state_ttl_s": state_ttl_s,
        "idle_exit_s": idle_exit_s,
    }  # fmt: skip
    body = msgspec.json.encode({name: value for name, value in given.items() if value is not None})
    return Call("PUT", f"/v1/streams/{quoted(stream)}", _dict, body=body, headers={"Content-Type": JSON})


def control(stream: str, said: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Carries out a control as it was recorded: its `action`, and what belongs to that."""
    action = said.get("action")
    if action == "settings":
        body = msgspec.json.encode(said.get("settings") or {})
        return Call("PUT", f"/v1/streams/{quoted(stream)}", _dict, body=body, headers={"Content-Type": JSON})
    if action == "restore":
        return restore(stream, b64decode(said.get("state") or ""))
    if action == "reset":
        return reset(stream)
    if action == "delete":
        return delete(stream)
    raise ValueError(f"control {action!r}: expected settings, restore, reset or delete")


def delete(stream: str) -> Call[dict[str, Any]]:
    """Removes all that is kept of a stream."""
    return Call("DELETE", f"/v1/streams/{quoted(stream)}", _dict)


def state(stream: str) -> Call[StateSummary]:
    """What a stream remembers, in words: steps, age, norm, bytes, model, version, schema."""
    return Call("GET", f"/v1/streams/{quoted(stream)}/state", _shape(StateSummary), headers={"Accept": JSON})


def save_state(stream: str) -> Call[bytes]:
    """The state itself, one object that describes itself; `restore` takes it."""
    return Call("GET", f"/v1/streams/{quoted(stream)}/state", _content, headers={"Accept": STATE})


def restore(stream: str, state: bytes) -> Call[dict[str, Any]]:
    """Puts a saved state back, or into another stream of the same model."""
    path = f"/v1/streams/{quoted(stream)}/state"
    return Call("PUT", path, _dict, body=state, headers={"Content-Type": STATE})


def reset(stream: str) -> Call[dict[str, Any]]:
    """Drops the state; the next prediction says so."""
    return Call("DELETE", f"/v1/streams/{quoted(stream)}/state", _dict)


# --- quarantine --------------------------------------------------------------------------------------------------


def dead_entry(stream: str, entry_id: str) -> Call[DeadDetail]:
    """One refused entry: why, its fields, and its bytes in base64 (`data`)."""
    return Call("GET", f"/v1/dead/{quoted(stream)}/{entry_id}", _shape(DeadDetail), headers={"Accept": JSON})


def dead_bytes(stream: str, entry_id: str) -> Call[bytes]:
    """Its bytes alone, as they came."""
    return Call("GET", f"/v1/dead/{quoted(stream)}/{entry_id}", _content, headers={"Accept": ROWS})


def retry_dead(
    stream: str, entry_id: str, *, model: str | None = None, drop: bool = False, wait_s: float | None = None
) -> Call[dict[str, Any]]:
    """Appends it again as a new entry; with `drop` the old one leaves quarantine."""
    query = _query(model=model, drop=drop, wait=wait_s)
    return Call("POST", f"/v1/dead/{quoted(stream)}/{entry_id}/retry", _dict, query, wait_s=wait_s or 0.0, entry=stream)


def drop_dead(stream: str, entry_id: str) -> Call[dict[str, Any]]:
    """Removes a refused entry for good."""
    return Call("DELETE", f"/v1/dead/{quoted(stream)}/{entry_id}", _dict)


def drop_dead_page(
    *, stream: str | None = None, reason: str | None = None, everything: bool = False, after: str | None = None
) -> Call[dict[str, Any]]:
    """Removes many refused entries; `dropped` says how many, `next` where to go on (`after`), None when it is done."""
    return Call("DELETE", "/v1/dead", _dict, _query(stream=stream, reason=reason, all=everything, after=after))


# --- small parts -------------------------------------------------------------------------------------------------


def quoted(stream: str) -> str:
    """Entries without a legal stream are kept under `?`."""
    return quote(stream, safe="")


def _query(**values: object) -> dict[str, str]:
    """What was given: None and False are left out, True is 1."""
    return {
        name: "1" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }


def _dict(response: httpx.Response) -> dict[str, Any]:
    found = response.json()
    if not isinstance(found, dict):
        raise TypeError(f"expected an object, found {type(found).__name__}")
    return found


def _shape(expected: type) -> Callable[[httpx.Response], Any]:
    """Reads an object that has what the type says; what a newer server adds stays."""

    def read(response: httpx.Response) -> Any:
        found = response.json()
        msgspec.convert(found, expected)
        return found

    return read


def _content(response: httpx.Response) -> bytes:
    return response.content
