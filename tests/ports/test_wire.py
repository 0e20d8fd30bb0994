"""An answer may take longer than its beginning may: a slow network is no absent broker."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest

from service.broker.log import RedisLog
from service.broker.wire import Wire
from service.chaos.proxy import FaultProxy
from service.embedded import EmbeddedBroker
from service.errors import BrokerAway
from service.keys import ShardKeys

LARGE = bytes(2 << 20)  # passes the proxy in ten pieces or more


@pytest.fixture
def proxy(broker: EmbeddedBroker) -> Iterator[FaultProxy]:
    with tempfile.TemporaryDirectory(prefix="rcp-") as folder:
        one = FaultProxy(Path(folder) / "s", Path(broker.url.removeprefix("unix://")))
        yield one
        one.close()


def test_only_silence_is_too_long(proxy: FaultProxy, prefix: str) -> None:
    wire = Wire(proxy.url, 1.0)
    proxy.delay_s = 0.1  # each piece of it
    assert wire.call("SET", f"{prefix}:large", LARGE) == b"OK"
    assert wire.call("GET", f"{prefix}:large") == LARGE
    assert proxy.counts["delayed"] * proxy.delay_s > 1.0, "which took longer than 1 s"
    proxy.hold()
    with pytest.raises(BrokerAway, match="no answer from the broker within 1 s"):
        wire.call("PING")
    wire.close()
    proxy.release()


def test_what_is_sent_may_take_as_long_as_some_of_it_is_taken() -> None:
    with tempfile.TemporaryDirectory(prefix="rcp-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()

        def take_slowly() -> None:
            end, reader = listener.accept()[0], hiredis.Reader()
            with end:
                while data := end.recv(1 << 16):
                    time.sleep(0.05)
                    reader.feed(data)
                    while reader.gets() is not False:
                        end.sendall(b"+OK\r\n")

        taking = threading.Thread(target=take_slowly)
        taking.start()
        wire = Wire(f"unix://{folder}/s", 1.0)
        began = time.monotonic()
        assert wire.call("SET", "large", LARGE) == b"OK"
        assert time.monotonic() - began > 1.0
        wire.close()
        taking.join(60)


def test_a_read_goes_on_as_long_as_its_answer_comes(proxy: FaultProxy, prefix: str) -> None:
    log, keys = RedisLog(proxy.url, worker="w", prefix=prefix, shards=1, lease_s=1.0), ShardKeys(prefix, 0)
    wire = Wire(proxy.url)
    wire.call("XADD", keys.inbox, "1-0", "data", LARGE)
    wire.close()
    proxy.delay_s = 0.15
    log.ask({0: 0}, 10, 0.01)
    while (answer := log.poll(5, None)) is None:
        pass
    assert answer == [(0, [[b"1-0", [b"data", LARGE]]])]
    assert proxy.counts["delayed"] * proxy.delay_s > 1.01, "which took longer than a read has to begin"
    log.close()
