"""`rollcast doctor`: looks at a deployment, and says what to fix.

Each check gives one finding or more. docs/operations.md has a line for each name in CHECKS; a test keeps the two
together.

    machine.py      this installation: versions, OpenCV, model packages
    broker.py       the broker's settings and health
    deployment.py   workers, models, shards, lag, quarantine
    shards.py       who has which shard, looked at until nothing changes hands
    repair.py       with `--repair`, the one thing that it changes: shards that ids of no clock have spoilt
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.doctor import broker, deployment, machine
from service.doctor.finding import CHECKS, Finding, unknown
from service.doctor.reading import Reading
from service.doctor.repair import repair
from service.errors import BrokerAway
from service.urls import safe_url

__all__ = ["CHECKS", "Finding", "examine", "repair", "status_of"]


def examine(
    url: str | None,
    *,
    prefix: str = "rollcast",
    shards: int = 32,
    models: Path | None = None,
    home: Path | None = None,
    backlog_bytes: int = 64 << 20,
    max_streams: int = 100_000,
    api: str | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Every check, in the order of CHECKS as far as they can be made. `url`: the broker's, None where none is known;
    `home`: of the embedded broker, None for a broker elsewhere; `api`: URL of an api to ask; `clock`: this machine's.
    """
    findings = [*machine.versions(), *machine.opencv()]
    packages, proven = machine.packages(models, home)
    findings += proven
    known, found = machine.ask_api(api) if api is not None else ({}, [])
    known = known or packages  # those of an api with these settings
    if url is None:
        where = f" (looked for {home / 'broker.sock'})" if home is not None else ""
        lost = unknown("broker", f"no broker is known{where}", "give its URL with --broker, or start `rollcast up`")
        return [*findings, lost, *found]
    try:
        reading = Reading(url, clock)
    except BrokerAway as error:
        cure = "start it, or correct --broker; `rollcast up` starts an embedded one"
        return [*findings, unknown("broker", error.detail, cure), *found]
    try:
        findings += broker.findings(reading, home, shards * backlog_bytes)
        findings += deployment.findings(reading, url, prefix, shards, known, max_streams)
    except BrokerAway as error:
        findings.append(unknown("broker", f"{safe_url(url)} stopped answering: {error.detail}", "see its log"))
    finally:
        reading.close()
    return findings + found


def status_of(findings: Sequence[Finding]) -> str:
    """`fix` when anything is to be fixed, else `unknown` when anything could not be told, else `well`."""
    verdicts = {finding.verdict for finding in findings}
    return "fix" if "fix" in verdicts else "unknown" if "unknown" in verdicts else "well"
