"""Each requirement file can be installed, from wheels, on every Python that tools/setup.py and README name for it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT
from tools import setup

# Packages without wheels, which are built: pure Python, with nothing to compile.
BUILT = ("antlr4-python3-runtime",)
NO_NETWORK = ("Failed to fetch", "error sending request", "dns error", "Could not connect", "tcp connect", "timed out")
CASES = [(file, python) for file, pythons in setup.PYTHONS.items() for python in pythons]


def resolve(file: Path, python: tuple[int, int], folder: Path) -> subprocess.CompletedProcess[str]:
    """Look for a wheel for every package of a file and a Python; nothing is installed. Skips without a registry."""
    command = [sys.executable, "-m", "uv", "pip", "sync", "--dry-run", "--only-binary", ":all:", "--require-hashes"]
    for name in BUILT:
        command += ["--no-binary", name]
    command += ["--python-version", "{}.{}".format(*python), "--target", str(folder / "none"), str(file)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    if done.returncode and any(text in done.stderr for text in NO_NETWORK):
        pytest.skip("the package index cannot be reached")
    return done


@pytest.mark.parametrize(("file", "python"), CASES, ids=lambda value: str(value))
def test_there_are_wheels_for_each_python(tmp_path: Path, file: str, python: tuple[int, int]) -> None:
    done = resolve(ROOT / "requirements" / file, python, tmp_path)
    assert done.returncode == 0, done.stderr
    packages = (ROOT / "requirements" / file).read_text(encoding="utf-8").count(" \\\n    --hash")
    assert 250 < int(re.findall(r"Would install (\d+) packages", done.stderr)[0]) <= packages


@pytest.mark.parametrize("python", [(3, 13), (3, 14)])
def test_a_python_without_wheels_is_found_out(tmp_path: Path, python: tuple[int, int]) -> None:
    done = resolve(ROOT / "requirements" / "cuda.txt", python, tmp_path)
    assert done.returncode != 0 and "no wheels" in done.stderr + done.stdout, done.stderr


def test_readme_names_these_pythons() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    cpu, cuda = setup.PYTHONS["cpu.txt"], setup.PYTHONS["cuda.txt"]
    assert cuda == (cuda[0], cuda[-1]) and set(cuda) <= set(cpu)
    names = ["{}.{}".format(*python) for python in (cpu[0], cpu[-1], cuda[0], cuda[-1])]
    assert "Python {} to {} ({} or {} with a GPU)".format(*names) in text
    assert f'requires-python = ">={names[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
