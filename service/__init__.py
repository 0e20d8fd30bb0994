"""The server: api, workers, broker, and the command line."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def installed(distribution: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


VERSION: Final = installed("rollcast") or "unknown"  # run from a source tree that was never installed
