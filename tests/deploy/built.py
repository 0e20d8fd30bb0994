"""The image, built by the very commands of its Dockerfile, on this machine's Python instead of the base image's."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.deploy.dockerfile import Stage, read
from tests.deploy.namespaces import PLAIN_PATH, PYTHON, Image, run_once
from tests.deployment import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_PASSED = (
    "PIP_",
    "SSL_",
    "REQUESTS_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


class Built(NamedTuple):
    """What a build left."""

    image: Image
    stages: dict[str, Path]  # what each changed; the last is ""
    stage: Stage  # the last


def build(folder: Path) -> Built:
    """Carries out every instruction of every stage; raises with what a command said."""
    base = folder / "base"
    (base / "usr/local/bin").mkdir(parents=True)
    if not Path(PYTHON).with_name("python").exists():  # Debian's is python3 only
        (base / "usr/local/bin/python").symlink_to(PYTHON)
    changes: dict[str, Path] = {}
    stages = read(DOCKERFILE)
    for number, stage in enumerate(stages):
        changes[stage.name] = upper = folder / f"stage-{number}"
        upper.mkdir()
        _carry_out(stage, folder, upper, base, changes)
    last = stages[-1]
    image = Image(
        layers=[changes[last.name], base],
        entrypoint=last.command("ENTRYPOINT"),
        command=last.command("CMD"),
        environment=last.environment(),
        user=last.last("USER"),
        workdir=last.last("WORKDIR"),
    )
    return Built(image, changes, last)


def _carry_out(stage: Stage, folder: Path, upper: Path, base: Path, changes: dict[str, Path]) -> None:
    workdir = "/"
    environment = {"PATH": f"{Path(PYTHON).parent}:{PLAIN_PATH}"} | {
        n: v for n, v in os.environ.items() if n.startswith(_PASSED)
    }
    for number, step in enumerate(stage.steps):
        if step.name == "WORKDIR":
            workdir = step.words
            (upper / workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            *options, source_words = step.words.partition(" ") if step.words.startswith("--from=") else ("", step.words)
            stage_name = options[0].removeprefix("--from=")
            _copy(changes[stage_name] if stage_name else ROOT, upper, workdir, shlex.split(source_words))
        elif step.name == "RUN":
            name = f"run-{upper.name}-{number}"
            run_once(folder, name, ["sh", "-c", step.words], environment, layers=[base], upper=upper, workdir=workdir)
            for made in (folder / name / "root").iterdir():  # folders that the root did not have before
                if made.is_dir() and not made.is_symlink() and any(made.iterdir()):
                    shutil.move(made, upper / made.name)
        elif step.name == "ENV":
            environment |= stage.environment()


def _copy(root: Path, upper: Path, workdir: str, words: list[str]) -> None:
    *sources, target = words
    place = upper / str(Path(workdir) / target).lstrip("/")
    for source in sources:
        found = root / source.lstrip("/")
        if found.is_dir():
            if root == ROOT:
                shutil.copytree(found, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:  # of an earlier stage: linked, which is as good and takes no time
                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
        else:
            into = place / found.name if target.endswith("/") or len(sources) > 1 else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into)
