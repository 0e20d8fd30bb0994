"""What is released: `python -m build` gives a wheel with the server, the client and the models, and nothing else."""

from __future__ import annotations

import email
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.deploy.built import Built
from tests.deployment import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By `python -m build`, from the files that git knows or would take."""
    folder = tmp_path_factory.mktemp("release")
    ask = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(ask, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", "out"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "out").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def held(wheel: Path) -> dict[str, bytes]:
    """name -> content, of its packages."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_rollcast_service_and_models_and_nothing_else(held: dict[str, bytes]) -> None:
    assert {name.partition("/")[0] for name in held} == {"rollcast", "service", "models"}
    for folder in ("rollcast", "service", "models"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert {name for name in held if name.startswith(f"{folder}/") and name.endswith(".py")} == here
    assert "rollcast/py.typed" in held


def test_the_zoo_is_in_it_whole(held: dict[str, bytes]) -> None:
    here = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in (ROOT / "models" / "zoo").rglob("*")
        if path.is_file()
    }
    assert {name: content for name, content in held.items() if name.startswith("models/zoo/")} == here


def test_the_page_at_docs_is_in_it_whole(held: dict[str, bytes]) -> None:
    here = {str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "service" / "page").iterdir()}
    assert {name: content for name, content in held.items() if name.startswith("service/page/")} == here


def test_its_metadata_is_complete(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == "rollcast"
    assert metadata["Version"] == project["version"]
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Author"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) == {"test", "train"}


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    code = [path for folder in ("rollcast", "service", "models", "export") for path in (ROOT / folder).rglob("*.py")]
    said = [path for path in [*code, *(ROOT / "deploy").glob("Dockerfile*")] if f'"{version}"' in path.read_text()]
    assert said == []


def test_the_image_has_the_same_wheel(built: Built, held: dict[str, bytes]) -> None:
    """Which that build installs into a clean environment, and which serves (test_image, test_compose_runs)."""
    (wheel,) = (built.stages["build"] / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        there = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert there == held
