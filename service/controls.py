"""What a control entry says: reset, settings, restore, delete or silence. docs/formats.md shows each.

Whatever changes a stream beside its input goes through its log, so that it has a place in the stream's order.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from service.contracts import StreamSettings
from service.errors import Malformed

ACTIONS: Final = ("reset", "settings", "restore", "delete", "silence")
MAX_SETTING_S: Final = 315_360_000.0  # ten years


class NewSettings(StreamSettings, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Settings as somebody gives them: what is stored may come from a newer version, what is given must be known."""


class Control(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The `data` of a control entry, as JSON."""

    action: str  # one of ACTIONS
    settings: NewSettings | None = None  # of `settings`
    state: bytes | None = None  # of `restore`: a state object (portable.py), in base64
    after: Annotated[str, msgspec.Meta(pattern=r"^\d{1,20}-\d{1,20}$")] | None = None  # of `silence`: an entry's id


_control_decoder = msgspec.json.Decoder(Control)
_new_settings_decoder = msgspec.json.Decoder(NewSettings)


def encode_control(control: Control) -> bytes:
    return msgspec.json.encode(control)


def decode_control(data: bytes) -> Control:
    """Raises Malformed: it cannot be read, its action is unknown, what its action needs is missing or out of range."""
    try:
        control = _control_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f'control: {error}; expected JSON such as {{"action": "reset"}}') from None
    if control.action not in ACTIONS:
        raise Malformed(f"control action {control.action[:60]!r}: expected one of {', '.join(ACTIONS)}")
    for name, action in (("settings", "settings"), ("state", "restore"), ("after", "silence")):
        if (getattr(control, name) is not None) != (control.action == action):
            raise Malformed(f"control {control.action!r}: {name} goes with {action!r}, and only with it")
    if control.settings is not None:
        check_settings(control.settings)
    return control


def decode_new_settings(body: bytes) -> NewSettings:
    """Raises Malformed."""
    try:
        settings = _new_settings_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(
            f'settings: {error}; expected JSON such as {{"model": "digits-cnn", "state_ttl_s": 60}}'
        ) from None
    check_settings(settings)
    return settings


def check_settings(settings: StreamSettings) -> None:
    """Numbers within their ranges. Raises Malformed."""

    def expect(holds: bool, name: str, expected: str, found: object) -> None:
        if not holds:
            raise Malformed(f"settings: {name} is {found}, expected {expected}")

    def expect_seconds(name: str, value: float | None, *, zero: bool = False) -> None:
        holds = value is None or 0 < value <= MAX_SETTING_S or (zero and value == 0)
        expect(holds, name, f"seconds {'from' if zero else 'above'} 0, to {MAX_SETTING_S:g}", value)

    rolling = settings.rolling
    if rolling is not None:
        both = (rolling.exit, rolling.enter)
        expect(0 <= rolling.exit <= rolling.enter <= 1, "rolling (exit, enter)", "0 ≤ exit ≤ enter ≤ 1", both)
        for name in ("half_life_s", "dwell_s", "refractory_s", "update_s"):
            expect_seconds(f"rolling.{name}", getattr(rolling, name), zero=True)
    if settings.gap is not None:
        expect_seconds("gap.gap_s", settings.gap.gap_s)
    if settings.freshness is not None:
        expect_seconds("freshness.max_age_s", settings.freshness.max_age_s)
    expect_seconds("state_ttl_s", settings.state_ttl_s)
    expect_seconds("idle_exit_s", settings.idle_exit_s)
    if settings.state_ttl_s is not None and settings.idle_exit_s is not None:
        within = settings.idle_exit_s <= settings.state_ttl_s
        expect(within, "idle_exit_s", f"at most state_ttl_s, {settings.state_ttl_s:g}", settings.idle_exit_s)
