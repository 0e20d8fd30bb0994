"""What the demo shows and counts, without a server."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from service.demo.feeds import digit_feed, sensor_feed
from service.demo.screen import Screen
from service.demo.tally import Tally


def prediction(entry_id: str, label: str, stream: str = "digit-1") -> dict[str, Any]:
    return {
        "type": "prediction", "id": entry_id, "stream": stream, "model": "m", "label": label, "score": 0.9, "step": 1,
        "rolling": {"label": label, "score": 0.8},
    }  # fmt: skip


def test_a_prediction_is_counted_whether_it_or_the_answer_to_its_post_comes_first() -> None:
    tally = Tally({"m": 0.5})
    tally.on_posted("digit-1", "1-0", "7")
    tally.on_record("digit-1", prediction("1-0", "7"))
    tally.on_record("digit-1", prediction("2-0", "3"))
    tally.on_posted("digit-1", "2-0", "7")
    assert (tally.answered["m"], tally.right["m"], tally.unanswered) == (2, 1, 0)
    assert tally.accuracy("m") == 0.5


def test_records_of_an_earlier_run_are_not_counted() -> None:
    tally = Tally({"m": 0.5})
    tally.on_record("digit-1", prediction("1-0", "7"))
    tally.on_posted("digit-2", "1-0", "7")  # the same id in another stream is another entry
    assert (tally.answered["m"], tally.unanswered) == (0, 1)
    assert tally.accuracy("m") == 0


def test_what_is_not_predicted_is_kept_with_its_reason() -> None:
    tally = Tally({"m": 0.5})
    tally.on_posted("digit-1", "1-0", "7")
    tally.on_record("digit-1", {"type": "refused", "id": "1-0", "stream": "digit-1", "detail": "no end mark"})
    assert tally.refused == ["digit-1: refused, no end mark"]
    assert tally.unanswered == 0


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path, float | None]]:
    files = [(str(digit), tmp_path / f"{digit}-{n}.png", None) for digit in range(10) for n in range(3)]
    for label, path, _ in files:
        path.write_bytes(f"{label} {path.name}".encode())
    return files


def test_a_digit_stream_shows_different_images_of_one_digit_for_three_seconds_then_another(
    images: list[tuple[str, Path, float | None]],
) -> None:
    feed = digit_feed("digit-1", "m", images, seed=1)
    shown = list(islice(feed.entries, 240))
    turns = [shown[at : at + 12] for at in range(0, 240, 12)]
    assert feed.interval_s * 12 == 3
    for turn in turns:
        assert len({entry.label for entry in turn}) == 1
        assert len({entry.image for entry in turn}) == 3
        assert all(entry.image is not None and entry.image.startswith(entry.label.encode()) for entry in turn)
    assert {turn[0].label for turn in turns[:10]} == {str(digit) for digit in range(10)}
    assert [entry.start for entry in shown] == [True] + [False] * 239


def test_a_sensor_stream_replays_recordings_at_five_times_real_time(tmp_path: Path) -> None:
    for name in ("walking", "lying"):
        (tmp_path / f"{name}.csv").write_text("a,b\n" + "".join(f"{n},{n}.5\n" for n in range(10)))
    samples = [("walking", tmp_path / "walking.csv", 4.0), ("lying", tmp_path / "lying.csv", 4.0)]
    feed = sensor_feed("sensor-1", "m", samples, first=1)
    shown = list(islice(feed.entries, 6))
    assert feed.interval_s == 0.2  # for one second of recording
    assert [len(entry.rows) for entry in shown] == [4, 4, 2, 4, 4, 2]
    assert shown[0].rows[3] == [3.0, 3.5]
    assert [entry.start for entry in shown] == [True, False, False, True, False, False]
    assert [shown[0].label, shown[3].label] == ["lying", "walking"]
    times = [entry.time for entry in shown if entry.time is not None]
    assert [round(later - sooner, 6) for sooner, later in pairwise(times)] == [
        1.0,
        0.5,
        1.0,
        1.0,
        0.5,
    ]


@pytest.mark.parametrize(
    ("right", "unanswered", "status"), [(95, 0, 0), (94, 0, 1), (95, 1, 1)], ids=["good", "low", "unanswered"]
)
def test_the_exit_status_says_whether_the_demo_went_well(right: int, unanswered: int, status: int) -> None:
    tally = Tally({"digits": 0.95, "activity": 0.85})
    tally.answered.update(digits=100, activity=100)
    tally.right.update(digits=right, activity=85)
    for n in range(unanswered):
        tally.on_posted("digit-1", f"{n}-0", "7")
    assert Screen("http://127.0.0.1", tally).close() == status


def test_a_demo_without_a_prediction_did_not_go_well() -> None:
    assert Screen("http://127.0.0.1", Tally({"digits": 0.95})).close() == 1
