"""Entries recorded and replayed: over HTTP, by the client, and with the commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcast import Client, Prediction
from service.cli.recording import missing
from service.embedded import EmbeddedBroker
from tests.cutting import Cutting
from tests.deployment import ROOT, Up, await_true, rollcast
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.living import Living, living

PATH = sorted((ROOT / "models" / "zoo" / "activity-lstm" / "1" / "samples").glob("walking-*.csv"))[0]
ROWS = [[float(cell) for cell in line.split(",")] for line in PATH.read_text().splitlines()[1:61]]


pytestmark = pytest.mark.usefixtures("quick_monitor")


@pytest.fixture(params=["memory", "valkey", "redis"])
def life(
    request: pytest.FixtureRequest, prefix: str, start_broker: Callable[[str], EmbeddedBroker]
) -> Iterator[Living]:
    url = "" if request.param == "memory" else start_broker(request.param).url
    with living(request.param, url, prefix, TinyEngine(tiny_manifest()), heartbeat_s=0.05) as life:
        yield life


def lines(life: Living, stream: str, count: int, after: str = "0") -> list[dict[str, Any]]:
    with life.api.http.stream("GET", f"/v1/streams/{stream}/entries", params={"after": after}) as answer:
        assert answer.status_code == 200
        found = (line for line in answer.iter_lines() if line)
        return [json.loads(next(found)) for _ in range(count)]


def test_the_log_is_read_from_any_entry_on_and_only_the_stream_asked_for(life: Living) -> None:
    ids = []
    for n in range(4):
        row = np.array([[n, 1, 2]], np.float32)
        life.world.append("other", rows_fields("other", row))
        ids.append(life.world.append("belt-1", rows_fields("belt-1", row, seq=b"%d" % n, time=b"7.5", end=b"1")))
    found = lines(life, "belt-1", 4)
    assert [one["id"] for one in found] == ids
    assert found[2].items() >= {"kind": "samples", "shape": [1, 3], "seq": 2, "time": 7.5, "end": True}.items()
    assert [one["id"] for one in lines(life, "belt-1", 2, ids[1])] == ids[2:]


def test_texts_controls_and_what_cannot_be_read_are_told_as_what_they_are(life: Living) -> None:
    fields: list[dict[str, bytes]] = [
        {"kind": b"text", "data": "schön".encode()},
        {"kind": b"control", "data": b'{"action":"reset"}'},
        {"kind": b"text", "data": b"\xff"},
        {"kind": b"control", "data": b"{"},
        {"kind": b"dance", "data": b"x"},
    ]
    for one in fields:
        life.world.append("odd", {"stream": b"odd"} | one)
    text, control, *faulty = lines(life, "odd", 5)
    assert (text["text"], control["control"]) == ("schön", {"action": "reset"})
    assert ["fault" in one and "data" in one for one in faulty] == [True] * 3
    assert "dance" in faulty[2]["fault"]


def test_what_comes_is_heard_at_once_and_silence_is_broken(life: Living) -> None:
    with life.api.http.stream("GET", "/v1/streams/later/entries") as answer:
        found = answer.iter_lines()
        assert next(found) == ""
        entry_id = life.world.append("later", rows_fields("later", np.zeros((1, 3), np.float32)))
        assert next(json.loads(line)["id"] for line in found if line) == entry_id


def test_a_listener_does_not_hold_up_the_stop(life: Living) -> None:
    with life.api.http.stream("GET", "/v1/streams/idle/entries") as answer:
        assert next(answer.iter_lines()) == ""
        assert life.api.stop() < 8.0, "held up, it would take the 10 s of grace"


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/streams/a%20b/entries", 400), ("/v1/streams/a/entries?after=x", 400)]
)
def test_a_wrong_stream_or_cursor_is_said_so(life: Living, path: str, status: int) -> None:
    assert life.api.http.get(path).status_code == status


def test_listening_goes_on_after_cuts_at_any_byte(life: Living) -> None:
    """No worker is there, so that nothing leaves the log."""
    ids = [life.world.append("heard", rows_fields("heard", np.full((1, 3), n, np.float32))) for n in range(12)]
    with Cutting(life.api.port) as cutting, Client(cutting.url) as doubtful:
        cutting.cuts.extend([300, 700, 450, 1100, 1, 220])
        entries = doubtful.entries("heard", "0")
        assert [next(entries).id for _ in ids] == ids
        assert cutting.cut >= 3


def seen(client: Client, stream: str) -> list[tuple[Any, ...]]:
    """Predictions, without what tells one stream from another."""
    found = []
    for record in client.history(stream, after="0", every_type=True).records:
        if isinstance(record, Prediction):
            events = [(event.type, event.label, event.step, event.time) for event in record.events]
            rolled = np.round(record.rolling.probabilities, 5).tolist()
            found.append((record.step, record.label, record.restarted, record.time, rolled, events))
        else:
            found.append((record.type,))
    return found


def test_a_replay_gives_the_predictions_of_the_recording(deployment: Up, tmp_path: Path) -> None:
    file = tmp_path / "belt.ndjson"
    with Client(deployment.url, numbered=True) as client:
        done: list[Any] = []
        recorder = threading.Thread(
            target=lambda: done.append(
                rollcast("record", "taped", str(file), "--after", "0", "-n", "12", "--url", deployment.url)
            )
        )
        recorder.start()
        await_true(lambda: file.exists() and b"recording" in file.read_bytes(), "it listens")
        client.post_samples("taped", ROWS[:10], model="activity-lstm", wait_s=10)
        for at in range(10, 40, 6):
            client.post_samples("taped", ROWS[at : at + 6], wait_s=10, start=at == 22)
        client.configure("taped", rolling={"half_life_s": 0.1, "enter": 0.5, "exit": 0.2})
        client.post_samples("taped", ROWS[40:50], wait_s=10)
        state = client.save_state("taped")
        client.reset("taped")
        client.post_samples("taped", ROWS[50:], wait_s=10)
        client.restore("taped", state)
        client.post_samples("taped", ROWS[:5], wait_s=10, end=True)
        recorder.join(60)
        assert done[0].returncode == 0, done[0].stderr
        assert "12 entries of taped" in done[0].stderr
        again = rollcast(
            "replay", str(file), "--as", "again", "--speed", "0", "--json", "--wait", "--url", deployment.url
        )
        assert again.returncode == 0, again.stderr
        assert len(again.stdout.splitlines()) == 9
        assert seen(client, "again") == seen(client, "taped")
        assert client.stream("again")["seq"] == client.stream("taped")["seq"]
    same = rollcast("replay", str(file), "--url", deployment.url)
    assert same.returncode == 2
    assert "its entries would be repeats" in " ".join(same.stderr.replace("│", " ").split())
    slow = rollcast(
        "replay", str(file), "--as", "unnumbered", "--no-seq", "--now", "--speed", "1000", "--url", deployment.url
    )
    assert (slow.returncode, slow.stderr.strip()) == (0, "12 entries into unnumbered")


def test_entries_that_were_gone_too_soon_are_missed_aloud(life: Living, tmp_path: Path) -> None:
    with life.worker():
        first, second = (life.api.post_rows("late", [1.0, 2.0, 3.0]) for _ in range(2))
        await_true(lambda: len(life.world.records("late")) == 2, "they were answered")
        await_true(lambda: life.world.logged() == 0, "finished entries left the log")
    last = life.world.append("late", rows_fields("late", np.zeros((1, 3), np.float32)))
    with life.worker():
        await_true(lambda: len(life.world.records("late")) == 3, "it was answered")
    life.world.append("late", rows_fields("late", np.zeros((1, 3), np.float32)))
    with Client(life.api.url) as client:
        assert missing(client, "late", "0", [last]) == [first, second]
        assert missing(client, "late", first, [last]) == [second]
        assert missing(client, "late", "0", [first, second, last]) == []
        assert missing(client, "late", "0", []) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,2,3\n", "not a recording of `rollcast record`"),
        ('{"type":"recording","format":2,"stream":"a"}\n', "a recording of format 2; this version reads format 1"),
        ('{"type":"recording","format":1,"stream":"a"}\n', "a recording without entries"),
        ('{"type":"recording","format":1,"stream":"a"}\n{"id":"1-0"}\n', "line 2: Object missing required field"),
    ],
)
def test_what_is_no_recording_is_said_so(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "x"
    file.write_text(text)
    done = rollcast("replay", str(file), "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
