"""Writes the dashboards: `python -m deploy.grafana.generate`. With `--check` it only says whether they are as here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.grafana.broker import BROKER
from deploy.grafana.models import MODELS
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.stages import STAGES
from deploy.grafana.streams import STREAMS

DASHBOARDS: Final = (OVERVIEW, STREAMS, STAGES, MODELS, BROKER)
FOLDER: Final = Path(__file__).parent / "dashboards"


def rendered() -> Iterator[tuple[Path, str]]:
    """Each file and what is to stand in it."""
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard.as_json(), indent=1, ensure_ascii=False) + "\n"
        yield FOLDER / f"{dashboard.uid}.json", text


def main() -> int:
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in rendered() if not path.exists() or path.read_text("utf-8") != text]
        print(f"not up to date: {', '.join(stale)}" if stale else "up to date")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in rendered():
        path.write_text(text, "utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
