"""What tests of whole processes may ask for."""

from __future__ import annotations

import pytest


@pytest.fixture
def quick_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test should neither wait to learn that its worker is there, nor be refused because that is no news yet."""
    monkeypatch.setattr("service.api.monitor.POLL_S", 0.05)
    monkeypatch.setattr("service.api.monitor.FRESH_S", 0.0)
