"""The worlds in which the sentences of these tests hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.embedded import EmbeddedBroker
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World


@pytest.fixture(params=["memory", "valkey", "redis"])
def world(request: pytest.FixtureRequest, prefix: str, start_broker: Callable[[str], EmbeddedBroker]) -> World:
    if request.param == "memory":
        return MemoryWorld(SHARDS)
    return BrokerWorld(start_broker(request.param).url, prefix)
