"""What a `/metrics` shows, as numbers that tests may add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One exposition. `labels` select: all samples that have them."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [(s.name, s.labels, s.value) for family in families for s in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self._select(name, labels))

    def by(self, name: str, *names: str, **labels: str) -> Counter[tuple[str, ...]]:
        """Sums by the values of some labels, without those that are 0."""
        sums: Counter[tuple[str, ...]] = Counter()
        for found, value in self._select(name, labels):
            sums[tuple(found[label] for label in names)] += value  # type: ignore[assignment]
        return Counter({key: value for key, value in sums.items() if value})

    def _select(self, name: str, labels: dict[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        for found_name, found, value in self.samples:
            if found_name == name and labels.items() <= found.items():
                yield found, value


def scrape(url: str) -> Scrape:
    return Scrape(httpx.get(f"{url}/metrics", trust_env=False, timeout=60).raise_for_status().text)
