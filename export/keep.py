"""The zoo: of each task the package that validates best, and no other."""

from __future__ import annotations

import math
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
    """NAME/VERSION of the package that validates best. Those within one standard error of it are as good, as far as
    validation can tell (Breiman et al., 1984); of these the first."""
    found = [_validation(place) for place in places]
    highest, examples = max(found)
    error = math.sqrt(highest * (1 - highest) / examples)
    return next(place for place, (accuracy, _) in zip(places, found, strict=True) if accuracy >= highest - error)


def validation(place: Path) -> float:
    return _validation(place)[0]


def _validation(place: Path) -> tuple[float, int]:
    """Accuracy, and of how many examples."""
    manifest = msgspec.json.decode((place / "manifest.json").read_bytes(), type=Manifest)
    return float(manifest.metrics["validation_accuracy"]), int(manifest.metrics["validation_examples"])


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
