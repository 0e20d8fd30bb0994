"""docs/metrics.md has every metric with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from service.metrics import ApiMetrics, Family, WorkerMetrics, create_registry

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def shown_names(registry: CollectorRegistry) -> set[str]:
    return {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in registry.collect()
        if metric.name.startswith("rollcast_")
    }


def test_every_metric_has_its_line() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    ApiMetrics(registry)
    assert set(re.findall(r"^\| `(rollcast_\w+)` \| (?:`|\|)", PAGE, re.MULTILINE)) == shown_names(registry)
    assert shown_names(create_registry()) == {"rollcast_build_info"}
    assert "`rollcast_build_info`" in PAGE


def test_the_labels_are_those_of_the_metric() -> None:
    for metrics in (WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry())):
        for name, family in vars(metrics).items():
            if isinstance(family, Family):
                labels = ", ".join(f"`{label}`" for label in family.names)
                assert re.search(rf"^\| `rollcast_{name}(_total)?` \| {labels} \|", PAGE, re.MULTILINE), name
