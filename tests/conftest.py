"""What every test may ask for: a private broker on a Unix socket, and key prefixes nobody else uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from service.embedded import EmbeddedBroker
from tests.deployment import DEFAULTS, Up

_numbers = count(1)

# a busy machine is slow: neither a slow example nor a slow draw is a failure
settings.register_profile("rollcast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rollcast")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Doctests are the service's: a program that a test starts must not be imported by whoever collects doctests."""
    if collection_path.suffix == ".py" and not collection_path.name.startswith("test_"):
        return collection_path.is_relative_to(Path(__file__).parent) or None
    return None


def needs(program: str, package: str) -> str:
    """The path of `program`. Without it the test is skipped, or fails where REQUIRE_ALL=1."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not on PATH (Debian package {package})"
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def start_broker() -> Iterator[Callable[[str], EmbeddedBroker]]:
    """Starts one broker a kind: `valkey` (embedded) or `redis` (Debian's redis-server); ends them with the session."""
    running: dict[str, EmbeddedBroker] = {}

    def start(kind: str) -> EmbeddedBroker:
        if kind not in running:
            binary = needs("redis-server", "redis-server") if kind == "redis" else None
            folder = Path(tempfile.mkdtemp(prefix="rct-"))  # short: a socket's path has 107 bytes
            broker = EmbeddedBroker(folder, binary)
            broker.start()
            running[kind] = broker
        return running[kind]

    yield start
    for broker in running.values():
        broker.stop()
        shutil.rmtree(broker.home, ignore_errors=True)


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, start_broker: Callable[[str], EmbeddedBroker]) -> EmbeddedBroker:
    """The session's broker. `@pytest.mark.parametrize("broker", ["valkey", "redis"], indirect=True)` tries both."""
    return start_broker(getattr(request, "param", "valkey"))


@pytest.fixture(scope="session")
def broker_url(broker: EmbeddedBroker) -> str:
    """`unix:///…`: never flushed; each test keeps to its own `prefix`."""
    return broker.url


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A whole `rollcast up`, ready, for tests that only use it; each keeps to its own streams."""
    up = Up(tmp_path_factory.mktemp("h"))
    try:
        yield up.ready()
    finally:
        status = up.stop()
    assert status == 0


@pytest.fixture(scope="session")
def as_shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`rollcast up` without a setting that a page does not name: for commands that are run as they stand there."""
    up = Up(tmp_path_factory.mktemp("h"), **dict.fromkeys(DEFAULTS, ""))
    try:
        yield up.ready()
    finally:
        status = up.stop()
    assert status == 0


@pytest.fixture
def prefix() -> str:
    """A key prefix of this test alone."""
    return f"t{os.getpid()}-{next(_numbers)}"
