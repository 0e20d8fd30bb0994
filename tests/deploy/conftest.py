"""The image, built once a session; a machine where namespaces can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deploy.built import Built, build
from tests.deploy.composed import COMPOSE, DEMO
from tests.deployment import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an operator has after `make env`: a checkout, as far as the compose files need it, and an .env."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("deploy", "rollcast", "service", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("users.acl", "__pycache__"))
    for file in (COMPOSE, DEMO, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"))):
        shutil.copy2(file, folder)
    subprocess.run(["sh", str(folder / "deploy" / "env.sh")], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, or fails where REQUIRE_ALL=1, where a container cannot be played without an engine."""
    for program, package in (("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2")):
        needs(program, package)
    why = ""
    if sys.platform != "linux" or os.geteuid() != 0:
        why = "needs Linux and root: mount and network namespaces"
    elif subprocess.run(["unshare", "--mount", "--net", "--uts", "true"], capture_output=True, check=False).returncode:
        why = "this machine lets nobody make mount and network namespaces"
    if why:
        (pytest.fail if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip)(why)


@pytest.fixture(scope="session")
def built(namespaces: None) -> Iterator[Built]:
    """The image, from the lock and the checkout, by the commands of deploy/Dockerfile. Its packages are downloaded."""
    folder = Path(tempfile.mkdtemp(prefix="rci-"))
    folder.chmod(0o755)
    yield build(folder)
    shutil.rmtree(folder)
