"""Panels and dashboards as values, and as the JSON that Grafana (10 or newer) reads.

Every query is selected by the variable `$job`, so that several deployments share a Prometheus: JOB is that selector,
`of(…)` the same with more labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TAG: Final = "rollcast"
JOB: Final = '{job=~"$job"}'
RATE: Final = "[$__rate_interval]"
RANGE: Final = "[$__range]"
COLUMNS: Final = 24
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
Json = dict[str, Any]


def of(**labels: str) -> str:
    """The selector of values; `!x`: of all but x, `$x`: of what the variable x has.

    >>> of(reason="lost", stage="!queue", model="$model")
    '{job=~"$job",reason="lost",stage!="queue",model=~"$model"}'
    """
    signs = {"!": "!=", "$": "=~"}
    parts = [f'{name}{signs.get(value[0], "=")}"{value.removeprefix("!")}"' for name, value in labels.items()]
    return "{" + ",".join(('job=~"$job"', *parts)) + "}"


def quantile(q: float, histogram: str, by: str = "", selector: str = JOB) -> str:
    """Of a histogram over the scrape's rate interval, for each value of the labels `by`.

    >>> quantile(0.5, "rollcast_broker_seconds")
    'histogram_quantile(0.5, sum by (le) (rate(rollcast_broker_seconds_bucket{job=~"$job"}[$__rate_interval])))'
    """
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({histogram}_bucket{selector}{RATE})))"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`why`: the question it answers and what to do when the answer is bad. `warn` and `bad`: limits, from which it
    is yellow and red; with `below` it is red beneath `bad`."""

    title: str
    why: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    warn: float | None = None
    bad: float | None = None
    below: bool = False
    words: dict[str, str] = field(default_factory=dict)  # value -> what is shown instead
    stacked: bool = False
    most: float | None = None  # end of the axis
    decimals: int | None = None
    hidden: Sequence[str] = ()  # columns of a table

    def as_json(self, number: int, x: int, y: int) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.why,
            "datasource": _SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind] | ({"yAxis": {"unit": self.unit}} if self.kind == "heatmap" else {}),
            "targets": [self._target(letter, query) for letter, query in zip("ABCDEFGH", self.queries, strict=False)],
            **({"transformations": [_without(self.hidden)]} if self.kind == "table" else {}),
        }

    @property
    def instant(self) -> bool:
        """Whether one moment is asked for, the end of the time that is shown."""
        return self.kind in ("stat", "table", "bargauge")

    def _target(self, letter: str, query: Query) -> Json:
        return {
            "refId": letter,
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": self.instant,
            "range": not self.instant,
            "format": {"heatmap": "heatmap", "table": "table"}.get(self.kind, "time_series"),
        }

    def _defaults(self) -> Json:
        found: Json = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": self._steps()}, "mappings": []}
        if self.words:
            options = {value: {"text": text, "index": at} for at, (value, text) in enumerate(self.words.items())}
            found["mappings"] = [{"type": "value", "options": options}]
        if self.kind in ("stat", "table"):
            found["color"] = {"mode": "thresholds"}
        elif self.kind in ("timeseries", "bargauge"):
            found["color"] = {"mode": "palette-classic"}
        if self.kind == "timeseries":
            found["min"] = 0
            found["custom"] = {
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if self.stacked else 8, "showPoints": "never",
                "spanNulls": False, "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "off" if self.warn is None and self.bad is None else "line"},
            }  # fmt: skip
        if self.most is not None:
            found["max"] = self.most
        if self.decimals is not None:
            found["decimals"] = self.decimals
        return found

    def _steps(self) -> list[Json]:
        """Grafana colours a value by the last step at or beneath it; the first has no value."""
        if self.below:
            steps = [("red", None), ("green", self.bad)]
        else:
            steps = [("green", None), ("yellow", self.warn), ("red", self.bad)]
            steps = [step for at, step in enumerate(steps) if at == 0 or step[1] is not None]
        return [{"color": color, "value": value} for color, value in steps]


@dataclass(frozen=True)
class Row:
    """Panels under a heading, laid from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    models: bool = False  # has a variable `$model`

    def as_json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 39,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "timezone": "browser",
            "links": [_LINKS],
            "templating": {"list": [_DATASOURCE, _JOBS, *([_MODELS] if self.models else [])]},
            "annotations": {"list": [_DEPLOYS]},
            "panels": self._laid(),
        }

    def _laid(self) -> list[Json]:
        laid: list[Json] = []
        y = 0
        for row in self.rows:
            place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            laid.append({"id": len(laid) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place})
            y, x, tallest = y + 1, 0, 0
            for panel in row.panels:
                if x + panel.width > COLUMNS:
                    y, x, tallest = y + tallest, 0, 0
                laid.append(panel.as_json(len(laid) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return laid


def stat(title: str, why: str, expr: str, **more: Any) -> Panel:
    """One number of now."""
    return Panel(title, why, [Query(expr)], kind="stat", width=more.pop("width", 4), height=4, **more)


def lines(title: str, why: str, *queries: tuple[str, str], **more: Any) -> Panel:
    """`queries`: (expression, legend)."""
    return Panel(title, why, [Query(*query) for query in queries], **more)


def heatmap(title: str, why: str, histogram: str, unit: str, selector: str = JOB) -> Panel:
    expr = f"sum by (le) (rate({histogram}_bucket{selector}{RATE}))"
    return Panel(title, why, [Query(expr, "{{le}}")], kind="heatmap", unit=unit)


def table(title: str, why: str, expr: str, hidden: Sequence[str] = (), **more: Any) -> Panel:
    return Panel(title, why, [Query(expr)], kind="table", hidden=("Time", *hidden), **more)


def bars(title: str, why: str, expr: str, legend: str, **more: Any) -> Panel:
    return Panel(title, why, [Query(expr, legend)], kind="bargauge", **more)


def _without(columns: Sequence[str]) -> Json:
    return {"id": "organize", "options": {"excludeByName": dict.fromkeys(columns, True)}}


_ONE: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, Json]] = {
    "stat": {"reduceOptions": _ONE, "colorMode": "background", "graphMode": "none", "textMode": "auto"},
    "bargauge": {"reduceOptions": _ONE, "orientation": "horizontal", "displayMode": "gradient"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": True},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
_LINKS: Final = {
    "type": "dashboards", "title": "rollcast", "tags": [TAG], "asDropdown": False, "includeVars": True,
    "keepTime": True, "targetBlank": False, "icon": "dashboard", "tooltip": "", "url": "",
}  # fmt: skip
_DATASOURCE: Final = {
    "name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus", "current": {},
    "hide": 0, "includeAll": False, "multi": False, "refresh": 1, "regex": "", "options": [],
}  # fmt: skip


def _labels(name: str, title: str, query: str) -> Json:
    return {
        "name": name, "type": "query", "label": title, "datasource": _SOURCE, "query": {"query": query, "refId": name},
        "definition": query, "current": {"selected": True, "text": "All", "value": "$__all"}, "allValue": ".*",
        "hide": 0, "includeAll": True, "multi": True, "refresh": 2, "regex": "", "sort": 1, "options": [],
    }  # fmt: skip


_JOBS: Final = _labels("job", "Job", "label_values(rollcast_build_info, job)")
_MODELS: Final = _labels("model", "Model", 'label_values(rollcast_model_info{job=~"$job"}, model)')
_DEPLOYS: Final = {
    "name": "Starts of processes", "datasource": _SOURCE, "enable": True, "hide": False, "iconColor": "purple",
    "expr": f"changes(process_start_time_seconds{JOB}[$__interval]) > 0", "step": "10s",
    "titleFormat": "started again", "textFormat": "{{instance}} {{process}}",
}  # fmt: skip
