"""What is posted: rows that follow from the seed, good ones and every kind of bad one, sparse and in bursts.

An entry is written twice in one atomic step: into the shard's log, and into `chaos:{p}:log`, a copy that no worker
knows and nobody trims. What a broker loses of its data it loses of both: the copy is the surviving log.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import redis

from service.chaos.broker import connect
from service.chaos.controls import ControlTraffic
from service.contracts import Manifest
from service.keys import ShardKeys, shard_of

CASE: Final = "chaos"  # a field of each entry that workers ignore: which case of `CASES` it is
CASES: Final = {  # what must become of it: a reason of refusal, or nothing when it is stepped or carried out
    "good": "", "reset": "", "not-finite": "non_finite", "bytes": "wrong_shape", "width": "wrong_shape",
    "frame": "wrong_kind", "kind": "malformed", "control": "malformed", "model": "unknown_model",
    "stream": "bad_stream", "shard": "wrong_shard", "settings": "", "restore": "", "delete": "",
    "settings-ttl": "malformed", "settings-range": "malformed", "settings-field": "malformed",
    "settings-model": "unknown_model", "restore-schema": "other_schema", "restore-model": "other_model",
    "restore-nan": "non_finite", "restore-shape": "malformed", "restore-bytes": "malformed",
    "restore-none": "malformed",
}  # fmt: skip
PARSED: Final = ("bytes", "kind", "stream")  # refused before anything else is looked at
_APPEND: Final = """
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV))
redis.call('XADD', KEYS[2], id, unpack(ARGV))
return id
"""


def copy_key(shard: int) -> bytes:
    return b"chaos:{%d}:log" % shard


class Draft(NamedTuple):
    """One entry to append."""

    shard: int
    fields: dict[str, bytes]


class StreamTraffic:
    """The entries of one stream, one after the other; the same for the same seed. `states`: what is restored."""

    def __init__(
        self, stream: str, seed: int, manifest: Manifest, shards: int, states: Sequence[Mapping[str, Any]]
    ) -> None:
        assert manifest.rows is not None
        self.stream = stream
        self._manifest, self._rows, self._shards = manifest, manifest.rows, shards
        self._dice = random.Random(f"{seed} {stream}")
        self._normal = np.random.default_rng([seed, *stream.encode()])
        self._timed = self._dice.random() < 0.75  # the others' times are their entries' ids
        self._deletes = self._dice.random() < 0.1  # few: nothing is left to compare of what came before
        self._controls = ControlTraffic(self._dice, manifest.name, states)
        self._clock = 1000.0
        self._seq = 0
        self._last: dict[str, bytes] | None = None
        self._late: dict[str, bytes] | None = None
        self._phase = 0.0

    def next(self) -> Draft:
        dice = self._dice.random()
        if dice < 0.78:
            return self._good()
        if dice < 0.82 and self._last is not None:  # a producer that repeats itself
            return self._draft(self._last)
        if dice < 0.84 and self._late is not None:
            return self._draft(self._late)
        for limit, case in ((0.86, "reset"), (0.885, "settings"), (0.91, "restore"), (0.916, "delete")):
            if dice < limit and (case != "delete" or self._deletes):
                return self._control(case)
        return self._bad(self._dice.choice([case for case, reason in CASES.items() if reason]))

    def _good(self) -> Draft:
        rows = self.make_rows(self._dice.choice([1, 1, 1, 1, 2, 3, 8, 24]), len(self._rows.features))
        self._seq += 1 if self._dice.random() < 0.98 else self._dice.randrange(2, 6)  # a hole now and then
        fields = self._samples(rows, "good") | {"seq": b"%d" % self._seq}
        dice = self._dice.random()
        if dice < 0.02:
            fields["start"] = b"1"
        elif dice < 0.035:
            fields["end"] = b"1"
        self._late, self._last = self._last, fields
        return self._draft(fields)

    def _bad(self, case: str) -> Draft:
        width = len(self._rows.features)
        if case == "control" or case.startswith(("settings-", "restore-")):
            return self._control(case)
        fields = self._samples(self.make_rows(2, width), case)
        if case == "not-finite":  # its seq is not used up: the next entry has the same
            rows = self.make_rows(3, width)
            rows[self._dice.randrange(3), self._dice.randrange(width)] = self._dice.choice([np.nan, np.inf, -np.inf])
            fields |= {"data": rows.tobytes(), "shape": b"3,%d" % width, "seq": b"%d" % (self._seq + 1)}
        elif case == "bytes":
            fields["data"] = fields["data"][:-4]
        elif case == "width":
            fields |= {"data": self.make_rows(1, width - 1).tobytes(), "shape": b"1,%d" % (width - 1)}
        elif case == "frame":
            fields["kind"] = b"frame"
        elif case == "kind":
            fields["kind"] = b"sample"
        elif case == "model":
            fields["model"] = b"nobody"
        elif case == "stream":
            fields["stream"] = b"not a stream"
        shard = shard_of(self.stream, self._shards)
        return Draft((shard + 1) % self._shards if case == "shard" else shard, fields)

    def _draft(self, fields: dict[str, bytes]) -> Draft:
        return Draft(shard_of(self.stream, self._shards), fields)

    def _control(self, case: str) -> Draft:
        data = self._controls.data(case, round(self._clock * 1e6))
        return self._draft({"stream": self.stream.encode(), "kind": b"control", "data": data, CASE: case.encode()})

    def _samples(self, rows: np.ndarray, case: str) -> dict[str, bytes]:
        fields = {
            "stream": self.stream.encode(), "kind": b"samples", "data": rows.tobytes(), "shape": b"%d,%d" % rows.shape,
            "model": self._manifest.name.encode(), CASE: case.encode(),
        }  # fmt: skip
        if self._timed:
            self._clock += len(rows) / self._rows.rate_hz
            dice, gap_s = self._dice.random(), self._manifest.gap.gap_s
            if dice < 0.01:
                self._clock += 2 * gap_s
            elif dice < 0.02:  # put back
                self._clock = max(1000.0, self._clock - self._dice.choice([2, 50]) * gap_s)
            late_s = gap_s * self._dice.random() if 0.02 < dice < 0.05 else 0.0  # overtaken on its way
            fields["time"] = repr(round(max(1000.0, self._clock - late_s), 6)).encode()
        return fields

    def make_rows(self, count: int, width: int | None = None) -> np.ndarray:
        """Slow waves through the range of the training data, and noise: labels come and go."""
        width = len(self._rows.features) if width is None else width
        self._phase += 0.05 * count
        wave = np.sin(self._phase * np.arange(1, width + 1) / 2)
        values = 1.5 * wave + 0.5 * self._normal.normal(size=(count, width))
        mean, std = (np.asarray(numbers, np.float64)[:width] for numbers in (self._rows.mean, self._rows.std))
        return np.ascontiguousarray(mean + std * values, "<f4")


class Tally:
    """What producers saw. Written under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acknowledged: list[tuple[int, bytes]] = []  # (shard, id)
        self.counts: Counter[str] = Counter()  # full (refused by a full broker), unknown (the answer was lost)


class Producer(threading.Thread):
    """Appends the entries of some streams: now and then one of each, or in bursts. Repeats what was not answered."""

    def __init__(
        self,
        broker: Path,
        streams: Sequence[StreamTraffic],
        tally: Tally,
        *,
        seed: str,
        burst: int,  # entries; 0: sparse, an entry of each stream every few seconds
        crowded: Callable[[], bool] = lambda: False,  # bursts wait while it is true
        prefix: str = "rollcast",
        shards: int = 4,
    ) -> None:
        super().__init__(name=f"producer {seed}", daemon=True)
        self._broker, self._streams, self._tally = broker, streams, tally
        self._dice, self._burst, self._crowded = random.Random(seed), burst, crowded
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._stopped = threading.Event()
        self._again: list[Draft] = []
        self._client: redis.Redis | None = None

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        due = {stream: time.monotonic() + self._dice.random() for stream in self._streams}
        while not self._stopped.is_set():
            if self._burst:
                self._stopped.wait(self._dice.choice([0.05, 0.2, 0.2, 1.0]))
                size = self._dice.choice([1, 5, 20, 20, 50, self._burst])
                some = self._dice.sample(self._streams, min(8, len(self._streams)))  # they lag; the others fall silent
                drafts = [] if self._crowded() else [self._dice.choice(some).next() for _ in range(size)]
            else:
                self._stopped.wait(0.05)
                now, drafts = time.monotonic(), []
                for stream, when in due.items():
                    if now >= when:
                        drafts.append(stream.next())
                        due[stream] = now + self._dice.choice([0.7, 1.5, 3.0, 6.0])
            again, self._again = self._again, []
            if again or drafts:
                self.append([*again, *drafts])
        if self._client is not None:
            self._client.close()

    def append(self, drafts: Sequence[Draft]) -> None:
        """Entries whose answer was lost are appended again if they have a `seq`, which tells the worker."""
        replies: list[Any] = [None] * len(drafts)
        try:
            if self._client is None:
                self._client = connect(self._broker)
            pipeline = self._client.pipeline(transaction=False)
            for draft in drafts:
                pipeline.eval(
                    _APPEND, 2, self._keys[draft.shard].inbox, copy_key(draft.shard),
                    *(part for item in draft.fields.items() for part in item),
                )  # fmt: skip
            replies = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError):
            if self._client is not None:
                self._client.close()
            self._client = None
            self._stopped.wait(0.05)
        with self._tally.lock:
            for draft, reply in zip(drafts, replies, strict=True):
                if isinstance(reply, bytes):
                    self._tally.acknowledged.append((draft.shard, reply))
                    continue
                full = isinstance(reply, redis.OutOfMemoryError) or "OOM" in str(reply)
                self._tally.counts["full" if full else "unknown"] += 1
                if "seq" in draft.fields:
                    self._again.append(draft)


def describe(fields: dict[str, bytes]) -> str:
    """An entry in one line, for evidence."""
    return json.dumps({name: value.decode("latin-1") for name, value in fields.items() if name != "data"})
