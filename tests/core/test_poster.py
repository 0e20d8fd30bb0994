"""What `rollcast post` does with answers: which number is free again, what ends it, what is said."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from rollcast import Accepted, Problem, ServerAway
from rollcast.errors import OURS, BadAnswer
from service.cli.contents import Block, Content
from service.cli.going_on import Waiting, reached
from service.cli.posting import Poster

FREE = [(400, "malformed"), (404, "unknown-model"), (413, "too-large"), (422, "wrong-shape"), (429, "backlog-full")]
TAKEN = [(409, "duplicate"), (410, "dropped"), (503, "append-unknown"), (504, "wait-timeout")]


class Stub:
    """A client that gives these answers, one a post, and Accepted behind them."""

    def __init__(self, *answers: Exception) -> None:
        self.answers, self.seqs = list(answers), list[int | None]()

    def stream(self, _: str) -> dict[str, Any]:
        return {"seq": 5, "backlog": {"entries": 0}}

    def models(self) -> dict[str, Any]:
        raise self.answers[0]

    def post_text(self, stream: str, _: str, *, seq: int | None, **__: Any) -> Accepted:
        self.seqs.append(seq)
        if self.answers:
            raise self.answers.pop(0)
        return Accepted("17-0", stream, "m")

    def post_samples(self, stream: str, _: Any, *, seq: int | None, **more: Any) -> Accepted:
        return self.post_text(stream, "", seq=seq, **more)


def poster(client: Stub, told: list[str], *, numbered: bool = False, patience_s: float = 60.0) -> Poster:
    return Poster(client, "s", numbered, numbered, patience_s, told.append)  # type: ignore[arg-type]


def problem(status: int, kind: str) -> Problem:
    return Problem(status, {"type": OURS + kind, "title": kind, "detail": "so"})


@pytest.mark.parametrize(("status", "kind"), FREE + TAKEN)
def test_the_number_of_an_entry_that_is_not_in_the_log_is_the_next_ones(status: int, kind: str) -> None:
    client = Stub(problem(status, kind))
    numbered = poster(client, [], numbered=True)
    with pytest.raises(Problem):
        numbered.post("a word", {}, goes_on=False)
    numbered.post("a word", {}, goes_on=False)
    assert client.seqs == ([6, 6] if (status, kind) in FREE else [6, 7])


def test_a_pipe_goes_on_where_it_is_not_known_whether_an_entry_is_in_the_log_and_never_posts_it_again() -> None:
    for failure in (problem(503, "append-unknown"), ServerAway("lost")):
        told: list[str] = []
        client = Stub(failure)
        assert poster(client, told).post("a word", {}, goes_on=True) is None
        assert (len(client.seqs), [one.partition(":")[0] for one in told]) == (1, ["an entry may be in the log or not"])
    for ends, patience_s in (
        (ServerAway("away"), 0.0),
        (BadAnswer("another"), 60.0),
        (problem(403, "forbidden"), 60.0),
    ):
        with pytest.raises(type(ends)):
            poster(Stub(ends), [], patience_s=patience_s).post("a word", {}, goes_on=True)


def test_a_first_block_that_does_not_fit_ends_a_pipe_and_a_later_one_or_a_text_does_not() -> None:
    block: Content = Block([[1.0]], None)
    with pytest.raises(Problem):
        poster(Stub(problem(422, "wrong-shape")), []).post(block, {}, goes_on=True)
    assert poster(Stub(problem(422, "wrong-shape")), []).post("a word", {}, goes_on=True) is None
    client = Stub()
    later = poster(client, [])
    later.post(block, {}, goes_on=True)
    client.answers.append(problem(422, "wrong-shape"))
    assert later.post(block, {}, goes_on=True) is None


def test_of_many_that_are_left_out_the_first_and_every_hundredth_are_said_and_the_status_is_1() -> None:
    told: list[str] = []
    leaves = poster(Stub(), told)
    for _ in range(250):
        leaves.leave_out("why")
    assert [one.partition("(")[2].partition(")")[0] for one in told] == ["1", "2", "3", "4", "5", "100", "200"]
    with pytest.raises(typer.Exit) as ended:
        leaves.end()
    assert (ended.value.exit_code, told[-1]) == (1, "250 entries without a prediction")


def test_what_answers_but_is_no_rollcast_is_not_waited_for() -> None:
    told: list[str] = []
    with pytest.raises(BadAnswer):
        reached(Stub(BadAnswer("another")), 60.0, Waiting(told.append))  # type: ignore[arg-type]
    assert told == []
