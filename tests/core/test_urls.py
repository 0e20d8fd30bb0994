"""No password of a broker's URL is ever shown, however the URL is written."""

from __future__ import annotations

import asyncio
import random
import string
from urllib.parse import quote

import pytest

from service.broker.predictions import RedisPredictions
from service.broker.wire import Wire
from service.errors import BadSettings, BrokerAway
from service.settings import load_settings
from service.urls import safe_text, safe_url, without_password

WORDS = (
    "hunter2secret", "hunter@2@secret", "hunter:2:secret", "hunter/2/secret", "hunter?2&secret", "hunter#2=secret",
    "hunter 2 secret", "hunter2secret@", "@hunter2secret", "hunter2%40secret", "hunter2'secret\"", "hunter2secret:6379",
    "hunter2secret/0", "hünter2secret", "hunter[2]secret",
)  # fmt: skip
SHAPES = (
    "redis://u:{}@h", "redis://:{}@h:6379/0", "rediss://u:{}@h/0", "rdis://u:{}@h", "u:{}@h", "//u:{}@h",
    "redis:/u:{}@h", "redis:u:{}@h", "unix://u:{}@/run/s", "unix://:{}@/run/s?db=1", "redis://u:{}@[::1]:6379", "redis://{}@h",
    "redis://u:{}@", "redis://@u:{}@h", "redis://h1,u:{}@h2", "REDIS://u:{}@h", "redis+sentinel://u:{}@h/m",
)  # fmt: skip
QUERIES = (
    "redis://h?username=u&password={}", "redis://h/0?password={}", "unix:///run/s?password={}", "redis://h?password={}&db=1",
    "redis://u@h?password={}", "redis://h#password={}", "redis://h?ssl_password={}",
)  # fmt: skip


def shown(url: str) -> list[str]:
    return [safe_url(url), safe_text(url), safe_text(f"broker {url}"), safe_text(f"'{url}': no\n next line")]


@pytest.mark.parametrize("shape", [*SHAPES, *QUERIES])
@pytest.mark.parametrize("word", WORDS)
def test_a_password_is_not_shown(shape: str, word: str) -> None:
    for written in {word, quote(word, safe="")} if shape in SHAPES else {quote(word, safe="")}:
        url = shape.format(written)
        said = shown(url) if "://" in url else [safe_url(url)]
        for text in said:
            assert not any(part in text for part in ("hunter", "secret", "nter2")), (url, text)


def test_nor_any_part_of_one_that_was_drawn() -> None:
    rng = random.Random(5)
    alphabet = "xyz" + string.punctuation
    for _ in range(5_000):
        word = "".join(rng.choice(alphabet) for _ in range(rng.randint(3, 24)))
        for shape in ("redis://u:{}@h:1/0", "unix://u:{}@/s", "http://u:{}@h/p"):
            url = shape.format(word)
            for text in (safe_url(url), safe_text(url)):
                rest = text.partition("://")[2].removeprefix("***")
                assert rest.strip("\"'`)>]};:.,") in ("h:1/0", "h:1", "/s", "h/p", "h", ""), (url, text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://broker:6379/3", "redis://broker:6379/3"),
        ("rediss://[::1]:6379", "rediss://[::1]:6379"),
        ("unix:///run/a%20b/broker.sock", "unix:///run/a%20b/broker.sock"),
        ("localhost:6379", "localhost:6379"),
        ("http://127.0.0.1:8000/v1/streams?after=0", "http://127.0.0.1:8000/v1/streams?after=0"),
        ("http://h/v1?api_key=hunter2&after=0", "http://h/v1?api_key=***&after=0"),
    ],
)
def test_what_is_no_secret_stays(url: str, expected: str) -> None:
    assert safe_url(url) == expected


def test_what_a_server_repeats_loses_the_password() -> None:
    said = "ERR unknown command 'AUTH', with args beginning with: 'u' 'p@ss/word' "
    for url in ("redis://u:p%40ss%2Fword@h", "redis://u:p@ss/word@h", "redis://h?username=u&password=p%40ss/word"):
        assert "p@ss" not in without_password(said, url), url
    assert without_password("no answer", "redis://h") == "no answer"


@pytest.mark.parametrize(
    "url",
    [
        "rdis://u:hunter2secret@h", "redis://u:hunter2secret", "redis://u:pw@h:hunter2secret", "redis://[hunter2secret",
        "redis://h?passwrd=hunter2secret", "redis://h?db=hunter2secret", "redis://[::1]hunter2secret@h:x",
        "redis://u:hunter2secret\u2100@h", "hunter2:secret",
    ],
)  # fmt: skip
def test_a_setting_that_is_refused_does_not_repeat_it(url: str) -> None:
    with pytest.raises(BadSettings) as refused:
        load_settings({"broker": url})
    assert "hunter2" not in str(refused.value)
    assert "expected" in str(refused.value)
    assert refused.value.__cause__ is None


def test_nor_does_another_setting_that_it_came_to() -> None:
    with pytest.raises(BadSettings) as refused:
        load_settings({"port": "redis://u:hunter2secret@h"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1?username=u&password=hunter2secret", "redis://u:hunter2secret@127.0.0.1:1"]
)
def test_a_broker_that_is_away_is_named_without_it(url: str) -> None:
    async def ask() -> None:
        predictions = RedisPredictions(url, shards=1, timeout_s=1.0)
        try:
            await predictions.workers()
        finally:
            await predictions.close()

    for attempt in (lambda: Wire(url, 1.0), lambda: asyncio.run(ask())):
        with pytest.raises(BrokerAway) as away:
            attempt()
        assert "hunter2" not in str(away.value)
        assert "127.0.0.1:1" in str(away.value)
