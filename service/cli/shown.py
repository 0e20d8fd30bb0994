"""What is shown to people: a record as one line, and the words of others."""

from __future__ import annotations

import json
from typing import Final

from rollcast import Prediction, Record

LONGEST: Final = 4_000  # characters of a message


def line(record: Record, *, named: bool = False) -> str:
    """`named`: begins with the stream."""
    stream = f"{getattr(record, 'stream', None) or '':<16} " if named else ""
    if not isinstance(record, Prediction):
        body = json.loads(record.json)
        words = [str(body[name]) for name in ("reason", "detail", "action", "of") if body.get(name) is not None]
        return f"{stream}{body.get('id') or record.cursor}  {record.type}: {', '.join(words) or record.json}"
    rolling = record.rolling
    text = (
        f"{stream}{record.id}  step {record.step:<6} {record.label:<10} {record.score:.3f}"
        f"   rolling {rolling.label:<10} {rolling.score:.3f}"
    )
    if record.restarted:
        text += f"   restarted: {record.restarted}"
    return text + "".join(f"   {event.type} {event.label}" for event in record.events)


def printable(text: str) -> str:
    """Of a server's or a file's words: nothing that a terminal would carry out, and no flood."""
    shown = "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text[:LONGEST]
    )
    return shown + ("…" if len(text) > LONGEST else "")
