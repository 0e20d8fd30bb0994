"""`rollcast post`: a recording keeps its own times, and a pipe outlives a server that is away."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rollcast import Client, Prediction
from service.engine import OnnxEngine
from service.packages import load_packages
from tests.cutting import Cutting
from tests.deployment import COMMAND, ROOT, Up, await_true, environment, interruptible, rollcast
from tests.doubles import TinyEngine, tiny_manifest
from tests.living import Living, living
from tests.oracle import Oracle

SAMPLES = ROOT / "models" / "zoo" / "activity-lstm" / "1" / "samples"
INTERVAL_S = 0.25  # of activity-lstm


# --- a recording has its own times -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 s: somebody lies, then walks."""
    heading, *lying = (SAMPLES / "lying-2.csv").read_text().splitlines()[:51]
    walking = (SAMPLES / "walking-2.csv").read_text().splitlines()[1:71]
    path = tmp_path_factory.mktemp("recorded") / "recording.csv"
    path.write_text("\n".join([heading, *lying, *walking, ""]))
    return path


def predictions(client: Client, stream: str, steps: int) -> list[Prediction]:
    def all_there() -> bool:
        last = client.history(stream, limit=1).records
        return bool(last) and isinstance(last[0], Prediction) and last[0].step >= steps

    await_true(all_there, f"{stream} has {steps} steps")
    return [one for one in client.history(stream, after="0", limit=1000).records if isinstance(one, Prediction)]


def events(client: Client, stream: str, steps: int = 120) -> list[tuple[Any, ...]]:
    """What they say, by the recording's own time."""
    found = predictions(client, stream, steps)
    begun = found[0].time - (found[0].step - 1) * INTERVAL_S
    return [
        (event.type, event.label, event.step, round(event.time - begun, 3), round(event.start - begun, 3))
        for one in found
        for event in one.events
    ]


def test_a_recording_gives_its_events_however_it_is_posted(deployment: Up, recording: Path) -> None:
    rows = np.loadtxt(recording, np.float32, delimiter=",", skiprows=1)
    oracle = Oracle(OnnxEngine(load_packages()[0]["activity-lstm"]))
    offline = oracle.step(rows, (len(rows) - 1) * INTERVAL_S)["events"]
    assert {kind for kind, *_ in offline} >= {"enter", "exit"}, "or there is nothing to compare"
    ways: dict[str, tuple[str, ...]] = {
        "fast": ("--rows", "7"),
        "paced": ("--rate", "150", "--rows", "10"),  # that many rows a second, 37 times as fast as they were
        "default-model": (),
    }
    with Client(deployment.url) as client:
        for way, options in ways.items():
            model = () if way == "default-model" else ("--model", "activity-lstm")
            done = rollcast("post", f"own-{way}", str(recording), *model, *options, "--url", deployment.url)
            assert done.returncode == 0, done.stderr
        now = time.time()
        for at in range(0, len(rows), 10):
            block = rows[at : at + 10]
            client.post_samples("own-client", block, model="activity-lstm", time=now + (at + len(block)) * INTERVAL_S)
        seen = {way: events(client, f"own-{way}") for way in (*ways, "client")}
        last = client.history("own-fast", limit=1).records[0]
        assert isinstance(last, Prediction)
        assert abs(last.time - time.time()) < 60.0, "a recording ends now"
    for way, found in seen.items():
        assert [one[:4] for one in found] == [(kind, label, step, round(at, 3)) for kind, label, step, at in offline], (
            way
        )
        assert found == seen["client"], way


def test_what_follows_a_recording_lies_behind_it(deployment: Up, recording: Path) -> None:
    with Client(deployment.url) as client:
        for _ in range(2):
            done = rollcast(
                "post", "twice", str(recording), "--model", "activity-lstm", "--rows", "40", "--url", client.url
            )
            assert done.returncode == 0, done.stderr
        times = [one.time for one in predictions(client, "twice", 240)]
    assert [round(after - before, 6) for before, after in pairwise(times)] == [10.0] * 5


def test_a_column_says_when_each_row_was(deployment: Up, recording: Path, tmp_path: Path) -> None:
    heading, *lines = recording.read_text().splitlines()[:9]
    timed = tmp_path / "timed.csv"
    timed.write_text(
        "\n".join([f"at,{heading}", *(f"{1763860000.5 + n / 2},{line}" for n, line in enumerate(lines)), ""])
    )
    more = ("--time-column", "at", "--model", "activity-lstm", "--rows", "4", "--url", deployment.url)
    done = rollcast("post", "said-column", str(timed), *more)
    assert done.returncode == 0, done.stderr
    with Client(deployment.url) as client:
        assert [one.time for one in predictions(client, "said-column", 8)] == [1763860002.0, 1763860004.0]


def test_a_film_is_posted_at_its_own_rate_or_at_the_one_asked_for(deployment: Up, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))  # type: ignore[attr-defined]
    for n in range(10):
        writer.write(np.full((48, 64, 3), 20 * n, np.uint8))
    writer.release()
    film, url = str(tmp_path / "film.avi"), deployment.url
    with Client(url) as client:
        own = rollcast("post", "film-own", film, "--model", "digits-cnn", "--url", url)
        other = rollcast("post", "film-other", film, "--model", "digits-cnn", "--hz", "10", "--url", url)
        assert (own.returncode, own.stderr) == (0, "")
        assert other.stderr.startswith(f"rollcast: {film}: 25 frames a second, --hz 10: those nearest")
        for stream, steps, interval_s in (("film-own", 10, 0.04), ("film-other", 4, 0.1)):
            times = [one.time for one in predictions(client, stream, steps)]
            assert np.diff(times).round(6).tolist() == [interval_s] * (steps - 1)
    unnamed = rollcast("post", "film-unnamed", film, "--url", url)
    assert unnamed.returncode == 2
    assert "--model says which rate" in unnamed.stderr


# --- a pipe outlives a server that is away -----------------------------------------------------------------------


@pytest.fixture
def life(quick_monitor: None) -> Iterator[Living]:
    with living("memory", "", "", TinyEngine(tiny_manifest())) as life, life.worker():
        yield life


class Pipe:
    """A running `rollcast post STREAM -`, its producer being the test."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._said, self._answered = folder / "stderr", folder / "stdout"
        with self._said.open("wb") as said, self._answered.open("wb") as answered:
            self.process = subprocess.Popen(
                [*COMMAND, "post", *arguments],
                stdin=subprocess.PIPE, stdout=answered, stderr=said, env=environment(), preexec_fn=interruptible,
            )  # fmt: skip

    def give(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    @property
    def said(self) -> str:
        return self._said.read_text()

    def answers(self, count: int) -> None:
        await_true(lambda: len(self._answered.read_text().splitlines()) >= count, f"{count} answers: {self.said}")

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(60)


@contextmanager
def posting(folder: Path, *arguments: str) -> Iterator[Pipe]:
    pipe = Pipe(folder, *arguments)
    try:
        yield pipe
    finally:
        pipe.process.kill()
        pipe.process.wait(60)
        if pipe.process.stdin is not None:
            pipe.process.stdin.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


def test_a_pipe_waits_for_a_server_that_is_away_and_nothing_is_lost_or_doubled(life: Living, tmp_path: Path) -> None:
    """Before it has started, while it is gone, and where it goes in the middle of an answer."""
    port, sent = closed_port(), 0
    with posting(tmp_path, "belt", "-", "--kind", "csv", "--url", f"http://127.0.0.1:{port}") as pipe:

        def give(count: int) -> None:
            nonlocal sent
            pipe.give(b"".join(b"%d,0,1\n" % n for n in range(sent, sent + count)))
            sent += count

        give(3)
        await_true(lambda: "waiting for the server" in pipe.said, "it says that it waits")
        with Cutting(life.api.port, port):
            pipe.answers(sent)
            assert pipe.said.count("it goes on") == 1

            def numbered() -> bool:
                with Client(life.api.url) as client:
                    give(1)
                    pipe.answers(sent)
                    return client.stream("belt")["seq"] is not None

            await_true(numbered, "its entries have numbers")
        give(5)
        await_true(lambda: pipe.said.count("waiting for the server") == 2, "it waits again")
        with Cutting(life.api.port, port) as cutting:
            cutting.cuts.extend([1, 100, 40])
            pipe.answers(sent)
            give(3)
            pipe.answers(sent)
            assert cutting.cut == 3
            assert pipe.end() == 0
        assert pipe.said.count("it goes on") == pipe.said.count("waiting for the server") == 2
    with Client(life.api.url) as client:
        found = predictions(client, "belt", sent)
    assert [one.step for one in found] == list(range(1, sent + 1))
    assert not any(one.missed for one in found)


def test_files_are_patient_for_as_long_as_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("1,2,3\n")
    url = f"http://127.0.0.1:{closed_port()}"
    for options in ((), ("--retry-s", "0.3")):
        done = rollcast("post", "belt", str(file), *options, "--url", url)
        assert (done.returncode, done.stderr.count("no server answers")) == (1, 1)


def test_a_pipe_that_waits_is_ended_by_ctrl_c_at_once(tmp_path: Path) -> None:
    with posting(tmp_path, "belt", "-", "--kind", "csv", "--url", f"http://127.0.0.1:{closed_port()}") as pipe:
        pipe.give(b"1,2,3\n")
        await_true(lambda: "waiting for the server" in pipe.said, "it says that it waits")
        pipe.process.send_signal(signal.SIGINT)
        pipe.process.wait(10)
    assert "Traceback" not in pipe.said


def test_a_row_that_a_sensor_garbled_does_not_end_a_pipe_but_a_first_one_does(life: Living) -> None:
    def post(rows: bytes) -> subprocess.CompletedProcess[str]:
        return rollcast("post", "garbled", "-", "--kind", "csv", "--wait", "--url", life.api.url, stdin=rows)

    done = post(b"1,2,3\n1,2\n4,5,6\n")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2), done.stderr
    assert "no prediction of an entry (1): Input of the wrong shape: row 1 has 2 columns" in done.stderr
    of_others = post(b"1,2\n" * 3)
    assert (of_others.returncode, of_others.stderr.count("[422 ")) == (1, 1)
    assert post(b"").stderr == "rollcast: nothing was posted: there was nothing in it\n"


def test_a_damaged_picture_of_a_pipe_is_said_and_the_next_ones_are_taken(deployment: Up) -> None:
    seven = (ROOT / "models/zoo/digits-cnn/1/samples/7-02823.png").read_bytes()
    pipe = seven + b"\0\0\0" + seven[:-60] + seven
    done = rollcast(
        "post", "torn", "-", "--model", "digits-cnn", "--wait", "--json", "--url", deployment.url, stdin=pipe
    )
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["7", "7"]
    assert done.returncode == 1
    assert "no prediction of an entry (1): " in done.stderr
    assert "rollcast: 1 entries without a prediction\n" in done.stderr
    assert "standard input: skipped 3 bytes between pictures" in done.stderr
