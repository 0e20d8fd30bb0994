"""The commands, as a user types them."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path

import pytest

from service import VERSION
from service.packages import load_packages, samples
from service.settings import Settings, option
from tests.deployment import Up, rollcast


@pytest.fixture
def url(deployment: Up) -> str:
    return deployment.url


@pytest.fixture(scope="module")
def digits() -> list[tuple[str, Path]]:
    return [(sample.label, sample.path) for sample in samples(load_packages()[0]["digits-cnn"])]


@pytest.fixture(scope="module")
def recording() -> Path:
    return samples(load_packages()[0]["activity-lstm"])[0].path


def test_help_shows_every_command_with_its_purpose_and_an_example() -> None:
    shown = rollcast("--help").stdout
    for command in (
        "up",
        "api",
        "worker",
        "demo",
        "post",
        "watch",
        "record",
        "replay",
        "models",
        "streams",
        "state",
        "dead",
        "shard",
        "check",
    ):
        assert re.search(rf"│ {command} +[A-Z]", shown), command
    assert "rollcast up --demo" in shown


def test_help_of_up_shows_every_setting() -> None:
    shown = rollcast("up", "--help").stdout
    for name in Settings.model_fields:
        assert option(name) in shown


def test_the_version_is_that_of_the_project() -> None:
    assert rollcast("--version").stdout == f"rollcast {VERSION}\n"


def test_shard_prints_the_streams_shard() -> None:
    assert rollcast("shard", "cam-1").stdout == "26\n"
    assert rollcast("shard", "cam-1", ROLLCAST_SHARDS="4").stdout == "2\n"


def test_a_bad_stream_id_is_told() -> None:
    done = rollcast("shard", "a b")
    assert done.returncode == 1
    assert "stream id 'a b': expected" in done.stderr


def test_a_bad_setting_ends_with_status_2_and_its_source() -> None:
    done = rollcast("up", ROLLCAST_PORT="http")
    assert done.returncode == 2
    assert "setting port: 'http' from ROLLCAST_PORT: expected a valid integer" in done.stderr


def test_a_worker_without_a_broker_says_how_to_get_one(tmp_path: Path) -> None:
    done = rollcast("worker", ROLLCAST_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "give its URL with --broker" in done.stderr


def test_images_are_posted_and_their_predictions_watched(url: str, digits: list[tuple[str, Path]]) -> None:
    files = [str(path) for _, path in digits[:3]]
    posted = rollcast("post", "door-1", *files, "--model", "digits-cnn", "--wait", "--json", ROLLCAST_URL=url)
    assert posted.returncode == 0, posted.stderr
    predictions = [json.loads(line) for line in posted.stdout.splitlines()]
    assert [prediction["label"] for prediction in predictions] == [label for label, _ in digits[:3]]
    watched = rollcast("watch", "door-1", "--after", "0", "--count", "3", "--json", "--url", url)
    assert [json.loads(line) for line in watched.stdout.splitlines()] == predictions
    lines = rollcast("watch", "door-1", "--after", predictions[0]["id"], "-n", "2", "--url", url).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [prediction["id"] for prediction in predictions[1:]]


def test_an_image_is_posted_from_standard_input(url: str, digits: list[tuple[str, Path]]) -> None:
    label, path = digits[0]
    done = rollcast("post", "door-2", "-", "--wait", "--url", url, stdin=path.read_bytes())
    assert f" {label} " in done.stdout, done.stderr


def test_a_recording_is_posted_in_blocks_at_its_rate(url: str, recording: Path) -> None:
    rows = len(recording.read_text().splitlines()) - 1
    done = rollcast(
        "post", "belt-1", str(recording), "--model", "activity-lstm", "--rows", "100", "--rate", "100000", "--url", url
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == -(-rows // 100)
    last = done.stdout.splitlines()[-1].split()[0]
    watched = rollcast("watch", "belt-1", "--after", "0", "-n", str(-(-rows // 100)), "--json", "--url", url).stdout
    prediction = json.loads(watched.splitlines()[-1])
    assert (prediction["id"], prediction["step"]) == (last, rows)


def test_watch_waits_for_what_is_to_come(url: str, digits: list[tuple[str, Path]]) -> None:
    lines: list[str] = []
    watcher = threading.Thread(
        target=lambda: lines.extend(
            rollcast("watch", "door-3", "-n", "1", "--after", "0", "--url", url).stdout.splitlines()
        )
    )
    watcher.start()
    rollcast("post", "door-3", str(digits[0][1]), "--url", url)
    watcher.join(60)
    assert len(lines) == 1


def test_models_and_streams_are_listed(url: str, digits: list[tuple[str, Path]]) -> None:
    models = {json.loads(line)["name"] for line in rollcast("models", "--json", "--url", url).stdout.splitlines()}
    assert {"digits-cnn", "activity-lstm"} <= models
    assert "digits-cnn" in rollcast("models", "--url", url).stdout
    rollcast("post", "door-4", str(digits[0][1]), "--wait", "--url", url)
    streams = {json.loads(line)["stream"] for line in rollcast("streams", "--json", "--url", url).stdout.splitlines()}
    assert "door-4" in streams
    assert "door-4" in rollcast("streams", "--url", url).stdout


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", ["--model", "digits-cnn"], "[422 "),
        (b"1,2,3\n", ["--model", "activity-lstm"], "columns"),
        (b"1,2,3\n", ["--model", "nobody"], "nobody"),
        (b"1,2,3,4,5,6\nx,2\n", ["--model", "activity-lstm"], "row 2 has 2 columns, the rows before 6"),
    ],
)
def test_what_the_server_refuses_is_told_readably(
    url: str, tmp_path: Path, content: bytes, arguments: list[str], told: str
) -> None:
    file = tmp_path / "input"
    file.write_bytes(content)
    done = rollcast("post", "bad-1", str(file), *arguments, "--wait", "--url", url)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_told(url: str) -> None:
    done = rollcast("post", "bad-1", "no-such.png", "--url", url)
    assert done.returncode == 2
    assert "no-such.png: No such file" in done.stderr


def test_no_server_is_told_with_its_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = rollcast("models", "--url", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"no server answers at http://127.0.0.1:{port}" in done.stderr


def test_check_proves_a_package_and_refuses_a_broken_one(tmp_path: Path) -> None:
    package = load_packages()[0]["digits-cnn"]
    good = rollcast("check", str(package.folder))
    assert good.returncode == 0, good.stdout
    assert "ok" in good.stdout
    broken = tmp_path / "digits-cnn" / "1"
    broken.mkdir(parents=True)
    for path in package.folder.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.onnx").write_bytes((package.folder / "model.onnx").read_bytes()[:-1])
    bad = rollcast("check", str(broken))
    assert bad.returncode == 1
    assert "refused" in bad.stdout
