"""A record as one line, for people."""

from __future__ import annotations

import json

from rollcast import Prediction, Record


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
