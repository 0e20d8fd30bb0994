"""Event times that `rollcast post` gives the entries of a recording."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rollcast import Accepted, Problem
from service.cli import app
from service.cli.contents import Block, sources
from service.cli.going_on import Numbers, Waiting, settled
from service.cli.posting import Clock
from service.cli.times import Times, read_time
from service.errors import StartError

MODELS = [
    {"name": "belt", "kind": "samples", "rows": {"rate_hz": 4.0, "features": ["400", "time"]}},
    {"name": "eye", "kind": "frame", "frames": {"rate_hz": None}},
    {"name": "talk", "kind": "text", "text": {}},
]
NOW = 1_763_860_000.0


class Stub:
    """A client of a server on which the stream looks like this, time after time; None: unknown."""

    def __init__(self, *looks: dict[str, Any] | None) -> None:
        self.looks = list(looks)

    def stream(self, _: str) -> dict[str, Any]:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if found is None:
            raise Problem(404, {"type": "urn:rollcast:problem:unknown-stream"})
        return found


def seen(time: float | None = None, *, waiting: int = 0, seq: int | None = None) -> dict[str, Any]:
    state = None if time is None else {"time": time}
    backlog = {"entries": waiting, "complete": True, "shard": waiting}
    return {"model": "belt", "settings": {}, "state": state, "last": None, "backlog": backlog, "seq": seq}


def times(
    tmp_path: Path, client: Stub, *, begin: float | None = None, rate: float | None = None, cut: int = 3, **more: Any
) -> list[float | None]:
    """Of the entries of a recording of 9 rows."""
    path = tmp_path / "rows.csv"
    path.write_text("1,2\n" * 9)
    given = sources([str(path)], cut, None)
    clock = Clock(client, "belt-1", MODELS, more.get("model", "belt"), more.get("hz"))  # type: ignore[arg-type]
    clock.begin(given, begin, rate)
    found = []
    for content in given[0].contents():
        found.append(clock.times(given[0], content).get("time"))
        clock.answered(Accepted("1763860000000-0", "belt-1", more.get("is", "belt")))
    return found


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.posting.time.time", lambda: NOW)


def test_the_last_row_of_a_recording_is_of_when_it_is_posted(tmp_path: Path) -> None:
    assert times(tmp_path, Stub(None)) == [NOW - 1.5, NOW - 0.75, NOW]
    assert times(tmp_path, Stub(None), rate=4.0) == [NOW + 0.5, NOW + 1.25, NOW + 2.0]
    assert times(tmp_path, Stub(None), rate=8.0) == [NOW - 0.5, NOW + 0.25, NOW + 1.0]
    assert times(tmp_path, Stub(None), rate=1.0) == [NOW + 0.5, NOW + 1.25, NOW + 2.0], "never later than it is posted"
    assert times(tmp_path, Stub(None), hz=8.0) == [NOW - 0.75, NOW - 0.375, NOW]
    assert times(tmp_path, Stub(None), begin=100.0) == [100.5, 101.25, 102.0]


def test_a_recording_lies_behind_what_the_stream_had_once_all_of_that_is_answered(tmp_path: Path) -> None:
    waits = seen(NOW - 100.0, waiting=5)
    assert times(tmp_path, Stub(waits, waits, seen(NOW + 7.0)), cut=9) == [NOW + 7.0 + 9 / 4]
    assert times(tmp_path, Stub(seen(NOW - 100.0)), cut=9) == [NOW]


def test_what_has_no_rate_is_of_when_it_comes(tmp_path: Path) -> None:
    assert times(tmp_path, Stub(None), model="eye") == [None] * 3
    assert times(tmp_path, Stub(None), model="talk") == [None] * 3


def test_of_a_new_stream_without_a_model_the_first_answer_says_the_rate(tmp_path: Path) -> None:
    """The server's clock gave the first entry its time."""
    assert times(tmp_path, Stub(None), model=None) == [None, NOW + 0.75, NOW + 1.5]
    assert times(tmp_path, Stub(seen(NOW + 7.0)), model=None) == [NOW + 7.75, NOW + 8.5, NOW + 9.25]
    with pytest.raises(typer.BadParameter, match="--model says"):
        times(tmp_path, Stub(None), model=None, begin=100.0)


def test_times_do_not_depend_on_how_rows_are_cut_and_go_on_at_another_rate() -> None:
    whole, cut = Times(NOW), Times(NOW)
    assert whole.after(3000, 1 / 3) == [cut.after(1, 1 / 3) for _ in range(3000)][-1]
    assert whole.after(2, 0.5) == round(NOW + 2999 / 3 + 1.0, 6)
    for begin in (NOW + 1e-7 * n for n in range(10)):  # a dwell time of two seconds is never a microsecond less
        each = Times(begin)
        found = [each.after(1, 0.04) for _ in range(100)]
        assert {round((after - before) * 1e6) for before, after in pairwise(found)} == {40_000}


@pytest.mark.parametrize("text", ["", "noon", "nan", "-1", "inf", "1e30"])
def test_what_is_no_time_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        read_time(text)


def test_numbers_begin_when_nothing_of_the_stream_waits() -> None:
    """Else those of entries that wait would be given once more, and what has them be no step."""
    later = Numbers(Stub(None, seen(waiting=2, seq=3), seen(seq=5)), "belt-1", asked=False)  # type: ignore[arg-type]
    found = []
    while len(found) < 5:
        later._look_again = 0.0
        found.append(later.take())
    assert found == [None, None, 6, 7, 8]
    later.give_back()
    assert later.take() == 8
    asked = Numbers(Stub(seen(waiting=2, seq=3), seen(seq=5)), "belt-1", asked=True)  # type: ignore[arg-type]
    assert [asked.take(), asked.take()] == [6, 7]
    assert Numbers(Stub(None), "belt-1", asked=True).take() == 0  # type: ignore[arg-type]
    assert Numbers(Stub(seen()), "belt-1", asked=False).take() == 0  # type: ignore[arg-type]


def test_a_stream_that_does_not_get_on_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.going_on.SETTLED_S", 0.0)
    with pytest.raises(StartError, match="4 entries of stream belt-1 still wait"):
        settled(Stub(seen(waiting=4)), "belt-1")  # type: ignore[arg-type]


def test_an_outage_is_said_once_and_that_it_is_over_too_but_a_short_one_not_at_all() -> None:
    told: list[str] = []
    waiting, why = Waiting(told.append), Problem(503, {"title": "no", "detail": "so"})
    waiting(why, 0.1)
    waiting(None)
    assert told == []
    for _ in range(3):
        waiting(why, 5.0)
    waiting(None)
    waiting(None)
    assert told == ["waiting for the server: 503 no: so", "the server answers again: it goes on"]


def test_rows_with_times_of_their_own_say_how_far_apart_they_lie() -> None:
    clock = Clock(Stub(None), "belt-1", MODELS, "belt", None)  # type: ignore[arg-type]
    block = Block([[1.0], [2.0], [3.0]], ["a"])
    block.times = [NOW, NOW + 0.2, NOW + 1.0]
    (source,) = sources(["-"], 1, "csv")
    assert clock.times(source, block) == {"time": NOW + 1.0, "interval_s": 0.5}
    block.times = [NOW] * 3  # as whole seconds are
    assert clock.times(source, block) == {"time": NOW, "interval_s": None}


@pytest.mark.parametrize("model", ["belt", None])
def test_a_heading_of_numbers_or_times_that_a_model_has_learnt_is_no_row_and_leaves_nothing_out(
    tmp_path: Path, model: str | None
) -> None:
    path = tmp_path / "rows.csv"
    for text, said in (("time,400\n1,2\n", [[2.0, 1.0]]), ("1,2\n", [[1.0, 2.0]])):
        path.write_text(text)
        (source,) = sources([str(path)], 1, None)
        Clock(Stub(None), "belt-1", MODELS, model, None).begin([source], None, None)  # type: ignore[arg-type]
        (block,) = source.contents()
        assert isinstance(block, Block)
        assert (block.rows, block.columns) == (said, ["400", "time"] if text[0] == "t" else None)


def test_what_is_asked_for_comes_before_what_a_column_of_times_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"time,a\n{NOW},1\n{NOW + 1},2\n")
    said = []
    for begin, hz in ((None, None), (100.0, None), (None, 8.0)):
        (source,) = sources([str(path)], 2, None)
        clock = Clock(Stub(None), "belt-1", MODELS, "belt", hz)  # type: ignore[arg-type]
        clock.begin([source], begin, None)
        (block,) = source.contents()
        assert isinstance(block, Block)
        said.append(clock.times(source, block))
    assert said == [{"time": NOW + 1, "interval_s": 1.0}, {"time": 100.25}, {"time": NOW + 1, "interval_s": 0.125}]


def test_rows_of_another_rate_than_the_models_say_so() -> None:
    (source,) = sources([__file__], 1, "csv")
    block = Block([[1.0], [2.0]], None)
    for hz, said in ((None, {"time": NOW + 0.25}), (2.0, {"time": NOW + 0.5, "interval_s": 0.5})):
        clock = Clock(Stub(None), "belt-1", MODELS, "belt", hz)  # type: ignore[arg-type]
        clock._times = Times(NOW)
        assert clock.times(source, block) == said


def test_two_options_that_both_say_when_the_rows_were_are_refused() -> None:
    given = ["post", "belt-1", __file__, "--kind", "csv", "--start-time", "100", "--time-column", "t"]
    said = CliRunner().invoke(app, given)
    assert (said.exit_code, "one of them says" in " ".join(said.stderr.replace("│", " ").split())) == (2, True)
