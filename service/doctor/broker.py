"""The broker: whether states are safe in it, and whether it has room."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from service.doctor.finding import Finding, advice, fix, size, unknown, well
from service.doctor.reading import Reading

OLDEST: Final = (6, 2)
FULL: Final = 0.85  # from here on posts are refused (service/api/backlog.py)
NEARLY_FULL: Final = 0.70
SKEW_S: Final = 0.5
NODE_BYTES: Final = 1024  # largest stream-node-max-bytes that is no waste
WASTE_BYTES: Final = 3_600  # of a stream's first record, with nodes of 4096 bytes
SPARE_BYTES: Final = 64 << 20  # on the disk, beside what a rewrite of the append-only file takes
CONNECTIONS: Final = 0.9
PERSIST: Final = "and in its configuration file; a managed broker has it among its parameters"


def findings(reading: Reading, home: Path | None, backlog_bytes: int) -> list[Finding]:
    """`backlog_bytes`: what may wait in all shards together; `home`: of the embedded broker."""
    if reading.loading:
        return [unknown("broker", f"{reading.where} loads its data", "wait, and ask again")]
    if reading.busy:
        cure = "the api ends it within seconds; one that has written only ends with the broker (docs/operations.md)"
        return [fix("broker", f"{reading.where} is held by a script that does not end", cure)]
    if reading.info is None:
        return [unknown("broker", f"{reading.where} refuses INFO", "allow this user INFO and CONFIG GET")]
    return [
        _server(reading), _role(reading), _eviction(reading), _memory(reading, home is not None, backlog_bytes),
        *_persistence(reading), *_disk(reading, home), _node_size(reading), _connections(reading), _clock(reading),
    ]  # fmt: skip


def _server(reading: Reading) -> Finding:
    said = (reading.info or {}).get("redis_version", "")
    number = re.match(r"(\d+)\.(\d+)", said)
    if number is None:
        return unknown("broker", f"{reading.where} does not tell its version", "use Redis 6.2 or newer, or Valkey")
    if (int(number[1]), int(number[2])) < OLDEST:
        return fix("broker", f"{reading.where} is {reading.server}", "use Redis 6.2 or newer, or Valkey")
    trip_ms = reading.round_trip_s * 1000
    return well("broker", f"{reading.where}, {reading.server}, a round trip of {trip_ms:.2g} ms")


def _role(reading: Reading) -> Finding:
    info = reading.info or {}
    role = info.get("role", "master")
    if role != "master":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return fix("role", f"this is a replica of {primary}: it takes no writes", "let `broker` name the primary")
    wanted, there = reading.setting("min-replicas-to-write") or "0", reading.number("connected_slaves")
    if wanted.isdecimal() and int(wanted) > there:
        cure = "start the replicas, or lower min-replicas-to-write"
        return fix("role", f"{there} replicas, and it takes no writes with fewer than {wanted}", cure)
    return well("role", f"primary with {there} replica{'' if there == 1 else 's'}")


def _eviction(reading: Reading) -> Finding:
    policy = (reading.info or {}).get("maxmemory_policy")
    cure = f"CONFIG SET maxmemory-policy noeviction, {PERSIST}"
    if policy is None:
        return unknown("eviction", "the broker does not tell its maxmemory-policy", f"make sure: {cure}")
    if policy != "noeviction":
        lost = "as its memory fills it drops states and entries without a word"
        return fix("eviction", f"maxmemory-policy is {policy}: {lost}", cure)
    return well("eviction", "maxmemory-policy noeviction")


def _memory(reading: Reading, embedded: bool, backlog_bytes: int) -> Finding:
    used = reading.number("used_memory") - reading.number("mem_not_counted_for_evict")
    limit = reading.number("maxmemory")
    machine = reading.number("total_system_memory")
    of = limit or machine
    if not of:
        return unknown("memory", f"{size(used)} used; the broker tells no limit", "set maxmemory")
    found = f"{size(used)} used of {size(of)} ({'maxmemory' if limit else 'the machine; no maxmemory'})"
    if used >= FULL * of:
        cure = "raise maxmemory, or keep less: output_history_s, records_kept, input_history_s, state_ttl_s"
        return fix("memory", f"{found}: posts are answered 503", cure)
    if used >= NEARLY_FULL * of:
        return advice("memory", f"{found}: from {FULL:.0%} on posts are answered 503", "plan for more")
    if not limit and not embedded:
        cure = f"CONFIG SET maxmemory to three quarters of the machine's, {PERSIST}"
        return advice(
            "memory", f"{found}: where it ends, the kernel kills the broker instead of posts being refused", cure
        )
    if limit and backlog_bytes > FULL * limit - used:
        cure = "lower backlog_bytes, or raise maxmemory"
        return advice("memory", f"{found}; {size(backlog_bytes)} may wait in the log, which does not fit", cure)
    return well("memory", found)


def _persistence(reading: Reading) -> list[Finding]:
    info = reading.info or {}
    if "aof_enabled" not in info:
        return [unknown("persistence", "the broker does not tell whether it has an append-only file", "make sure")]
    found: list[Finding] = []
    if info["aof_enabled"] != "1":
        cure = f"CONFIG SET appendonly yes, {PERSIST}"
        found.append(
            fix("persistence", "no append-only file: a restart loses every entry and state since a snapshot", cure)
        )
    for name, what in (
        ("aof_last_write_status", "the last write to the append-only file failed"),
        ("aof_last_bgrewrite_status", "the last rewrite of the append-only file failed"),
        ("rdb_last_bgsave_status", "the last snapshot failed: it may take no writes (MISCONF)"),
    ):
        if info.get(name, "ok") != "ok":
            cure = "make room on its disk and see its log; then BGREWRITEAOF, or BGSAVE"
            found.append(fix("persistence", what, cure))
    sync = reading.setting("appendfsync")
    if sync == "no":
        cure = f"CONFIG SET appendfsync everysec, {PERSIST}"
        found.append(fix("persistence", "appendfsync no: a power cut loses what the system had not written yet", cure))
    if sync == "always" and reading.setting("no-appendfsync-on-rewrite") == "yes":
        cure = f"CONFIG SET no-appendfsync-on-rewrite no, {PERSIST}"
        found.append(fix("persistence", "appendfsync always, but not during a rewrite: ack=fsync answers 501", cure))
    return found or [well("persistence", f"append-only file, appendfsync {sync or 'unknown (it refuses CONFIG GET)'}")]


def _disk(reading: Reading, home: Path | None) -> list[Finding]:
    """A rewrite of the append-only file needs as much again, for a while."""
    if home is None:
        return []
    free, needed = shutil.disk_usage(home).free, reading.number("aof_current_size") + SPARE_BYTES
    if free < needed:
        cure = "make room, or move --home while `rollcast up` is stopped"
        return [fix("disk", f"{home}: {size(free)} free, a rewrite of the append-only file needs {size(needed)}", cure)]
    return [well("disk", f"{home}: {size(free)} free, append-only file of {size(reading.number('aof_current_size'))}")]


def _node_size(reading: Reading) -> Finding:
    said = reading.setting("stream-node-max-bytes")
    if said is None or not said.isdecimal():
        return well("node-size", "the broker does not tell its stream-node-max-bytes")
    if not 0 < int(said) <= NODE_BYTES:
        cure = f"CONFIG SET stream-node-max-bytes 512, {PERSIST}"
        return advice("node-size", f"stream-node-max-bytes {said}: {WASTE_BYTES} B more for each stream", cure)
    return well("node-size", f"stream-node-max-bytes {said}")


def _connections(reading: Reading) -> Finding:
    idle = reading.setting("timeout") or "0"
    if idle != "0":
        cure = f"CONFIG SET timeout 0, {PERSIST}"
        return fix(
            "connections", f"the broker closes connections that are idle for {idle} s: quiet shards are fenced", cure
        )
    there, most = reading.number("connected_clients"), reading.number("maxclients")
    if most and there > CONNECTIONS * most:
        cure = "raise maxclients: a worker needs one connection a shard and two more, an api process 33"
        return fix("connections", f"{there} of {most} connections are taken", cure)
    return well("connections", f"{there}{f' of {most}' if most else ''}, never closed for being idle")


def _clock(reading: Reading) -> Finding:
    ahead_s, give_s = reading.ahead_s, reading.uncertain_s
    shown = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's (± {give_s * 1000:.2g} ms)"
    if abs(ahead_s) - give_s > SKEW_S:
        harm = "freshness `latest` and end-to-end times are wrong by that"
        return fix("clock", f"the broker's clock is {shown}: {harm}", "let both follow one time server (chrony, ntpd)")
    return well("clock", f"the broker's is {shown}")
