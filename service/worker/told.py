"""What a worker says of the entries it answered: refusals, lost states and controls, once their commit stands.

Never what an entry holds: `reason` is a word of ours, the detail (which may quote a producer) is in the record.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from service.worker.shard import Item, Shard

log = logging.getLogger("rollcast.worker")


class _Done(msgspec.Struct):
    action: str = ""


_done: Final = msgspec.json.Decoder(_Done)


def tell(shard: Shard, commit: int, items: Sequence[Item]) -> None:
    """`commit`: the number of the commit that answered the items."""
    for item in items:
        if item.dead and item.error is not None:
            log.warning("entry refused", extra=_where(shard, commit, item) | {"reason": item.error.reason})
        elif item.reason == "lost":
            log.error("a state was lost: its stream began anew", extra=_where(shard, commit, item))
        elif item.quiet and item.events:
            exits = ",".join(event.label for event in item.events)
            log.warning("a stream fell silent", extra=_where(shard, commit, item) | {"exits": exits})
        elif item.type == b"done":
            log.info("control done", extra=_where(shard, commit, item) | {"action": _done.decode(item.body).action})


def _where(shard: Shard, commit: int, item: Item) -> dict[str, Any]:
    return {
        "stream": item.key.name,
        "cursor": item.entry.id.decode(),
        "model": item.served or None,
        "shard": shard.number,
        "commit": commit,
    }
