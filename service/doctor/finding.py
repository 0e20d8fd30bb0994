"""What a check found, in words, and what to do about it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

CHECKS: Final = (
    "versions", "opencv", "packages",
    "broker", "role", "eviction", "memory", "persistence", "disk", "node-size", "connections", "clock",
    "deployment", "workers", "models", "shards", "lag", "quarantine", "streams",
    "api",
)  # fmt: skip


class Finding(msgspec.Struct, frozen=True):
    """`advice` is worth knowing and changes no exit status; `unknown` could not be told."""

    check: str  # one of CHECKS
    verdict: Literal["well", "advice", "fix", "unknown"]
    found: str
    cure: str = ""  # what to do; empty when all is well


def well(check: str, found: str) -> Finding:
    return Finding(check, "well", found)


def advice(check: str, found: str, cure: str) -> Finding:
    return Finding(check, "advice", found, cure)


def fix(check: str, found: str, cure: str) -> Finding:
    return Finding(check, "fix", found, cure)


def unknown(check: str, found: str, cure: str) -> Finding:
    return Finding(check, "unknown", found, cure)


def size(n: float) -> str:
    """
    >>> size(512), size(3 << 20), size(5.5 * 2**30)
    ('512 B', '3.0 MiB', '5.5 GiB')
    """
    if n < 1024:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1024:
            return f"{n:.1f} {unit}"
    return f"{n / 1024:.1f} TiB"


def listed(words: list[str], most: int = 8) -> str:
    """
    >>> listed(["3", "5", "8"], most=2)
    '3, 5, … (3)'
    """
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:most])}, … ({len(words)})"
