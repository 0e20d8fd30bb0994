"""An entry that ends the process that works on it is found, refused, and stops nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from service.keys import shard_of
from tests.deployment import Up, await_true
from tests.doubles import rows_fields
from tests.system.crew import Crew
from tests.worlds import wait_until

POISON = np.frombuffer(b"AntiLife" * 3, "<f4")[None]  # (1, 6), every value finite


@pytest.fixture
def crew(broker_url: str, prefix: str, tmp_path: Path) -> Iterator[Crew]:
    one = Crew(broker_url, prefix, tmp_path, shards=4)
    yield one
    one.close()


def test_an_entry_that_kills_workers_is_refused_and_everything_else_is_answered(crew: Crew) -> None:
    """Two workers, started again whenever they die, as a supervisor would."""

    def hire(name: str) -> None:
        crew.hire(name, fault="poison:AntiLifeAntiLife")

    hire("a")
    hire("b")
    crew.feed(150)
    victim = "s05"
    shard = shard_of(victim, crew.shards)
    fields: Any = rows_fields(victim, POISON)
    entry_id: Any = crew.client.xadd(crew.keys[shard].inbox, fields)
    crew.feed(50)
    deaths = 0

    def answered() -> bool:
        nonlocal deaths
        for name, process in list(crew.workers.items()):
            if process.exitcode is not None:
                deaths += 1
                hire(name)
        return crew.answered() >= crew.posted_entries() + 1

    wait_until(answered, 60, "every entry is answered, the poisonous one too")
    assert 3 <= deaths <= 8
    ((record_id, record),) = crew.client.xrange(crew.keys[shard].out(victim), entry_id, entry_id)  # type: ignore[misc]
    body = json.loads(record[b"body"])
    assert (record[b"type"], body["reason"]) == (b"refused", "crash")
    (dead,) = [item for keys in crew.keys for _, item in crew.client.xrange(keys.dead)]  # type: ignore[union-attr]
    data = crew.client.hget(crew.keys[shard].dead_data, entry_id.decode())
    assert (dead[b"id"], dead[b"reason"], data) == (entry_id, b"crash", POISON.tobytes())
    crew.feed(100)
    wait_until(lambda: crew.answered() >= crew.posted_entries() + 1, 60, "every entry is answered")
    wait_until(lambda: not crew.client.exists(crew.keys[shard].suspect), 60, "nothing is suspected any more")
    crew.dismiss()
    for stream in crew.posted:
        ids = [i for i, _ in crew.client.xrange(crew.keys[shard_of(stream, crew.shards)].out(stream))]  # type: ignore[union-attr]
        expected = [i.encode() for i, _, _ in crew.posted[stream]]
        assert ids == sorted(expected + [entry_id] * (stream == victim), key=lambda i: tuple(map(int, i.split(b"-"))))
    assert record_id == entry_id


KINDS = {
    "belt": ("samples", "activity-lstm", "application/octet-stream"),
    "cam": ("frames", "digits-cnn", "image/jpeg"),
}


def pictures() -> tuple[bytes, bytes]:
    """A JPEG, and the same with a comment that is poison to a decoder."""
    _, jpeg = cv2.imencode(".jpg", np.full((28, 28), 90, np.uint8))
    good = jpeg.tobytes()
    comment = POISON.tobytes()
    return good, good[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + good[2:]


def ends(up: Up) -> list[Any]:
    return [line for line in up.lines if "starting it again" in line["event"]]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_up_refuses_it_after_a_few_deaths(tmp_path_factory: pytest.TempPathFactory) -> None:
    options = ("--workers", "2", "--lease-s", "0.5")
    up = Up(tmp_path_factory.mktemp("h"), *options, ROLLCAST_TEST_FAULT="poison:AntiLifeAntiLife")
    try:
        url = up.ready().url

        def post(stream: str, data: bytes, status: int = 200) -> dict[str, Any]:
            """What became of it."""
            kind, model, media = KINDS[stream]
            answer = httpx.post(
                f"{url}/v1/streams/{stream}/{kind}", params={"model": model, "wait": 60}, content=data, timeout=90,
                headers={"Content-Type": media}, trust_env=False,
            )  # fmt: skip
            body: dict[str, Any] = answer.json()
            if answer.status_code == 504:  # where processes take that long to start: it is in the log
                await_true(lambda: recorded(stream, body["id"]), "it is answered", 120)
                return recorded(stream, body["id"])
            assert answer.status_code == status, answer.text
            return body

        def recorded(stream: str, entry_id: str) -> dict[str, Any]:
            page = httpx.get(f"{url}/v1/streams/{stream}/predictions", params={"type": "all"}, trust_env=False).json()
            return next((one for one in page["predictions"] if one["id"] == entry_id), {})

        for stream, good, bad in (("belt", np.ones((1, 6), "<f4").tobytes(), POISON.tobytes()), ("cam", *pictures())):
            assert post(stream, good)["step"] == 1
            began, before = time.monotonic(), len(ends(up))
            refused = post(stream, bad, 422)
            took_s = time.monotonic() - began
            assert refused["reason"] == "crash"
            after = post(stream, good)
            assert (after["step"], after["restarted"]) == (2, None)
            assert 2 <= len(ends(up)) - before <= 8
            print(f"{stream}: refused after {took_s:.1f} s, {len(ends(up)) - before} ends")
    finally:
        status = up.stop()
    assert status == 0
    await_true(lambda: not up.family()[1:], "nothing is left behind")
