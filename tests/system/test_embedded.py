"""The embedded broker: starts, refuses, continues, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from service.embedded import MAX_SOCKET_PATH, EmbeddedBroker, find_binary
from service.errors import BrokerFailed, HomeInUse

BROKERS = pytest.mark.parametrize("broker", ["valkey", "redis"], indirect=True)


@pytest.fixture
def started() -> Iterator[Callable[[EmbeddedBroker], EmbeddedBroker]]:
    brokers: list[EmbeddedBroker] = []

    def start(broker: EmbeddedBroker) -> EmbeddedBroker:
        brokers.append(broker)
        broker.start()
        return broker

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


def client(broker: EmbeddedBroker) -> redis.Redis:
    return redis.Redis.from_url(broker.url)


def await_true(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@BROKERS
def test_it_has_no_port_never_evicts_and_writes_its_log_to_disk(broker: EmbeddedBroker) -> None:
    with client(broker) as connection:
        config = {
            name: value
            for name in ("port", "maxmemory-policy", "appendonly", "appendfsync", "stream-node-max-bytes", "dir")
            for value in connection.config_get(name).values()
        }
    assert config == {
        "port": "0",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "stream-node-max-bytes": "512",
        "dir": str(broker.home),
    }


def test_a_value_that_would_fill_a_worker_is_refused(broker: EmbeddedBroker, prefix: str) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.xadd(f"{prefix}:large", {"data": bytes(16 << 20)})
        client.delete(f"{prefix}:large")
        with pytest.raises(redis.RedisError):
            client.xadd(f"{prefix}:large", {"data": bytes((64 << 20) + 1)})
        assert not client.exists(f"{prefix}:large")


def test_a_new_home_is_this_users_alone(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    started(EmbeddedBroker(home / "new"))
    assert stat.S_IMODE((home / "new").stat().st_mode) == 0o700


def test_a_restart_continues_where_it_stopped(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    first = started(EmbeddedBroker(home))
    with client(first) as connection:
        entry = connection.xadd("log", {"a": "1"})
    first.stop()
    second = started(EmbeddedBroker(home))
    with client(second) as connection:
        assert connection.xrange("log") == [(entry, {b"a": b"1"})]
    assert second.notices == []


def test_a_torn_tail_of_the_log_is_dropped(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    first = started(EmbeddedBroker(home))
    with client(first) as connection:
        connection.set("kept", "1")
        connection.set("torn", "2" * 100)
    first.stop()
    (tail,) = (home / "appendonlydir").glob("*.incr.aof")
    os.truncate(tail, tail.stat().st_size - 50)
    with client(started(EmbeddedBroker(home))) as connection:
        assert connection.mget("kept", "torn") == [b"1", None]


def test_nobody_else_may_read_its_data_wherever_home_is(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    home.chmod(0o755)
    started(EmbeddedBroker(home))
    assert stat.S_IMODE(home.stat().st_mode) == 0o755  # a folder that was there may be anybody's
    for path in (home / "broker.sock", home / "appendonlydir"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_second_one_on_the_same_home_is_refused(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    first = started(EmbeddedBroker(home))
    with pytest.raises(HomeInUse, match=rf"in use by process {os.getpid()}.*--home"):
        EmbeddedBroker(home).start()
    assert first.alive()


def test_after_it_died_it_starts_again_at_the_same_url(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    broker = started(EmbeddedBroker(home))
    url = broker.url
    with client(broker) as connection:
        connection.set("kept", "1")
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    await_true(lambda: not broker.alive())
    assert broker.start() == url
    with client(broker) as connection:
        assert connection.get("kept") == b"1"


def test_a_home_whose_path_is_too_long_gets_its_socket_elsewhere(
    home: Path, started: Callable[..., EmbeddedBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    long_home = home / ("x" * 100) / 'with "quotes" and spaces'
    broker = started(EmbeddedBroker(long_home))
    socket_path = (long_home / "broker.sock").readlink()
    assert len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    with client(broker) as connection:
        assert connection.ping()
    broker.stop()
    assert not socket_path.parent.exists()
    assert not (long_home / "broker.sock").is_symlink()


STARTER = """
import sys, time
from pathlib import Path
from service.embedded import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.start()
print(broker.pid, flush=True)
time.sleep(600)
"""


def start_elsewhere(home: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-c", STARTER, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_dies_with_its_parent_even_by_sigkill(home: Path) -> None:
    process, pid = start_elsewhere(home)
    assert runs(pid)
    end(process)
    await_true(lambda: not runs(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_orphan_is_ended_and_said(home: Path, started: Callable[..., EmbeddedBroker]) -> None:
    process, pid = start_elsewhere(home)
    os.kill(pid, signal.SIGSTOP)  # it outlives its parent, and answers nobody
    end(process)
    broker = EmbeddedBroker(home, stop_s=0.3)
    started(broker)
    assert not runs(pid)
    assert broker.notices == [f"an earlier run had left its broker behind (process {pid}): ended it"]


def test_a_program_that_does_not_start_is_named_with_its_last_words(
    home: Path, started: Callable[..., EmbeddedBroker]
) -> None:
    broken = home / "broken-server"
    broken.write_text("#!/bin/sh\necho 'cannot do it' >&2\nexit 3\n")
    broken.chmod(0o700)
    with pytest.raises(BrokerFailed, match=r"(?s)broken-server ended at once with status 3.*cannot do it"):
        EmbeddedBroker(home, str(broken)).start()
    started(EmbeddedBroker(home))  # the failed start has freed the home


def test_a_program_that_never_answers_is_ended(home: Path) -> None:
    silent = home / "silent-server"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o700)
    broker = EmbeddedBroker(home, str(silent), ready_s=0.2)
    with pytest.raises(BrokerFailed, match="was not ready after"):
        broker.start()
    assert broker.pid is None


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(BrokerFailed, match=r"broker_binary 'no-such-server'.*PATH"):
        find_binary("no-such-server")
