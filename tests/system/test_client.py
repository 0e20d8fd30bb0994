"""The Python client against a real server, one that dies at every point included."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from rollcast import Accepted, AsyncClient, Client, Gap, Prediction, Problem, ServerAway
from tests.cutting import Cutting
from tests.deployment import ROOT, Up

ZOO = ROOT / "models" / "zoo"
ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]
COLUMNS = ["avg_rss12", "var_rss12", "avg_rss13", "var_rss13", "avg_rss23", "var_rss23"]


@pytest.fixture
def client(deployment: Up) -> Iterator[Client]:
    with Client(deployment.url) as client:
        yield client


@pytest.fixture
def image() -> Path:
    return next((ZOO / "digits-cnn" / "1" / "samples").glob("7-*.png"))


@pytest.fixture
def cutting(deployment: Up) -> Iterator[Cutting]:
    with Cutting(httpx.URL(deployment.url).port or 0) as cutting:
        yield cutting


class Frame:
    """What the client takes a DataFrame for: columns, and rows as an array."""

    def __init__(self, columns: list[str], rows: list[list[float]]) -> None:
        self.columns, self._rows = columns, rows

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self._rows, dtype)


def test_a_frame_is_posted_as_bytes_path_and_array(client: Client, image: Path) -> None:
    pixels = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
    forms: list[Any] = [image, str(image), image.read_bytes(), pixels, np.repeat(pixels[..., None], 3, 2)]
    found = [client.post_frame("client-1", form, model="digits-cnn", wait_s=10) for form in forms]
    assert [type(one) for one in found] == [Prediction] * 5
    assert {one.label for one in found if isinstance(one, Prediction)} == {"7"}
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), float64: expected \(H, W\)"):
        client.post_frame("client-1", np.zeros((2, 2, 2)))


def test_rows_are_posted_as_lists_array_and_table(client: Client) -> None:
    rows = [ROW, [41.0, 1.0, 20.0, 1.0, 20.0, 1.0]]
    shuffled = Frame(COLUMNS[::-1], [row[::-1] for row in rows])
    forms: list[Any] = [rows, np.array(rows), np.array(rows, np.float32), shuffled]
    found = [
        client.post_samples(f"client-rows-{i}", form, model="activity-lstm", wait_s=10) for i, form in enumerate(forms)
    ]
    probabilities = [one.probabilities for one in found if isinstance(one, Prediction)]
    assert len(probabilities) == 4
    assert np.allclose(probabilities, probabilities[0], atol=1e-6)
    with pytest.raises(ValueError, match="expected"):
        client.post_samples("client-rows-0", np.zeros(6))


def test_without_a_wait_the_answer_is_the_entry(client: Client) -> None:
    accepted = client.post_samples("client-2", [ROW], model="activity-lstm")
    assert isinstance(accepted, Accepted)
    assert (accepted.stream, accepted.model) == ("client-2", "activity-lstm")
    prediction = next(client.predictions("client-2", after="0"))
    assert (prediction.id, prediction.cursor, prediction.step) == (accepted.id, accepted.id, 1)
    assert prediction.rolling.label in prediction.json


def test_a_problem_says_its_type_and_a_missing_server_its_address(client: Client) -> None:
    with pytest.raises(Problem, match="expected 6") as failed:
        client.post_samples("client-3", [[1.0, 2.0]], model="activity-lstm")
    assert (failed.value.status, failed.value.is_a("wrong-shape")) == (422, True)
    with Client("http://127.0.0.1:9") as nowhere:
        with pytest.raises(ServerAway, match=r"no server answers at http://127\.0\.0\.1:9"):
            nowhere.models()
        with pytest.raises(ServerAway):
            next(iter(nowhere.predictions("cam-*")))
        assert "no server answers" in nowhere.reasons_not_ready()[0]


def test_history_pages_through_what_is_kept(client: Client) -> None:
    ids = [client.post_samples("client-4", [ROW], model="activity-lstm", wait_s=10).id for _ in range(5)]
    first = client.history("client-4", after="0", limit=2)
    rest = client.history("client-4", after=first.next)
    assert [record.id for record in [*first.records, *rest.records]] == ids
    assert not first.gap
    assert client.history("client-4", limit=1).records[0].id == ids[-1]


@pytest.mark.parametrize("passed", [1, 20, 120, 400])
def test_a_numbered_entry_is_stepped_once_whatever_happens_to_its_answer(
    client: Client, cutting: Cutting, passed: int
) -> None:
    """The answer is cut after so many bytes; the entry was appended all the same."""
    stream = f"client-cut-{passed}"
    with Client(cutting.url, numbered=True) as doubtful:
        doubtful.post_samples(stream, [ROW], model="activity-lstm", wait_s=10)
    with Client(cutting.url, numbered=True) as doubtful:
        doubtful.models()  # a server answers here
        doubtful.stream(stream)
        doubtful._http.close()
        doubtful._http = httpx.Client(base_url=cutting.url, trust_env=False)
        doubtful._flow._next_seq[stream] = 1
        cutting.cuts.append(passed)
        found = doubtful.post_samples(stream, [ROW], wait_s=10)
        assert isinstance(found, Prediction)
        assert (found.step, cutting.cut) == (2, 1)
        after = doubtful.post_samples(stream, [ROW], wait_s=10)
        assert isinstance(after, Prediction)
        assert after.step == 3
    records = client.history(stream, after="0", every_type=True).records
    assert [record.type for record in records] == ["prediction", "prediction", "duplicate", "prediction"]


def test_an_entry_without_a_number_is_never_sent_twice(client: Client, cutting: Cutting) -> None:
    with Client(cutting.url) as doubtful:
        doubtful.models()
        doubtful._http.close()
        doubtful._http = httpx.Client(base_url=cutting.url, trust_env=False)
        cutting.cuts.append(10)
        with pytest.raises(ServerAway):
            doubtful.post_samples("client-once", [ROW], model="activity-lstm", wait_s=10)
    assert [record.type for record in client.history("client-once", after="0", every_type=True).records] == [
        "prediction"
    ]


def test_numbers_go_on_where_an_earlier_producer_stopped(deployment: Up, client: Client) -> None:
    for expected in (1, 2, 3):
        with Client(deployment.url, numbered=True) as producer:
            found = producer.post_samples("client-numbered", [ROW], model="activity-lstm", wait_s=10)
            assert isinstance(found, Prediction)
            assert found.step == expected
    assert client.stream("client-numbered")["seq"] == 2


@pytest.mark.parametrize("pattern", ["client-resumed", "client-resume?"])
def test_a_subscription_survives_cuts_at_any_byte(client: Client, cutting: Cutting, pattern: str) -> None:
    ids = [client.post_samples("client-resumed", [ROW], model="activity-lstm", wait_s=10).id for _ in range(12)]
    kept = [record.id for record in client.history("client-resumed", after="0").records]
    assert kept[-12:] == ids
    with Client(cutting.url) as doubtful:
        cutting.cuts.extend([1500, 2500, 900, 4000, 700])
        records = doubtful.records(pattern, after="0")
        seen = [next(records) for _ in kept]
        assert [record.id for record in seen] == kept
        new = client.post_samples("client-resumed", [ROW], wait_s=10)
        assert next(records).id == new.id
    assert cutting.cut >= 3
    assert not any(isinstance(record, Gap) for record in seen)


def test_the_same_calls_for_asyncio(deployment: Up, image: Path) -> None:
    async def walk() -> None:
        async with AsyncClient(deployment.url, numbered=True) as client:
            posts = [client.post_samples("client-async", [ROW], model="activity-lstm", wait_s=10) for _ in range(4)]
            found = await asyncio.gather(*posts)
            assert sorted(one.step for one in found if isinstance(one, Prediction)) == [1, 2, 3, 4]
            steps = []
            async for prediction in client.predictions("client-asyn?", after="0"):
                steps.append(prediction.step)
                if len(steps) == 4:
                    break
            assert steps == [1, 2, 3, 4]
            seven = await client.post_frame("client-async-7", image, model="digits-cnn", wait_s=10)
            assert isinstance(seven, Prediction)
            assert seven.label == "7"
            assert "client-async" in [one["stream"] async for one in client.streams()]
            assert {"digits-cnn"} <= {one["name"] for one in (await client.models())["models"]}
            assert await client.reasons_not_ready() == []
            with pytest.raises(Problem, match="no entry of it"):
                await client.stream("client-nobody")

    asyncio.run(walk())


def test_both_clients_have_the_same_calls() -> None:
    def calls(of: type) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)


def test_a_recording_posted_row_by_row_is_followed_as_it_goes(client: Client) -> None:
    path = sorted((ZOO / "activity-lstm" / "1" / "samples").glob("*.csv"))[0]
    with path.open(newline="") as file:
        rows = [[float(cell) for cell in line] for line in list(csv.reader(file))[1:40]]
    for row in rows:
        client.post_samples("client-live", [row], model="activity-lstm")
    predictions = client.predictions(["client-live", "client-nothing"], after="0")
    assert [next(predictions).step for _ in rows] == list(range(1, len(rows) + 1))
