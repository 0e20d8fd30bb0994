"""The bounds themselves: an ordinary post passes them, and what is over a bound is found."""

from __future__ import annotations

import httpx
import pytest

from tests.deployment import Up
from tests.hostile.watching import FRAME, Bounds


def test_an_ordinary_frame_is_within_all_bounds(target: Up, bounded: Bounds) -> None:
    with bounded() as innocents:
        url = f"{target.url}/v1/streams/ordinary/frames?model=digits-cnn&wait=30"
        answer = httpx.post(url, content=FRAME, headers={"Content-Type": "image/png"}, timeout=60)
        assert answer.json()["label"] == "7"
    assert len(innocents.waits_s) >= 60


def test_what_costs_more_than_its_bound_is_found(target: Up, bounded: Bounds) -> None:
    with pytest.raises(AssertionError, match="of CPU, expected less than -1"), bounded(cpu_s=-1000.0):
        pass
    with pytest.raises(AssertionError, match="bytes above what they had"), bounded(memory=-(1 << 40), innocent=False):
        pass
