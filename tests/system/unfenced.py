"""`rollcast worker` with its fence off: it never WATCHes `head`, and believes every reply. A test must catch it."""

from __future__ import annotations

from typing import Any

import hiredis

import service.broker.log as module
from service.broker import packing
from service.cli import main
from service.ports import Committed

_pack: Any = hiredis.pack_command


def without_watch(command: tuple[Any, ...]) -> Any:
    return _pack(("SELECT", 0) if command[0] in ("WATCH", b"WATCH") else command)


def believing(log: module.RedisLog, shard: int) -> Committed:
    (_, commands), wire = log._sent.pop(shard), log._commits[shard]
    for _ in commands:
        wire.reply()
    return Committed(0, [])


if __name__ == "__main__":  # only there: whoever collects the tests imports this page
    module.pack = packing.pack = without_watch
    module.RedisLog.result = believing  # type: ignore[method-assign]
    main()
