"""What a control entry may say."""

from __future__ import annotations

import pytest

from service.contracts import Freshness, GapPolicy, RollingSettings
from service.controls import Control, NewSettings, decode_control, decode_new_settings, encode_control
from service.errors import Malformed

CONTROLS = [
    Control("reset"),
    Control("delete"),
    Control("restore", state=b"\0\xff"),
    Control("settings", NewSettings("tiny", RollingSettings(0.1), GapPolicy("reset", 2.0), Freshness("latest"), 60.0)),
    Control("settings", NewSettings()),
    Control("settings", NewSettings(state_ttl_s=60.0, idle_exit_s=60.0)),
    Control("silence", after="17-0"),
]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_reads_back(control: Control) -> None:
    assert decode_control(encode_control(control)) == control


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"action": "explode"}', "'explode': expected one of reset, settings, restore, delete"),
        (b'{"action": "reset", "when": 1}', "when"),
        (b'{"action": "settings"}', "settings goes with"),
        (b'{"action": "reset", "settings": {}}', "settings goes with"),
        (b'{"action": "restore"}', "state goes with"),
        (b'{"action": "restore", "state": "?"}', "base64"),
        (b'{"action": "settings", "settings": {"modle": "x"}}', "modle"),
        (b'{"action": "settings", "settings": {"state_ttl_s": 0}}', "state_ttl_s"),
        (b'{"action": "settings", "settings": {"state_ttl_s": 1e9}}', "state_ttl_s is 1000000000.0"),
        (b'{"action": "settings", "settings": {"gap": {"gap_s": -1}}}', "gap.gap_s is -1"),
        (b'{"action": "settings", "settings": {"rolling": {"enter": 0.2}}}', "0 ≤ exit ≤ enter ≤ 1"),
        (b'{"action": "settings", "settings": {"rolling": {"half_life_s": -1}}}', "rolling.half_life_s is -1"),
        (b'{"action": "settings", "settings": {"freshness": {"mode": "stale"}}}', "freshness"),
        (b'{"action": "settings", "settings": {"idle_exit_s": 0}}', "idle_exit_s"),
        (b'{"action": "settings", "settings": {"idle_exit_s": 1e9}}', "idle_exit_s is 1000000000.0"),
        (
            b'{"action": "settings", "settings": {"idle_exit_s": 9, "state_ttl_s": 5}}',
            "expected at most state_ttl_s, 5",
        ),
        (b'{"action": "silence"}', "after goes with"),
        (b'{"action": "silence", "after": "now"}', "after"),
        (b'{"action": "reset", "after": "17-0"}', "after goes with"),
        (b"[]", "expected JSON such as"),
    ],
)
def test_a_control_that_is_wrong_says_what_is(data: bytes, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_control(data)
    assert text in caught.value.detail


def test_settings_that_cannot_be_read_say_what_they_look_like() -> None:
    assert decode_new_settings(b"{}") == NewSettings()
    with pytest.raises(Malformed, match=r"expected JSON such as .*model"):
        decode_new_settings(b"model: tiny")
