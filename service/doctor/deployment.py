"""What runs on the broker: workers, the models they serve, shards with their owners, lag, quarantine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from service import VERSION
from service.codec import decode_settings
from service.doctor.finding import Finding, advice, fix, listed, well
from service.doctor.reading import Reading, count, text
from service.doctor.repair import look
from service.doctor.shards import Shard, Standing, read_head, stand
from service.keys import FORMAT, ShardKeys, meta_key

LAG_S: Final = 30.0  # an entry that has waited for longer
WATCH_S: Final = 1.0  # how long a shard that lags is watched for commits
DOUBTFUL: Final = 3  # acquisitions without a commit: careful mode
AHEAD_S: Final = 1.0  # of ids before the broker's clock
REPAIR: Final = "put the broker's clock right if it is wrong; else `rollcast doctor --repair` as the worker's user"
MANY: Final = 0.8  # of the streams that may be
_DEAD: Final = 100  # refused entries looked at, a shard
_DEAD_BYTES: Final = 8 << 20  # and their bytes


def findings(
    reading: Reading, url: str, prefix: str, shards: int, known: Mapping[str, int], max_streams: int
) -> list[Finding]:
    """`shards`, `max_streams`: this process's settings; `known`: models an api knows. Raises BrokerAway."""
    if reading.loading or reading.info is None:
        return []
    (said,) = reading.ask(("HMGET", meta_key(prefix), "format", "shards"))
    form, there = map(text, said) if isinstance(said, list) else ("", "")
    if not there.isdecimal():
        cure = "start `rollcast up`, or correct --broker and --prefix"
        return [fix("deployment", f"nothing of rollcast has ever run here under the prefix {prefix!r}", cure)]
    found = [_agreement(prefix, form, int(there), shards)]
    if form != str(FORMAT):
        return found
    standing = stand(reading, url, prefix, int(there))
    rows = standing.rows
    found += _workers(standing)
    found += _models(reading, prefix, int(there), standing, known)
    for harm in look(reading, prefix, int(there)):
        found.append(fix("shards", str(harm), REPAIR))
    found += _ownership(standing)
    found.append(_lag(reading, prefix, rows))
    found += _clock(reading, rows)
    found.append(_quarantine(reading, prefix, rows))
    found.append(_streams(reading, prefix, int(there), max_streams))
    return found


def _agreement(prefix: str, form: str, there: int, shards: int) -> Finding:
    if form != str(FORMAT):
        cure = "use the version of rollcast that this deployment was made with, or another --prefix"
        return fix("deployment", f"format {form}, this rollcast ({VERSION}) reads and writes format {FORMAT}", cure)
    if there != shards:
        cure = f"--shards {there}, or another --prefix: shards are fixed for the life of a deployment"
        return fix("deployment", f"{there} shards, here the setting is {shards}: no process starts with that", cure)
    return well("deployment", f"prefix {prefix!r}, format {form}, {there} shards")


# --- workers and models --------------------------------------------------------------------------------------------


def _workers(standing: Standing) -> list[Finding]:
    found, workers, names = [], standing.workers, standing.names
    if strange := sorted(standing.strange):
        cure = "replace all processes together (docs/operations.md), or wait two leases if they were just killed"
        found.append(fix("workers", f"{listed(strange)}: listed, but says nothing that this version can read", cure))
    if not workers:
        return [*found, fix("workers", "no live worker: entries wait", "start `rollcast worker --broker URL`")]
    for worker in workers:
        if worker.trouble:
            cure = "docs/operations.md has a line for what the broker answers"
            found.append(fix("workers", f"{names[worker.id]}: the broker refuses its commits: {worker.trouble}", cure))
    numbers = Counter(worker.rollcast or "an earlier version" for worker in workers)
    if len(numbers) > 1:
        shown = ", ".join(f"{n} run {number}" for number, n in sorted(numbers.items()))
        cure = "a rolling upgrade goes on? wait for its end; else restart those that were left behind"
        found.append(advice("workers", f"different versions of rollcast: {shown}", cure))
    if next(iter(numbers)) != VERSION and len(numbers) == 1:
        cure = "ask with the version that runs, or restart the workers"
        found.append(advice("workers", f"they run rollcast {next(iter(numbers))}, this is {VERSION}", cure))
    return found or [well("workers", f"{len(workers)} live: {listed(sorted(names.values()))}")]


def _models(reading: Reading, prefix: str, shards: int, standing: Standing, known: Mapping[str, int]) -> list[Finding]:
    found, workers, names = [], standing.workers, standing.names
    say, meanwhile = fix, ""
    if len({VERSION, *(worker.rollcast for worker in workers)}) > 1:  # what differs then is the upgrade's to end
        say, meanwhile = advice, "; or wait: versions of rollcast differ, as during an upgrade"
    served = {model for worker in workers for model in worker.models}
    missing = [f"{name} {number}" for name, number in sorted(known.items()) if name not in served]
    if missing and workers:
        cure = f"start workers with the same --models as the api: posts to these are answered 503{meanwhile}"
        found.append(say("models", f"known to the api, served by no live worker: {listed(missing)}", cure))
    for name in sorted(served):
        numbers = Counter(worker.models[name] for worker in workers if name in worker.models)
        if name in known:
            numbers[known[name]] += 0
        if len(numbers) > 1:
            shown = " and ".join(map(str, sorted(numbers)))
            found.append(say("models", f"{name} is there in versions {shown}", f"restart what is behind{meanwhile}"))
        lacking = [names[worker.id] for worker in workers if name not in worker.models]
        if lacking:
            cure = f"give all workers the same --models: any of them may own any shard{meanwhile}"
            found.append(say("models", f"{name} is not served by {listed(lacking)}", cure))
    bound = Counter[str]()
    for shard in range(shards):
        for value in reading.values(ShardKeys(prefix, shard).settings):
            bound[_model_of(value)] += 1
    lost = {name: n for name, n in bound.items() if name and name not in served} if workers else {}
    for name, n in sorted(lost.items()):
        cure = "put the package back, or give these streams another model (PUT /v1/streams/STREAM)"
        found.append(fix("models", f"{n} streams are bound to {name}, which no live worker serves", cure))
    streams = sum(n for name, n in bound.items() if name)
    return found or [well("models", f"{listed(sorted(served)) or 'none'}; {streams} streams are bound to one")]


def _model_of(settings: bytes) -> str:
    try:
        return decode_settings(settings).model or ""
    except (msgspec.DecodeError, UnicodeDecodeError):  # the id of the last control, or foreign
        return ""


# --- shards --------------------------------------------------------------------------------------------------------


def _ownership(standing: Standing) -> list[Finding]:
    found, rows, names = [], standing.rows, standing.names
    left = [row for row in rows if row.number in standing.unowned]
    if free := [str(row.number) for row in left if not row.owner]:
        cure = "start workers; one that has just died gives its shards back after lease_s"
        found.append(fix("shards", f"{len(free)} of {len(rows)} have no owner: {listed(free)}", cure))
    if ghosts := [str(row.number) for row in left if row.owner]:
        cure = "wait for lease_s; if it stays so, something else writes under this prefix"
        found.append(fix("shards", f"held by a worker that is not live: {listed(ghosts)}", cure))
    for row in rows:
        if row.suspect or row.tries >= DOUBTFUL:
            trial = f", now trying entry {row.suspect.split()[0]}" if row.suspect else ""
            cure = "see the owner's log: an entry ends its worker, or it is killed (out of memory)"
            found.append(fix("shards", f"{row.number} was lost {row.tries} times without a commit{trial}", cure))
    owners = Counter(names[row.owner] for row in rows if row.owner in names)
    shown = listed([f"{owner} has {n}" for owner, n in sorted(owners.items())])
    moving = len(rows) - owners.total()
    so = f"{moving} of {len(rows)} change hands, all others" if moving else f"all {len(rows)}"
    return found or [well("shards", f"{so} have an owner: {shown}")]


def _lag(reading: Reading, prefix: str, rows: Sequence[Shard]) -> Finding:
    waiting = sum(row.lag_entries for row in rows)
    late = [row for row in rows if row.lag_s > LAG_S]
    if not late:
        longest_s = max((row.lag_s for row in rows), default=0.0)
        return well("lag", f"{waiting} entries wait, the oldest for {longest_s:.1f} s")
    time.sleep(WATCH_S)
    heads = reading.ask(*(("GET", ShardKeys(prefix, row.number).head) for row in late))
    stuck = [str(row.number) for row, head in zip(late, heads, strict=True) if read_head(text(head)).n == row.n]
    oldest_s = max(row.lag_s for row in late)
    shown = listed([str(row.number) for row in late])
    found = f"{waiting} entries wait, the oldest for {oldest_s:.0f} s; behind: shards {shown}"
    if stuck:
        cure = "see the lines about workers and shards, and the owner's log"
        return fix("lag", f"{found}; nothing is committed in {listed(stuck)}", cure)
    return fix(
        "lag",
        f"{found}; they are worked off",
        "more workers or CPUs, or freshness `latest` where only the newest counts",
    )


def _clock(reading: Reading, rows: Sequence[Shard]) -> list[Finding]:
    """Ids never go back: after its clock did, the broker goes on counting at the last one's time."""
    ahead_s = max((row.last_ms / 1000 - reading.now_s for row in rows), default=0.0)
    if ahead_s <= AHEAD_S:
        return []
    found = f"ids are {ahead_s:.0f} s ahead of the broker's clock: it went back, or a producer gave an id of its own"
    return [
        fix(
            "clock",
            found,
            "producers XADD with `*`; else wait until the clock has caught up: gaps and ages are wrong until then",
        )
    ]


def _quarantine(reading: Reading, prefix: str, rows: Sequence[Shard]) -> Finding:
    kept = sum(row.dead for row in rows)
    if not kept:
        return well("quarantine", "empty")
    why = Counter(reason for row in rows if row.dead for reason in _reasons(reading, ShardKeys(prefix, row.number)))
    shown = ", ".join(f"{reason} {n}" for reason, n in why.most_common())
    some = "" if kept == why.total() else f" of the first {why.total()}"
    return advice("quarantine", f"{kept} refused entries{some}: {shown}", "`rollcast dead list` shows them")


def _streams(reading: Reading, prefix: str, shards: int, most: int) -> Finding:
    there = 0
    for keys in (ShardKeys(prefix, shard) for shard in range(shards)):
        there += max(map(count, reading.ask(("ZCARD", keys.streams), ("HLEN", keys.settings))))
    found = f"{there:,} of {most:,} that may be (max_streams)"
    if there < MANY * most:
        return well("streams", found)
    cure = "find out who makes them (`rollcast streams`); raise max_streams, or shorten state_ttl_s and settings_ttl_s"
    return advice("streams", f"{found}: beyond that new ones are refused", cure)


def _reasons(reading: Reading, keys: ShardKeys) -> list[str]:
    """Of the oldest refused entries of a shard. They come with their bytes: one at a time, and not many of them."""
    found: list[str] = []
    after, left = b"-", _DEAD_BYTES
    while left > 0 and len(found) < _DEAD:
        (said,) = reading.ask(("XRANGE", keys.dead, after, "+", "COUNT", 1))
        if not isinstance(said, list) or not said:
            break
        at, fields = said[0]
        found.append(text(dict(zip(fields[::2], fields[1::2], strict=True)).get(b"reason")) or "none said")
        after, left = b"(" + at, left - sum(map(len, fields))
    return found
