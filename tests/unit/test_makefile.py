"""What `make` says while it installs: a line a step, and pip's whole output where it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    {before}
    name = "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        info = "small-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PROJECT = """
[project]
name = "small"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def install(folder: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Have the Makefile install a project without dependencies, from nothing."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "constraints.txt").touch()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND.format(before=before))
    noisy = {"PIP_FIND_LINKS": str(folder / "nowhere"), "PIP_NO_INDEX": "1"}
    return subprocess.run(
        ["make", "--no-print-directory", ".venv/.installed"],
        cwd=folder,
        env=os.environ | noisy | {"MAKEFLAGS": "", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.mark.slow
def test_installation_says_one_line(tmp_path: Path) -> None:
    done = install(tmp_path, before="print('noise of a build')")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("Installing ast-stream and what it needs into .venv")
    assert (tmp_path / ".venv/.installed").exists()


@pytest.mark.slow
def test_installation_that_fails_shows_all_that_pip_said(tmp_path: Path) -> None:
    done = install(tmp_path, before="raise SystemExit('no compiler here')")
    assert done.returncode != 0
    assert "no compiler here" in done.stderr
    assert "pip could not install everything" in done.stderr
    assert not (tmp_path / ".venv/.installed").exists()
