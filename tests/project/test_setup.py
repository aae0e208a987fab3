"""`make setup`: one clear line where Python is too old, the disk is full, or there is no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

NOTHING_LISTENS = "http://127.0.0.1:9/"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of what set-up needs, without an environment."""
    for name in ("tools", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def setup(folder: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tools/setup.py in a folder, after some other Python code."""
    code = f"import runpy, shutil, sys\n{before}\nrunpy.run_path('tools/setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, text=True, capture_output=True, env=os.environ | environment
    )


def test_an_old_python(bare: Path) -> None:
    done = setup(bare, "sys.version_info = (3, 9, 2)", PATH="/missing")
    assert done.returncode == 1
    assert done.stderr == "setup: Python 3.9 is too old; install Python 3.11 or newer\n"


def test_a_full_disk(bare: Path) -> None:
    done = setup(bare, "shutil.disk_usage = lambda path: type('Usage', (), {'free': 1.5e9})")
    assert done.returncode == 1
    assert done.stderr == "setup: 1.5 GB free on this disk, the packages need 8; free some and run again\n"


def test_no_network(bare: Path) -> None:
    unreachable = {"PIP_INDEX_URL": NOTHING_LISTENS, "PIP_RETRIES": "0", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}
    done = setup(bare, **unreachable)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: no network: the package index cannot be reached")
    assert len(done.stderr.splitlines()) == 1


def test_an_up_to_date_environment_is_not_changed() -> None:
    before = (ROOT / ".venv" / "installed.txt").stat().st_mtime_ns
    done = setup(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (ROOT / ".venv" / "installed.txt").stat().st_mtime_ns == before


def test_requirements_are_pinned_and_hashed_without_an_index() -> None:
    for name in ("cpu.txt", "cuda.txt", "uv.txt"):
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        packages = [line for line in lines if line and line[0].isalnum()]
        assert packages and all("==" in line and line.endswith("\\") for line in packages)
        assert sum("--hash=sha256:" in line for line in lines) >= len(packages)
        assert not [line for line in lines if "://" in line or "--index" in line]
