"""The zoo: of each task the package that validates best, and no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from service.contracts import Manifest

LIMIT_BYTES = 4 << 20  # of a package that is kept


class TooLarge(Exception):
    """A package that nobody would want to download with the source."""


def best(places: Sequence[Path]) -> Path:
    """NAME/VERSION of the highest accuracy in validation; of equal ones the first."""
    return max(places, key=validation)  # max keeps the first


def validation(place: Path) -> float:
    manifest = msgspec.json.decode((place / "manifest.json").read_bytes(), type=Manifest)
    return float(manifest.metrics["validation_accuracy"])


def keep(place: Path, rivals: Sequence[str], zoo: Path) -> Path:
    """Copies NAME/VERSION into the zoo, whole or not at all; what stood there under NAME or a rival's name goes.

    Raises TooLarge.
    """
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise TooLarge(f"{place}: {size} bytes, expected at most {LIMIT_BYTES}")
    name, version = place.parts[-2:]
    draft = zoo / f".{name}.{os.getpid()}"
    shutil.copytree(place, draft / version)
    for each in {name, *rivals}:
        shutil.rmtree(zoo / each, ignore_errors=True)
    return draft.rename(zoo / name) / version
