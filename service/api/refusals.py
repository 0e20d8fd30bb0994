"""The record of an entry that was not stepped, as the answer to a call that waited for it."""

from __future__ import annotations

from service.codec import decode_record
from service.contracts import Dropped, Duplicate, Refused
from service.errors import EntryDropped, EntryDuplicate, EntryRefused, RollcastError
from service.ports import OutRecord


def refusal(record: OutRecord) -> RollcastError:
    """The record of an entry that was not stepped, as the answer to a call that waited for it."""
    found = decode_record(record.body)
    members: dict[str, object] = {"id": found.id, "stream": found.stream}
    if isinstance(found, Refused):
        return EntryRefused(found.detail, members | {"reason": found.reason})
    if isinstance(found, Dropped):
        return EntryDropped(found.detail, members | {"reason": found.reason})
    if isinstance(found, Duplicate):
        return EntryDuplicate(f"seq {found.seq} was finished as entry {found.of}", members | {"of": found.of})
    return RollcastError(f"entry {found.id} was answered by a record of type {record.type}")
