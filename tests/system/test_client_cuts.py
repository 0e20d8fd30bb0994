"""The client under a server that dies at every point: within a request, within an answer, within an event."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from rollcast import Client, Gap, Prediction, samples
from tests.cutting import Cutting
from tests.doubles import TinyEngine, tiny_manifest
from tests.living import Living, living

ROW = [1.0, 2.0, 3.0]
ACCEPTED, PREDICTION, REQUEST = range(0, 250, 11), range(0, 900, 19), range(0, 400, 13)  # bytes, to their ends


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.monitor.POLL_S", 0.05)
    monkeypatch.setattr("service.api.monitor.FRESH_S", 0.0)
    for where in ("flow", "events", "talk", "gateway"):
        for pause in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
            monkeypatch.setattr(f"rollcast.{where}.{'' if where == 'gateway' else '_'}{pause}", 0.001)


@pytest.fixture
def life() -> Iterator[Living]:
    with living("memory", "", "", TinyEngine(tiny_manifest())) as life, life.worker():
        yield life


@pytest.fixture
def cutting(life: Living) -> Iterator[Cutting]:
    with Cutting(life.api.port) as cutting:
        yield cutting


def anew(client: Client) -> None:
    """The next call makes a connection of its own: the proxy counts by connection."""
    client._http.close()
    client._http = httpx.Client(base_url=client.url, trust_env=False)


@pytest.mark.parametrize(
    ("where", "points", "wait_s"), [("cuts", ACCEPTED, None), ("cuts", PREDICTION, 10.0), ("dies", REQUEST, 10.0)]
)
def test_a_numbered_post_is_one_step_wherever_the_server_dies(
    life: Living, cutting: Cutting, where: str, points: range, wait_s: float | None
) -> None:
    with Client(cutting.url, numbered=True) as client:
        client.post_samples("cut", [ROW], wait_s=10)
        for step, point in enumerate(points, start=2):
            anew(client)
            getattr(cutting, where).append(point)
            answer = client.post_samples("cut", [ROW], wait_s=wait_s)
            if isinstance(answer, Prediction):
                assert answer.step == step, f"{where} after {point} bytes"
    assert cutting.cut > len(points) / 3
    with Client(life.api.url) as client:
        last = client.post_samples("cut", [ROW], wait_s=10)
        assert isinstance(last, Prediction)
        assert last.step == 2 + len(points)


@pytest.mark.parametrize("where", ["cuts", "dies"])
def test_a_gateways_message_is_one_step_each_wherever_the_server_dies(
    life: Living, cutting: Cutting, where: str
) -> None:
    with Client(cutting.url, numbered=True) as client:
        client.post_samples("cut", [ROW], wait_s=10)
        with client.gateway([]) as gateway:
            gateway.post([])
            gateway._connected()
            points = range(0, 800, 18)
            for point in points:
                gateway._lose()
                getattr(cutting, where).append(point)
                assert len(gateway.post([samples("cut", [ROW])] * 2)) == 2
        assert cutting.cut > len(points) / 3
        last = client.post_samples("cut", [ROW], wait_s=10)
        assert isinstance(last, Prediction)
        assert last.step == 2 + 2 * len(points)


@pytest.mark.parametrize("wanted", ["seen", "see?"])
def test_a_subscription_is_whole_wherever_the_server_dies(life: Living, cutting: Cutting, wanted: str) -> None:
    ids = [life.api.post_rows("seen", ROW) for _ in range(40)]
    with Client(cutting.url) as client:
        cutting.cuts.extend(range(0, 1500, 18))
        records = client.records(wanted, "0")
        found = [next(records) for _ in ids]
    assert not any(isinstance(record, Gap) for record in found)
    assert [record.id for record in found] == ids
    assert cutting.cut > 20
