"""Which model an entry is for."""

from __future__ import annotations

import pytest

from service.choosing import choose_model
from service.contracts import ModelInfo
from service.errors import EntryError, ModelNeeded, OtherModel, UnknownModel, WrongKind, WrongShape

MODELS = {
    model.name: model
    for model in (
        ModelInfo("digits", 1, "frame"),
        ModelInfo("walk", 1, "samples", 6),
        ModelInfo("gesture", 1, "samples", 6),
        ModelInfo("pump", 1, "samples", 3),
    )
}


def test_the_order_is_asked_bound_default_only_one() -> None:
    assert choose_model(MODELS, "samples", asked="walk", default="gesture", width=6).name == "walk"
    assert choose_model(MODELS, "samples", bound="walk", default="gesture", width=6).name == "walk"
    assert choose_model(MODELS, "samples", default="gesture", width=6).name == "gesture"
    assert choose_model(MODELS, "samples", width=3).name == "pump"
    assert choose_model(MODELS, "frame").name == "digits"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"kind": "samples", "width": 6}, ModelNeeded, "gesture (6 columns), pump (3 columns), walk (6 columns)"),
        ({"kind": "samples", "width": 9}, ModelNeeded, "no model takes samples with 9 columns"),
        ({"kind": "text"}, ModelNeeded, "no model takes text"),
        ({"kind": "frame", "asked": "nobody"}, UnknownModel, "digits, gesture, pump, walk"),
        ({"kind": "frame", "asked": "walk"}, WrongKind, "'walk' takes samples, not frame"),
        ({"kind": "samples", "asked": "walk", "bound": "pump", "width": 6}, OtherModel, "bound to model 'pump'"),
        ({"kind": "samples", "asked": "nobody", "bound": "pump", "width": 3}, UnknownModel, "'nobody'"),
        ({"kind": "samples", "asked": "walk", "width": 3}, WrongShape, "takes rows of 6 columns, these have 3"),
    ],
)
def test_what_does_not_fit_is_said_with_the_candidates(
    given: dict[str, object], error: type[EntryError], text: str
) -> None:
    with pytest.raises(error) as raised:
        choose_model(MODELS, **given)  # type: ignore[arg-type]
    assert text in raised.value.detail
