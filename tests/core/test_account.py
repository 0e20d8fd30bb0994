"""What left a log unread is told by counts alone, and nothing else is."""

from __future__ import annotations

import pytest

from service.ports import Behind, Looked
from service.worker.account import LOOK_EVERY_S, WARY_S, Account


def account(entries: int = 10, read: int = 10) -> Account:
    """Of a shard whose last owner left `entries` behind it, and had read up to id `read`."""
    return Account(Behind(entries, read))


def log(added: int | None, first: int, last: int, length: int, ahead: int | None = None) -> Looked:
    return Looked(added, length, first, last, ahead)


@pytest.mark.parametrize(
    ("seen", "cursor", "missing"),
    [
        (log(10, 0, 0, 0), 10, 0),
        (log(12, 11, 12, 2), 10, 0),
        (log(15, 14, 15, 2), 10, 3),  # the log begins behind the cursor
        (log(15, 0, 0, 0), 10, 5),  # nothing is left
        (log(15, 9, 10, 2), 10, 5),  # the log ends at the cursor
        (log(15, 9, 15, 4, 3), 10, 2),  # it is short
        (log(1500, 9, 1500, 900), 10, 0),  # that cannot be told yet
        (log(15, 14, 15, 2), 8, 3),  # a takeover: behind all that may have been answered
        (log(12, 9, 12, 3, 3), 8, 0),  # a takeover: what is ahead may have been answered
        (log(None, 14, 15, 2), 10, 0),  # a broker that does not count
        (log(4, 3, 4, 2), 10, 0),  # a log that began anew
    ],
)
def test_what_is_missing_is_neither_known_nor_ahead(seen: Looked, cursor: int, missing: int) -> None:
    books = account()
    assert books.compare(seen, cursor, 0.0) == missing
    assert books.compare(seen, cursor, 1.0) == 0, "once"


def test_a_log_that_began_anew_is_counted_from_there() -> None:
    books = account()
    assert books.compare(log(4, 3, 4, 2), 10, 0.0) == 0
    assert books.compare(log(9, 8, 9, 2), 10, 1.0) == 5


def test_numbers_that_nobody_left_are_learnt_when_nothing_that_was_answered_is_ahead() -> None:
    books = Account(None)
    assert books.behind(0) is None
    assert books.compare(log(70, 21, 40, 20, 20), 20, 0.0) == 0, "some of these may have been answered before"
    assert books.behind(20) is None
    books.read(7)
    books.answered(7)
    assert books.compare(log(75, 41, 45, 5), 40, 1.0) == 0
    assert books.behind(40) == Behind(70, 40)
    books.read(5)
    assert books.compare(log(95, 55, 65, 11), 45, 2.0) == 9


def test_the_next_owner_is_told_of_what_no_record_says() -> None:
    books = account()
    assert books.compare(log(15, 14, 15, 2), 10, 0.0) == 3
    books.read(2)
    books.answered(1)
    assert books.behind(15) == Behind(11, 15), "it finds the three again"
    books.told(1)
    assert books.behind(15) == Behind(12, 15), "another stream lost the other two"
    books.told(5)
    assert books.behind(15) == Behind(14, 15)


def test_a_log_is_looked_at_when_something_came_and_not_too_often() -> None:
    books = account()
    assert books.look(1.0)
    books.compare(log(10, 0, 0, 0), 10, 1.9)
    assert not books.look(5.0), "nothing came"
    books.read(1)
    assert not books.look(1.0 + LOOK_EVERY_S / 2)
    assert books.look(1.0 + LOOK_EVERY_S)
    assert books.compare(log(20, 0, 0, 0), 11, 2.0) == 9
    books.read(1)
    assert books.look(2.01), "it may happen again at once"
    assert books.compare(log(21, 0, 0, 0), 12, 2.0 + WARY_S) == 0
    books.read(1)
    assert not books.look(2.02)
