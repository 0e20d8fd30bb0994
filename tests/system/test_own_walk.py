"""docs/models.md's road for own data and own networks, walked as written: from raw files to `rollcast watch`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.deployment import ROOT, Up, environment

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh test|sh up|python mynets\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def write_recordings(folder: Path, count: int = 24) -> None:
    """Two sensors on a pump: a worn one hums at another frequency."""
    rng = np.random.default_rng(0)
    for label, pace in (("ok", 0.3), ("worn", 0.9)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            at = pace * np.arange(rng.integers(40, 70)) + rng.uniform(0, 6)
            rows = np.stack([np.sin(at), np.cos(at)], -1) + rng.normal(0, 0.1, (len(at), 2))
            np.savetxt(folder / label / f"{number:02d}.csv", rows, "%.4f", ",", header="acc,mic", comments="")


def run(script: str, folder: Path, **more: str) -> str:
    words = {"python": f"{sys.executable}", "rollcast": f"{sys.executable} -m service.cli"}
    script = re.sub(r"^(python|rollcast)\b", lambda found: words[found[1]], script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder, env=environment() | {"OMP_NUM_THREADS": "1"} | more, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_road_from_raw_files_to_a_live_stream_is_as_written(tmp_path: Path) -> None:
    (_, train), (_, up), (_, watch), (kind, net), (_, pack), (_, watch_own) = BLOCKS
    assert kind == "python mynets.py"
    write_recordings(tmp_path / "pumps")
    assert "pumps, version 1" in run(train.replace("--minutes 1", "--minutes 0.2"), tmp_path)
    assert (tmp_path / "runs" / "pumps" / "choice.json").is_file()
    (tmp_path / "mynets.py").write_text(net)
    assert "pumps-own/1" in run(pack, tmp_path)
    arguments = up.split()[2:]
    assert arguments == ["--models", "runs/pumps/package"]
    deployment = Up(tmp_path / "h", "--models", str(tmp_path / arguments[1]))
    try:
        url = deployment.ready().url
        seen = run(watch, tmp_path, ROLLCAST_URL=url)
        assert [int(step) for step in re.findall(r"step (\d+)", seen)] == [10, 20, 30]
        assert "enter worn" in seen, "a worn pump is heard, by the recording's own times"
        assert "step 30 " in run(watch_own, tmp_path, ROLLCAST_URL=url)
    finally:
        status = deployment.stop()
    assert status == 0
