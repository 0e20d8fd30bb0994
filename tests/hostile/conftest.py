"""Inputs that must harm nobody, sent to one whole deployment, with innocent streams beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployment import Up
from tests.hostile.watching import Bounds


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A whole `rollcast up` that hostile input is sent to. It must outlive all of it, and stop in order."""
    up = Up(tmp_path_factory.mktemp("h"))
    try:
        yield up.ready()
    finally:
        status = up.stop()
    assert status == 0


@pytest.fixture(scope="session")
def bounded(target: Up) -> Bounds:
    """`with bounded(memory=…, cpu_s=…): send it`: what `target` may spend on it (tests/hostile/watching.py)."""
    return Bounds(target)
