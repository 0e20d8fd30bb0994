"""What a run came to, as a table for people and as JSON for machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from service.chaos.check import Findings

KINDS: Final = {  # of faults, and what is counted: what happened, not what was ordered
    "kill": "workers killed (SIGKILL)",
    "short-pause": "workers stopped for less than a lease",
    "long-pause": "workers stopped for longer than a lease",
    "cut-reply": "connections cut inside the reply to a commit",
    "cut-request": "connections cut inside a commit",
    "delay": "slow connections",
    "partition": "workers cut off for longer than a lease",
    "starve": "broker out of memory",
    "restart": "broker killed, restarted from its log",
    "tear": "broker restarted without its log's tail",
    "empty": "broker replaced by an empty one",
}
TRAFFIC: Final = {  # what records must show of a stream's life
    "settings": "settings changed", "restore": "states restored", "reset": "states reset", "delete": "streams deleted",
    "silence": "streams that fell silent with labels inside",
    "ttl": "states begun anew after their own or the deployment's time to live",
    "late": "entries dropped: their seq lies below the last", "superseded": "entries dropped: a newer one was waiting",
    "stale": "entries dropped: older than max_age_s", "missed": "predictions that tell of a hole in seq",
}  # fmt: skip
PROOF_S: Final = 30.0  # a run this long must have seen every kind


def traffic_of(findings: Findings) -> dict[str, int]:
    """How often each kind of `TRAFFIC` was seen."""
    seen = findings.controls + findings.drops + Counter(ttl=findings.restarts["ttl"])
    return {kind: findings.missed if kind == "missed" else seen[kind] for kind in TRAFFIC}


@dataclass
class Verdict:
    """`passed`: nothing was found, and every fault that was to happen did."""

    seed: int
    seconds: float  # of traffic
    duration_s: float
    workers: int
    streams: int
    findings: Findings
    faults: dict[str, int]  # by kind
    appended: int = 0
    refused_full: int = 0  # appends that a starved broker refused
    unknown: int = 0  # appends whose answer was lost
    torn_commands: int = 0  # of the broker's log
    lost_by_broker: int = 0  # acknowledged entries that went with its tail
    lost_unexcused: int = 0  # acknowledged entries that are gone although the broker lost nothing
    acquisitions: int = 0
    blind: int = 0  # transactions sent before the reply to the one before
    crashes: int = 0  # workers that ended although nobody killed them
    evictions: int = 0  # streams that left the memory of the workers that lived at the end
    unseen: list[str] = field(default_factory=list)  # kinds of faults and of traffic that were to happen and did not
    evidence: str = ""  # folder, where it was kept

    @property
    def lost(self) -> int:
        return self.findings.lost + self.lost_unexcused

    @property
    def passed(self) -> bool:
        return not (self.findings.faults or self.lost_unexcused or self.blind or self.crashes or self.unseen)

    def as_json(self) -> dict[str, Any]:
        plain = {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self.findings).items()
        }
        more = {"findings": plain, "traffic": traffic_of(self.findings), "passed": self.passed, "lost": self.lost}
        return vars(self) | more

    def show(self, console: Console) -> None:
        findings = self.findings
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("of what")

        def row(count: float | str, what: str, *, good: bool = True) -> None:
            shown = count if isinstance(count, str) else f"{count:,}"
            table.add_row(f"[bold red]{shown}[/]" if not good else shown, what)

        row(findings.entries, f"entries that survived, of {self.streams} streams; {self.appended:,} were acknowledged")
        types = ", ".join(f"{name} {count:,}" for name, count in sorted(findings.records.items()))
        row(sum(findings.records.values()), f"records: {types}; with {findings.events:,} events")
        restarts = ", ".join(f"{name} {count:,}" for name, count in sorted(findings.restarts.items()))
        row(sum(findings.restarts.values()), f"states begun anew: {restarts}")
        for kind, count in traffic_of(findings).items():
            row(count, TRAFFIC[kind], good=kind not in self.unseen)
        row(findings.deleted, "entries whose records were deleted: only that each was answered once is known of them")
        row(self.evictions, "streams that left the memory of the workers that were alive at the end")
        table.add_section()
        for kind, what in KINDS.items():
            if kind in self.faults:
                row(self.faults[kind], what, good=kind not in self.unseen)
        row(findings.takeovers, f"take-overs between commits, of {self.acquisitions:,} acquisitions seen")
        row(
            self.torn_commands, f"commands torn off the broker's log, with {self.lost_by_broker:,} acknowledged entries"
        )
        row(
            self.refused_full,
            f"appends refused by a full broker, {self.unknown:,} whose answer was lost: posted again if they had a seq",
        )
        row(findings.suspects, "entries refused as suspects, after workers were killed on them")
        table.add_section()
        row(self.lost, "lost", good=not self.lost)
        row(findings.doubled, "doubled", good=not findings.doubled)
        row(findings.out_of_order, "out of order", good=not findings.out_of_order)
        row(findings.differing, f"differing (largest difference {findings.largest:.1e})", good=not findings.differing)
        row(findings.broken, "broken invariants of head, low, feed and log", good=not findings.broken)
        row(self.blind, "transactions sent before the reply to the one before", good=not self.blind)
        row(self.crashes, "workers that ended by themselves", good=not self.crashes)
        row(findings.ties, "ties: decisions too close to their threshold to compare")
        console.print(table)
        for text in findings.told:
            console.print(f"  {text}", markup=False, soft_wrap=True)
        for kind in self.unseen:
            console.print(f"  not seen: {(KINDS | TRAFFIC)[kind]}; the run proves nothing about it", markup=False)
        if self.evidence:
            console.print(
                f"  the broker's data and the workers' logs lie in {self.evidence}", markup=False, soft_wrap=True
            )
        word = "[bold green]passed[/]" if self.passed else "[bold red]FAILED[/]"
        console.print(
            f"{word}: {self.seconds:.0f} s of traffic, {findings.commits:,} commits, {findings.states:,} final states "
            f"compared, {self.duration_s:.0f} s in all, seed {self.seed}"
        )
