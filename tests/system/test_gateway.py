"""The client's gateway: many entries a message, through cuts, refusals and a server that starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from rollcast import Accepted, AsyncClient, Client, Entry, Gap, Prediction, Problem, ServerAway, frame, samples
from tests.cutting import Cutting
from tests.deployment import ROOT, Up, await_true

ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]
LSTM = "activity-lstm"


@pytest.fixture
def image() -> Path:
    return next((ROOT / "models" / "zoo" / "digits-cnn" / "1" / "samples").glob("7-*.png"))


@pytest.fixture
def cutting(deployment: Up) -> Iterator[Cutting]:
    with Cutting(httpx.URL(deployment.url).port or 0) as cutting:
        yield cutting


def rows(name: str, count: int) -> list[Entry]:
    """One row each of four streams in turn."""
    return [samples(f"{name}-{n % 4}", [ROW], model=LSTM) for n in range(count)]


def test_many_entries_go_at_once_and_their_predictions_come_back(deployment: Up, image: Path) -> None:
    with Client(deployment.url) as client, client.gateway() as gateway:
        posted = gateway.post(
            [
                samples("way-1", [ROW], model=LSTM),
                frame("way-2", image, model="digits-cnn"),
                samples("way-1", np.array([ROW, ROW])),
                samples("way-1", [[1.0]]),
                samples("no way", [ROW]),
            ]
        )
        assert [type(one) for one in posted] == [Accepted] * 3 + [Problem] * 2
        assert isinstance(posted[3], Problem)
        assert posted[3].is_a("wrong-shape")
        predictions = gateway.predictions()
        found = {(one.stream, one.id): one for one in [next(predictions) for _ in range(3)]}
        assert found.keys() == {(one.stream, one.id) for one in posted if isinstance(one, Accepted)}
        assert sorted((one.stream, one.step) for one in found.values()) == [("way-1", 1), ("way-1", 3), ("way-2", 1)]
        assert "7" in {one.label for one in found.values()}


def test_more_entries_than_a_message_holds(deployment: Up) -> None:
    with Client(deployment.url) as client, client.gateway([]) as gateway:
        posted = gateway.post(rows("way-many", 2500))
        assert [type(one) for one in posted] == [Accepted] * 2500
        last = posted[-1]
        assert isinstance(last, Accepted)
        for record in client.records(last.stream, "0"):
            if isinstance(record, Prediction) and record.id == last.id:
                assert record.step == 625
                break


@pytest.mark.parametrize("cuts", [[400], [200, 210, 600], [1, 60, 129, 140, 1500], [250, 2000, 300]])
def test_numbered_entries_are_stepped_once_whatever_is_cut(deployment: Up, cutting: Cutting, cuts: list[int]) -> None:
    name = f"way-cut-{len(cuts)}-{cuts[0]}"
    with Client(cutting.url, numbered=True) as client:
        for stream in range(4):
            client._flow._next_seq[f"{name}-{stream}"] = 0
        with client.gateway() as gateway:
            gateway._reached = True
            gateway._connected()  # whole: only what is told must be cut
            gateway._lose()
            cutting.cuts.extend(cuts)
            for _ in range(4):
                assert [type(one) for one in gateway.post(rows(name, 12))] == [Accepted] * 12
            seen: dict[str, list[int]] = {}
            records = gateway.records()
            while sum(map(len, seen.values())) < 48:
                record = next(records)
                assert not isinstance(record, Gap)
                steps = seen.setdefault(record.stream, [])
                if isinstance(record, Prediction) and record.step not in steps:
                    steps.append(record.step)
    assert cutting.cut >= len(cuts) - 1
    assert seen == {f"{name}-{stream}": list(range(1, 13)) for stream in range(4)}


@pytest.mark.parametrize("name", ["wide", "w" + 60 * "i" + "de"], ids=["named", "sifted"])
def test_a_gateway_of_very_many_streams_comes_back_to_all_of_them(deployment: Up, name: str) -> None:
    """They are names, not patterns: their number is what was posted, not what a subscription may ask for. Where they
    are more than hello may name, the gateway gets the records of all streams, and leaves others out."""
    names = [f"way-{name}-{n}" for n in range(1000)]
    with Client(deployment.url) as client, client.gateway() as gateway:
        assert isinstance(gateway.post([samples("no name", [ROW], model=LSTM)])[0], Problem)
        gateway.post([samples(name, [ROW], model=LSTM) for name in names])
        records = gateway.records()
        seen = {next(records).stream for _ in names}
        gateway._lose()
        with Client(deployment.url) as another:
            another.post_samples(f"another-{name}", [ROW], model=LSTM, wait_s=30)
            another.post_samples(names[-1], [ROW], wait_s=30)
        gateway.post([samples(f"way-{name}-new", [ROW], model=LSTM)])
        assert {next(records).stream for _ in range(2)} == {names[-1], f"way-{name}-new"}
    assert seen == set(names)


def test_entries_without_numbers_are_never_sent_twice(deployment: Up, cutting: Cutting) -> None:
    with Client(cutting.url) as client, client.gateway() as gateway:
        gateway.post(rows("way-once", 4))
        gateway._lose()
        cutting.cuts.append(200)
        with pytest.raises(ServerAway, match="may be in the log or not"):
            _ = [gateway.post(rows("way-once", 4)) for _ in range(20)]
    with Client(deployment.url) as client:
        for stream in range(4):

            def types(name: str = f"way-once-{stream}") -> set[str]:
                return {one.type for one in client.history(name, "0", every_type=True).records}

            await_true(types, "the first entry is answered")
            assert types() == {"prediction"}


def test_a_wrong_subscription_is_said_at_once(deployment: Up) -> None:
    with Client(deployment.url) as client:
        for wrong, told in (
            (client.gateway("[a]"), "stands for any"),
            (client.gateway("a", after="x"), "not a cursor"),
        ):
            with wrong as gateway, pytest.raises(Problem, match=told):
                next(gateway.records())
    with Client("http://127.0.0.1:9") as nowhere, nowhere.gateway() as gateway:
        with pytest.raises(ServerAway, match=r"no server answers at http://127\.0\.0\.1:9"):
            gateway.post(rows("x", 1))
        with pytest.raises(ServerAway):
            next(gateway.records())


def test_the_same_for_asyncio_while_records_are_read(deployment: Up, cutting: Cutting) -> None:
    async def walk() -> list[Prediction]:
        found: list[Prediction] = []
        async with AsyncClient(cutting.url, numbered=True) as client, client.gateway() as gateway:

            async def read() -> None:
                async for prediction in gateway.predictions():
                    found.append(prediction)
                    if len({(one.stream, one.step) for one in found}) == 80:
                        return

            await gateway.post(rows("way-async", 4))
            await gateway._lose()
            cutting.cuts.extend([600, 900, 700])
            reading = asyncio.create_task(read())
            for _ in range(19):
                assert [type(one) for one in await gateway.post(rows("way-async", 4))] == [Accepted] * 4
            await asyncio.wait_for(reading, 60)
            with pytest.raises(Problem, match="stands for any"):
                await client.gateway("[a]").post(rows("x", 1))
        with pytest.raises(ServerAway):
            async with AsyncClient("http://127.0.0.1:9") as client, client.gateway() as gateway:
                await gateway.post(rows("x", 1))
        return found

    found = asyncio.run(walk())
    assert cutting.cut >= 2
    for stream in range(4):
        steps = list(dict.fromkeys(one.step for one in found if one.stream == f"way-async-{stream}"))
        assert steps == list(range(1, 21))


def test_both_gateways_have_the_same_calls() -> None:
    from rollcast import AsyncGateway, Gateway

    def calls(of: type) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert calls(Gateway) == calls(AsyncGateway)
