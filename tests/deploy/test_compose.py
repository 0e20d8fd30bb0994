"""The compose files by themselves: what they say holds against the specification, and exposes nothing it should not."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings, variable
from tests.conftest import needs
from tests.deploy.composed import COMPOSE, DEMO, Missing, load, mounts, published, read_env
from tests.deploy.dockerfile import read
from tests.deployment import ROOT

SECRETS = ("API", "WORKER", "PRODUCER", "SUBSCRIBER", "MONITOR")


@pytest.fixture(scope="module")
def environ(project: Path) -> dict[str, str]:
    return read_env(project / ".env")


@pytest.fixture(scope="module")
def services(environ: dict[str, str]) -> dict[str, Any]:
    found = load(COMPOSE, DEMO, environ=environ)["services"]
    assert isinstance(found, dict)
    return found


def check_jsonschema(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_files_are_what_the_compose_specification_allows(tmp_path: Path) -> None:
    done = check_jsonschema(COMPOSE, DEMO)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true", "readonly: true"))
    assert check_jsonschema(wrong).returncode == 1


def test_only_the_api_and_grafana_can_be_reached_and_on_this_machine(services: dict[str, Any]) -> None:
    reachable = {name: published(service) for name, service in services.items() if "ports" in service}
    assert reachable == {"api": [("127.0.0.1", 8000, 8000)], "grafana": [("127.0.0.1", 3000, 3000)]}
    everywhere = load(COMPOSE, environ=dict.fromkeys(_needed(), "x") | {"BIND": "0.0.0.0", "API_PORT": "80"})
    assert published(everywhere["services"]["api"]) == [("0.0.0.0", 80, 8000)]


@pytest.mark.parametrize("given", ["", "rollcast.example.org, other:8443"])
def test_the_name_api_is_allowed_whatever_other_names_are(given: str) -> None:
    """The demo calls the api by it, and others on the network do."""
    environ = dict.fromkeys(_needed(), "x") | {"ALLOWED_HOSTS": given, "MAX_CLIENT_CONNECTIONS": "0"}
    said = load(COMPOSE, environ=environ)["services"]["api"]["environment"]
    fields = ("allowed_hosts", "allowed_origins", "max_client_connections")
    settings = Settings(**{name: said[variable(name)] for name in fields})
    assert settings.names("allowed_hosts") == ["api", *(["rollcast.example.org", "other:8443"] if given else [])]
    assert (settings.names("allowed_origins"), settings.max_client_connections) == ([], 0)


def test_networks_part_those_who_need_not_know_each_other(environ: dict[str, str], services: dict[str, Any]) -> None:
    networks = load(COMPOSE, environ=environ)["networks"]
    assert [name for name, network in networks.items() if not network.get("internal")] == ["front"]
    members = {net: {name for name, one in services.items() if net in one["networks"]} for net in networks}
    assert members == {
        "broker": {"redis", "api", "worker"},
        "metrics": {"api", "worker", "prometheus", "grafana"},
        "front": {"api", "grafana", "demo"},
    }


@pytest.mark.parametrize("name", ["redis", "api", "worker", "prometheus", "grafana", "demo"])
def test_every_service_is_confined_checked_and_bounded(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    for mount in mounts(service):
        assert mount.is_volume or mount.read_only, mount


def test_settings_in_the_files_are_settings(services: dict[str, Any]) -> None:
    known = {variable(name) for name in Settings.model_fields}
    for name in ("api", "worker"):
        given = {key for key in services[name]["environment"] if key.startswith(PREFIX)}
        assert given <= known
    in_image = {key for key in read(ROOT / "deploy" / "Dockerfile")[-1].environment() if key.startswith(PREFIX)}
    assert in_image <= known


def test_the_shards_backlogs_fit_into_half_of_the_broker(services: dict[str, Any]) -> None:
    environment, command = services["api"]["environment"], services["redis"]["command"]
    memory = {"1gb": 2**30}[command[command.index("--maxmemory") + 1]]
    assert int(environment["ROLLCAST_SHARDS"]) * int(environment["ROLLCAST_BACKLOG_BYTES"]) <= memory / 2


def test_what_the_files_mount_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in mounts(service):
            if not mount.is_volume and mount.source != "./deploy/redis/users.acl":  # of `make env`
                assert (ROOT / mount.source).exists(), mount


def test_what_prometheus_and_grafana_look_for_by_name_are_services(services: dict[str, Any]) -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    names = {name for job in scraped for found in job["dns_sd_configs"] for name in found["names"]}
    assert names == {"api", "worker"}
    for name in names:
        assert "metrics" in services[name]["networks"]
    (source,) = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources").glob("*.y*ml")
    assert yaml.safe_load(source.read_text())["datasources"][0]["url"] == "${PROMETHEUS_URL}"
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    (provider,) = (ROOT / "deploy" / "grafana" / "provisioning" / "dashboards").glob("*.y*ml")
    path = yaml.safe_load(provider.read_text())["providers"][0]["options"]["path"]
    assert path in {mount.target for mount in mounts(services["grafana"])}


def test_the_page_lists_every_variable_with_its_default_and_every_user() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    files = COMPOSE.read_text() + DEMO.read_text()
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \| (\S+) \|", page, re.MULTILINE)
    documented = {name: default.strip("`") for names, default in rows for name in re.findall("[A-Z_]+", names)}
    defaults = {name: default or "none" for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", files)}
    assert documented == defaults | dict.fromkeys(_needed(), "drawn") | {
        "REDIS_PASSWORD_PRODUCER": "drawn", "REDIS_PASSWORD_SUBSCRIBER": "drawn", "REDIS_PASSWORD_MONITOR": "drawn",
        "COMPOSE_PROFILES": "monitoring",
    }  # fmt: skip
    users = re.findall(r"^user (\w+) reset on", (ROOT / "deploy/redis/users.acl.in").read_text(), re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \| (?!the|HTTP|models|`)", page, re.MULTILINE)[: len(users)] == users


# --- make env ----------------------------------------------------------------------------------------------------


def _needed() -> set[str]:
    return set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout in which `make env` was never called."""
    (tmp_path / "deploy" / "redis").mkdir(parents=True)
    for name in ("Makefile", "deploy/env.sh", "deploy/redis/users.acl.in"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [needs("make", "make"), "-C", str(folder), "env"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_without_passwords_nothing_starts_and_it_says_what_to_do() -> None:
    with pytest.raises(Missing, match=r'REDIS_PASSWORD_\w+ is missing a value: run "make env" first'):
        load(COMPOSE, environ={})


def test_make_env_draws_every_password_anew_and_keeps_what_is_there(bare: Path) -> None:
    assert make_env(bare).returncode == 0
    first = (bare / ".env").read_text()
    drawn = [value for name, value in read_env(bare / ".env").items() if "PASSWORD" in name]
    assert _needed() <= read_env(bare / ".env").keys()
    assert len(set(drawn)) == len(SECRETS) + 1
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in drawn)
    assert stat.S_IMODE((bare / ".env").stat().st_mode) == 0o600
    assert read_env(bare / ".env")["COMPOSE_PROFILES"] == "monitoring"
    assert make_env(bare).returncode == 0
    assert (bare / ".env").read_text() == first
    for value in drawn:
        assert value not in (bare / "deploy" / "redis" / "users.acl").read_text()
    (bare / ".env").write_text("".join(line for line in first.splitlines(True) if "PRODUCER" not in line))
    assert make_env(bare).returncode == 0
    again = read_env(bare / ".env")
    assert again.pop("REDIS_PASSWORD_PRODUCER") not in drawn
    assert again.items() <= dict(line.split("=") for line in first.splitlines()[1:]).items()


def test_a_password_that_does_not_fit_into_a_url_is_refused(bare: Path) -> None:
    (bare / ".env").write_text("REDIS_PASSWORD_API=a@b\n")
    done = make_env(bare)
    assert done.returncode != 0
    assert "REDIS_PASSWORD_API in .env: expected letters, digits" in done.stderr
    assert not (bare / "deploy" / "redis" / "users.acl").exists()


def test_a_password_that_somebody_chose_is_said_to_be_weak(bare: Path) -> None:
    (bare / ".env").write_text("REDIS_PASSWORD_API=chosen\n")
    done = make_env(bare)
    assert done.returncode == 0
    assert "REDIS_PASSWORD_API in .env is short: whoever reads users.acl can guess it" in done.stderr
    assert "REDIS_PASSWORD_WORKER" not in done.stderr


@pytest.mark.parametrize("shards", [1, 2, 4, 9, 10, 11, 19, 20, 32, 99, 100, 101, 256, 999, 1000, 1234, 16_384])
def test_the_users_reach_the_shards_that_env_names_and_no_others(bare: Path, shards: int) -> None:
    (bare / ".env").write_text(f"SHARDS={shards}\n")
    assert make_env(bare).returncode == 0
    acl = (bare / "deploy" / "redis" / "users.acl").read_text()
    (producer,) = (line for line in acl.splitlines() if line.startswith("user producer"))
    patterns = re.findall(r"%W~(\S+):in", producer)
    numbers = {*range(min(2 * shards, 3000)), *(shards + n for n in range(-3, 4)), shards * 10, 10**9}
    for number in [*numbers, "00", "", "x", "-1", "0x"]:
        found = any(fnmatchcase(f"rollcast:{{{number}}}", pattern) for pattern in patterns)
        assert found == (isinstance(number, int) and 0 <= number < shards), (number, patterns)
    assert "{*}" not in acl


@pytest.mark.parametrize("shards", ["0", "many", "-4", "4.5"])
def test_a_number_of_shards_that_is_none_is_refused(bare: Path, shards: str) -> None:
    (bare / ".env").write_text(f"SHARDS={shards}\n")
    done = make_env(bare)
    assert done.returncode != 0
    assert "SHARDS in .env: expected a whole number from 1" in done.stderr


def test_no_container_but_those_that_need_it_is_given_a_password_of_the_broker(services: dict[str, Any]) -> None:
    told = {
        (name, variable)
        for name, service in services.items()
        for variable, value in service.get("environment", {}).items()
        if "REDIS_PASSWORD" in variable or "redis://" in str(value)
    }
    assert told == {("api", "ROLLCAST_BROKER"), ("worker", "ROLLCAST_BROKER")}


def test_what_make_env_writes_is_never_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.env", "/deploy/redis/users.acl"} <= set(ignored)
