"""Settings: where they come from, who wins, and what a bad one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.errors import BadSettings
from service.settings import Settings, load_settings, option, unknown_variables, variable


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def test_without_anything_the_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.port, settings.shards, settings.host, settings.broker) == (8000, 32, "127.0.0.1", None)


def test_the_command_line_wins_over_the_environment_and_both_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLCAST_PORT", "8001")
    monkeypatch.setenv("ROLLCAST_SHARDS", "4")
    settings = load_settings({"port": "8002", "home": None})
    assert (settings.port, settings.shards, settings.home) == (8002, 4, Path(".rollcast"))


def test_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ROLLCAST_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().port == 8000


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "eighty", "a valid integer"),
        ("port", "70000", "less than or equal to 65535"),
        ("shards", "0", "greater than or equal to 1"),
        ("broker", "localhost:6379", "a URL that begins with redis://, rediss://, unix://"),
        ("prefix", "a{b}", "a word without braces"),
        ("state_ttl_s", "nan", "less than or equal to 315360000"),
        ("output_history_s", "inf", "a finite number"),
        ("batch_entries", "5000", "less than or equal to 1024"),
        ("allowed_hosts", "http://api", "host names between commas"),
        ("allowed_hosts", "a b", "host names between commas"),
        ("allowed_origins", "example.org", "origins between commas"),
        ("allowed_origins", "https://example.org/path", "origins between commas"),
        ("head_s", "0", "greater than or equal to 0.1"),
        ("max_unfinished_bytes", "1000", "greater than or equal to 33554432"),
        ("log_format", "xml", "'console' or 'json'"),
    ],
)
def test_a_bad_value_is_told_with_its_name_source_and_expectation(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadSettings, match=re.escape(f"setting {name}: {value!r} from {option(name)}: ")) as by_option:
        load_settings({name: value})
    assert f"expected {expected}" in str(by_option.value)
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(BadSettings, match=re.escape(f"setting {name}: {value!r} from {variable(name)}: ")):
        load_settings()


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(BadSettings) as error:
        load_settings({"port": "x", "shards": "y"})
    assert len(str(error.value).splitlines()) == 2


def test_a_child_that_gets_the_environment_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        {"port": 1, "home": "/tmp/x", "models": "/tmp/m", "state_ttl_s": "2.5", "allowed_hosts": "API, b.example"}
    )
    assert settings.names("allowed_hosts") == ["api", "b.example"]
    assert settings.names("allowed_origins") == []
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_a_misspelt_variable_is_noticed() -> None:
    assert unknown_variables({"ROLLCAST_PROT": "1", "ROLLCAST_PORT": "1", "ROLLCAST_URL": "x", "PATH": ""}) == [
        "ROLLCAST_PROT is not a setting; did you mean ROLLCAST_PORT?"
    ]


def test_every_setting_says_in_one_line_what_it_does() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert len(field.description) <= 110, name
