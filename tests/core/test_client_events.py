"""What the client makes of a subscription's lines."""

from __future__ import annotations

from rollcast.events import EventReader, Subscription


def test_an_event_that_was_cut_after_its_id_was_not_seen() -> None:
    subscription = Subscription("cam-*", "0", None)
    subscription.request()
    for line in ("id: first", ": heartbeat", "", 'data: {"type":"gap","reason":"lost"}', "id: second"):
        assert subscription.feed(line) is None
    assert subscription.cursor == "first"
    assert subscription.feed("") is not None
    assert subscription.cursor == "second"


def test_what_was_half_read_before_a_cut_is_forgotten() -> None:
    subscription = Subscription("cam-1", "0", None)
    subscription.request()
    subscription.feed("event: gap")
    subscription.request()
    assert subscription.feed("") is None


def test_comments_and_unknown_fields_are_no_events() -> None:
    reader = EventReader()
    assert [reader.feed(line) for line in ("retry: 1000", "", ": heartbeat", "", "foo: bar", "")] == [None] * 6


def test_a_request_repeats_patterns_and_says_where_it_stands() -> None:
    request = Subscription(["cam-*", "belt-1"], None, "drop_oldest").request()
    assert request["url"] == "/v1/predictions"
    assert request["params"] == [("stream", "cam-*"), ("stream", "belt-1"), ("when_full", "drop_oldest")]
    request = Subscription("cam-1", "17-0", None).request()
    assert (request["url"], request["params"]) == ("/v1/streams/cam-1/predictions", [("after", "17-0")])
