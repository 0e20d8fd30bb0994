"""Scrape configuration, recording rules and alerts: sound, tested both ways, explained, of metrics that exist."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import ApiMetrics, Family, WorkerMetrics
from tests.conftest import needs
from tests.deployment import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def groups(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules" / f"{name}.yml").read_text())["groups"]
    return found


ALERTS = {rule["alert"]: rule for group in groups("alerts") for rule in group["rules"]}
RECORDED = {rule["record"]: rule for group in groups("recording") for rule in group["rules"]}


@cache
def cases() -> dict[str, list[str]]:
    """Of each case by name, the labels of the alerts it expects."""
    found = [case for path in (FOLDER / "tests").glob("*.yml") for case in yaml.safe_load(path.read_text())["tests"]]
    expected = {
        case["name"]: [sample["labels"] for test in case["promql_expr_test"] for sample in test["exp_samples"]]
        for case in found
    }
    assert len(expected) == len(found), "every case has its own name"
    return expected


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [needs("promtool", "prometheus"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_sound() -> None:
    said = promtool("check", "config", "prometheus.yml")
    assert "SUCCESS: 2 rule files found" in said
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert (found["rollcast-api"]["names"], found["rollcast-api"]["port"]) == (["api"], 8000)
    assert (found["rollcast-worker"]["names"], found["rollcast-worker"]["port"]) == (["worker"], 9101)
    for job in config["scrape_configs"]:
        assert job["file_sd_configs"][0]["files"]


def test_the_targets_that_the_folder_shows_are_sound(tmp_path: Any) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```$", (FOLDER / "targets" / "README.md").read_text(), re.M | re.S)
    assert len(shown) == 2
    for n, text in enumerate(shown):
        (tmp_path / f"worker-{n}.yml").write_text(text)
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["rule_files"] = []
    for job in config["scrape_configs"]:
        job["file_sd_configs"] = [{"files": [str(tmp_path / "worker*.yml")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "WARNING" not in promtool("check", "config", str(tmp_path / "prometheus.yml"))


@pytest.mark.parametrize("name", ["alerts_test.yml", "slow_alerts_test.yml"])
def test_alerts_fire_when_they_must_and_no_other_does(name: str) -> None:
    promtool("test", "rules", f"tests/{name}")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_both_ways_and_explained(alert: str) -> None:
    expected = {name: labels for name, labels in cases().items() if name.startswith(f"{alert} ")}
    fires = {name for name, found in expected.items() if any(f'"{alert}"' in labels for labels in found)}
    assert fires
    assert set(expected) - fires
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "do", "runbook_url"}
    assert said["runbook_url"] == f"docs/operations.md#{alert.lower()}"
    (runbook,) = re.findall(rf"^### {alert}\n(.*?)(?=^##|\Z)", OPERATIONS.partition("\n## Alerts\n")[2], re.M | re.S)
    runbook = plain(runbook)
    assert plain(said["description"]) in runbook, "the runbook says what the alert says"
    assert re.findall(r"^(\d)\. ", said["do"], re.M) == ["1", "2", "3"]
    for step in said["do"].splitlines():
        assert plain(step.replace("docs/operations.md", "")) in runbook or "The table of" in step


def test_every_runbook_is_of_an_alert() -> None:
    section = OPERATIONS.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", section, re.M)) == set(ALERTS)


def test_what_is_recorded_over_several_windows_is_the_same_but_for_its_window() -> None:
    meant: dict[str, set[str]] = {}
    for name, rule in RECORDED.items():
        ratio, _, window = name.partition(":ratio_rate")
        if window:
            assert set(re.findall(r"\[(\w+)\]", rule["expr"])) == {window}, name
            meant.setdefault(ratio, set()).add(rule["expr"].replace(f"[{window}]", "[…]"))
    assert len(meant) == 3
    assert {ratio: len(each) for ratio, each in meant.items()} == dict.fromkeys(meant, 1)


@pytest.mark.parametrize(
    ("ratio", "objective", "alert"),
    [
        ("http_errors", "0.001", "RollcastApiErrors"),
        ("http_slow", "0.01", "RollcastApiSlow"),
        ("answers_late", "0.01", "RollcastAnswersLate"),
    ],
)
def test_every_objective_is_watched_over_the_same_windows_at_the_same_pace(
    ratio: str, objective: str, alert: str
) -> None:
    pairs = {
        alert: [("14.4", "1h", "5m"), ("6", "6h", "30m")],
        f"{alert}Budget": [("3", "1d", "2h"), ("1", "3d", "6h")],
    }
    for name, windows in pairs.items():
        asked = [
            " and ".join(f"rollcast:{ratio}:ratio_rate{window} > {pace} * {objective}" for window in both)
            for pace, *both in windows
        ]
        assert " ".join(ALERTS[name]["expr"].split()) == " or ".join(asked).replace(" 1 * ", " ")


def test_rules_ask_for_metrics_that_exist() -> None:
    known = {"up", "process_start_time_seconds"} | set(RECORDED)
    for metrics in (WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry())):
        for name, family in vars(metrics).items():
            child = family.make() if isinstance(family, Family) else family
            known |= {f"rollcast_{name}{sample.suffix}" for sample in child.samples()}
    recorded = "|".join(map(re.escape, sorted(RECORDED, key=len, reverse=True)))
    for rule in (*ALERTS.values(), *RECORDED.values()):
        asked = set(re.findall(rf"{recorded}|\b(?:rollcast|process)_\w+|\bup\b", rule["expr"]))
        assert asked - {"process"} <= known, rule
        assert asked, rule


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())
