"""docs/problems.md and docs/metrics.md know every problem and every metric, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry

from service.api.schemas import problem_types
from service.contracts import RECORD_TYPES, Restart
from service.errors import EntryError, Unavailable
from service.metrics import ApiMetrics, Counter, Family, WorkerMetrics, create_registry
from service.worker.tally import DROPS, EVENTS, LOSSES, STAGES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_problems_page_has_every_type_with_its_status() -> None:
    page = (DOCS / "problems.md").read_text()
    told = {(kind, int(status)) for kind, status in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", page, re.M)}
    assert told == {(kind, status) for status, kinds in problem_types().items() for kind in kinds}


def test_the_problems_page_has_the_reason_of_every_refusal() -> None:
    page = (DOCS / "problems.md").read_text()
    for error in EntryError.__subclasses__():
        assert f"| `{error.type}` | {error.status} | `{error.reason}` |" in page


def test_the_metrics_page_has_every_metric_with_its_type_and_labels() -> None:
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_{},]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|([^|]*)\|$", page, re.M)
    told = {(name, kind) for name, kind, *_ in rows}
    assert len(told) == len(rows)
    ours = {("rollcast_build_info{version}", "gauge")}
    for metrics in (WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry())):
        for name, family in vars(metrics).items():
            labels = f"{{{','.join(family.names)}}}" if isinstance(family, Family) else ""
            kind = type(family.make() if isinstance(family, Family) else family)
            ours.add((f"rollcast_{name}{'_total' * (kind is Counter)}{labels}", kind.__name__.lower()))
    assert {row for row in told if row[0].startswith("rollcast_")} == ours
    assert not [name for name, *_, answers in rows if name.startswith("rollcast_") and "?" not in answers]
    of_processes = {(family.samples[0].name, family.type) for family in create_registry().collect()}
    assert {row for row in of_processes if row[0].startswith("process_")} <= told  # they depend on the platform


def test_the_metrics_page_has_the_values_of_every_label() -> None:
    page = (DOCS / "metrics.md").read_text().partition("## Labels")[2]
    for metrics in (WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry())):
        for family in vars(metrics).values():
            for label in family.names if isinstance(family, Family) else ():
                if label not in ("shard", "version", "sha256"):  # they say what they are
                    assert re.search(rf"^\| [^|]*`{label}`", page, re.M), label
    known = {*RECORD_TYPES, *get_args(Restart), *DROPS, *LOSSES, *STAGES, *EVENTS}
    known |= {error.reason for error in Unavailable.__subclasses__()}
    assert not {value for value in known if f"`{value}`" not in page}
