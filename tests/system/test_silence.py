"""A camera that goes away in the midst of an event, through real processes: subscriber, client, command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollcast import Client, Done, Prediction, Problem
from tests.deployment import ROOT, Up, await_true, rollcast
from tests.scraping import scrape
from tests.system.test_life import worker_pid

SEVEN = next((ROOT / "models" / "zoo" / "digits-cnn" / "1" / "samples").glob("7-*.png"))


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "home", "--input-history-s", "600")
    try:
        yield up.ready()
    finally:
        status = up.stop()
    assert status == 0


def test_a_subscriber_is_told_although_the_worker_is_killed(up: Up, tmp_path: Path) -> None:
    with Client(up.url) as client:
        client.configure("cam", model="digits-cnn", rolling={"half_life_s": 0.0}, idle_exit_s=1.0)
        said = client.records("cam", after="0")
        assert isinstance(next(said), Done)
        for _ in range(2):
            client.post_frame("cam", SEVEN, wait_s=30)
        os.kill(worker_pid(up), signal.SIGKILL)
        first, second, done = next(said), next(said), next(said)
        assert isinstance(first, Prediction)
        assert isinstance(second, Prediction)
        assert isinstance(done, Done)
        assert [event.label for event in first.events] == ["7"]
        assert (done.action, [(e.type, e.label, e.event) for e in done.events]) == (
            "silence",
            [("exit", "7", first.id)],
        )
        assert (done.events[0].time, done.events[0].step) == (second.time, 2)
        detail = client.stream("cam")
        assert (detail["silent"], detail["silent_since"]) == (True, int(second.id.partition("-")[0]) / 1000)
        assert detail["settings"]["idle_exit_s"] == 1.0
        assert detail["state"] is not None
        assert detail["state"]["steps"] == 2
        await_true(lambda: scrape(up.url).sum("rollcast_silenced_total", model="digits-cnn") == 1, "it is counted")
        assert [(line["stream"], line["exits"]) for line in up.said("a stream fell silent")] == [("cam", "7")]
        shown = rollcast("streams", "--url", up.url).stdout
        assert "yes" in next(line for line in shown.splitlines() if "cam" in line)

        client.configure("cam", model="digits-cnn", rolling={"half_life_s": 0.0}, idle_exit_s=600.0)
        back = client.post_frame("cam", SEVEN, wait_s=30)
        assert isinstance(back, Prediction)
        assert (back.restarted, back.step, [event.type for event in back.events]) == (None, 3, ["enter"])
        assert client.stream("cam")["silent"] is False
        exits = [e for r in client.history("cam", after="0", every_type=True).records for e in getattr(r, "events", [])]
        assert [event.type for event in exits] == ["enter", "exit", "enter"], "once"

        file = tmp_path / "cam.ndjson"
        kept = rollcast("record", "cam", str(file), "--after", "0", "-n", "6", "--url", up.url)
        assert b'"action":"silence"' in file.read_bytes(), kept.stderr
        again = rollcast("replay", str(file), "--as", "again", "--speed", "0", "--url", up.url)
        assert (again.returncode, again.stderr.strip()) == (0, "5 entries into again")


def test_a_silence_that_is_out_of_range_is_refused_with_what_is_expected(deployment: Up) -> None:
    with Client(deployment.url) as client:
        for given, told in (
            ({"idle_exit_s": 0.0}, "idle_exit_s"),
            ({"idle_exit_s": 9.0, "state_ttl_s": 5.0}, "idle_exit_s is 9.0, expected at most state_ttl_s, 5"),
            ({"idle_exit_s": 1e6}, "expected at most the stream's time to live, 86400"),
        ):
            with pytest.raises(Problem) as caught:
                client.configure("cam-range", model="digits-cnn", **given)  # type: ignore[arg-type]
            assert told in caught.value.detail
