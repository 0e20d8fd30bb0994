"""The make targets, where a machine lacks what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deployment import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout without any environment."""
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [needs("make", "make"), "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def python(folder: Path, code: str) -> str:
    """A Python that runs `code` first."""
    path = folder / "some-python"
    (folder / "first.py").write_text(code)
    path.write_text(
        f'#!/bin/sh\ncase "$1" in -c) exec {sys.executable} -c "exec(open(\'{folder}/first.py\').read()); $2";; '
        f"--version) echo Python 3.9.2;; esac\nexit 1\n"
    )
    path.chmod(0o755)
    return str(path)


def test_without_a_target_the_targets_are_listed(folder: Path) -> None:
    shown = make(folder).stdout
    for target in ("demo", "test", "check", "soak", "env", "lock", "bench", "clean"):
        assert f"\n  {target} " in shown


def test_a_python_without_venv_names_the_package_to_install(folder: Path) -> None:
    hidden = python(folder, "import sys; sys.modules['ensurepip'] = None")
    done = make(folder, "demo", f"PYTHON={hidden}")
    assert done.returncode == 2
    assert "apt-get install python3-venv" in done.stderr
    assert not (folder / ".venv").exists()


def test_an_old_python_is_refused_with_what_is_needed(folder: Path) -> None:
    old = python(folder, "import sys; sys.version_info = (3, 9)")
    done = make(folder, "test", f"PYTHON={old}")
    assert done.returncode == 2
    assert "is Python 3.9.2; expected 3.11 or newer" in done.stderr


def test_no_python_at_all_is_told(folder: Path) -> None:
    done = make(folder, "demo", "PYTHON=no-such-python")
    assert done.returncode == 2
    assert "no no-such-python here" in done.stderr
