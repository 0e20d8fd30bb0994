"""Appending an entry for a caller who may wait for its record: shared by controls and by retries from quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
from starlette.responses import Response

from service.api.context import Context
from service.api.openapi_control import CONTROL_WAIT_S
from service.api.query import MAX_WAIT_S, Query
from service.api.refusals import refusal
from service.codec import entry_fields
from service.controls import Control, encode_control
from service.errors import NoWorker, Unavailable, UnknownModel
from service.ports import OutRecord


async def carry_out(context: Context, stream: str, control: Control, query: Query) -> Response:
    """Appends a control, and answers with its record, or before it is carried out where the caller does not wait.

    What needs memory must be admitted by the caller; what frees memory is taken however full the broker is.
    """
    wait_s = query.number("wait", 0.0, MAX_WAIT_S)
    fields = entry_fields(stream, "control", encode_control(control))
    try:
        entry_id, record = await append(context, stream, fields, CONTROL_WAIT_S if wait_s is None else wait_s)
    finally:
        context.bindings.forget(stream)
    if record is None:
        return json_answer({"id": entry_id, "stream": stream}, 202)
    return answer(record)


async def append(
    context: Context, stream: str, fields: Mapping[str, bytes], wait_s: float | None
) -> tuple[str, OutRecord | None]:
    """The new entry's id, and its record if `wait_s` is neither None nor 0. Raises WaitTimeout."""
    if not wait_s:
        return await _append(context, stream, fields), None
    with context.follower.waiting(stream) as waiter:
        entry_id = await _append(context, stream, fields)
        return entry_id, await waiter.record(entry_id, wait_s)


async def admit(context: Context, stream: str, size: int) -> None:
    """Raises BacklogFull, BrokerFull and TooManyStreams."""
    with _counted(context):
        bound = await context.bindings.model(stream) is not None
        context.backlog.admit(stream, size, await context.backlog.census.is_new(stream, bound))


async def _append(context: Context, stream: str, fields: Mapping[str, bytes]) -> str:
    with _counted(context):
        entry_id = await context.predictions.append(stream, fields)
    context.metrics.appended.inc()
    return entry_id


@contextmanager
def _counted(context: Context) -> Iterator[None]:
    """A control or a retry that is turned away for now is an entry that is."""
    try:
        yield
    except Unavailable as error:
        context.metrics.turned_away.labels(error.reason).inc()
        raise


def answer(record: OutRecord) -> Response:
    """A prediction or a done control as it is stored; a refusal as a problem."""
    if record.type in ("prediction", "done"):
        return Response(record.body, 200, media_type="application/json")
    raise refusal(record)


async def check_model(context: Context, model: str) -> None:
    """Raises UnknownModel, and NoWorker when no live worker has it."""
    if model not in context.models:
        raise UnknownModel(f"unknown model {model[:100]!r}; known are: {', '.join(sorted(context.models)) or 'none'}")
    with _counted(context):
        if not await context.monitor.serves(model):
            raise NoWorker(f"no live worker serves model {model!r}", retry_after_s=2.0)


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
