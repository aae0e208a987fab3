"""`make setup`: one clear line where no Python fits, the disk is full, or there is no network."""

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


GPU = {"cuda.txt": "#!/bin/sh\nexit 0\n", "cpu.txt": "#!/bin/sh\nexit 9\n"}  # nvidia-smi, with a GPU and without one


def programs(folder: Path, file: str, *pythons: str) -> str:
    """A PATH with an nvidia-smi that decides on the requirement file, and Pythons that say which one goes on."""
    (folder / "bin").mkdir()
    written = {"nvidia-smi": GPU[file]}
    for name in pythons:
        major, minor = name.removeprefix("python").split(".")
        written[name] = f'#!/bin/sh\ncase "$1" in -c) echo {major} {minor};; *) echo goes on in {name};; esac\n'
    for name, text in written.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return str(folder / "bin")


@pytest.mark.parametrize(
    ("file", "version", "fitting"),
    [("cpu.txt", (3, 9), "3.11, 3.12, 3.13 or 3.14"), ("cpu.txt", (3, 15), "3.11, 3.12, 3.13 or 3.14"),
     ("cuda.txt", (3, 13), "3.11 or 3.12"), ("cuda.txt", (3, 14), "3.11 or 3.12"),
     ("cuda.txt", (3, 10), "3.11 or 3.12")],
)  # fmt: skip
def test_a_python_that_does_not_fit(bare: Path, file: str, version: tuple[int, int], fitting: str) -> None:
    done = setup(bare, f"sys.version_info = {(*version, 2)}", PATH=programs(bare, file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"setup: requirements/{file} needs Python {fitting}; this is Python {version[0]}.{version[1]}, and none of "
        "those is on PATH; install one\n"
    )


@pytest.mark.parametrize(
    ("file", "pythons", "chosen"),
    [
        ("cpu.txt", ["python3.10", "python3.13"], "python3.13"),
        ("cuda.txt", ["python3.13", "python3.12"], "python3.12"),
        ("cuda.txt", ["python3.12", "python3.11", "python3.14"], "python3.11"),
    ],
)
def test_a_python_that_fits_goes_on(bare: Path, file: str, pythons: list[str], chosen: str) -> None:
    done = setup(bare, "sys.version_info = (3, 10, 2)", PATH=programs(bare, file, *pythons))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"goes on in {chosen}\n", "")


def test_a_python_that_cannot_be_started_is_passed_over(bare: Path) -> None:
    path = programs(bare, "cuda.txt", "python3.12")
    (bare / "bin" / "python3.11").write_text("#!/bin/sh\necho not installed >&2\nexit 127\n")  # as pyenv's
    (bare / "bin" / "python3.11").chmod(0o755)
    assert setup(bare, "sys.version_info = (3, 13, 2)", PATH=path).stdout == "goes on in python3.12\n"


@pytest.mark.parametrize(("file", "needed"), [("cpu.txt", "8.3"), ("cuda.txt", "10.4")])
def test_a_full_disk(bare: Path, file: str, needed: str) -> None:
    disk = "shutil.disk_usage = lambda path: type('Usage', (), {'free': 3 << 29})"
    done = setup(bare, disk, PATH=programs(bare, file))
    assert done.returncode == 1
    assert done.stderr == f"setup: 1.5 GiB free on this disk, the packages need {needed}; free some and run again\n"


@pytest.mark.parametrize(("file", "size"), [("cpu.txt", "6.8 GiB"), ("cuda.txt", "8.9 GiB")])
def test_the_size_is_printed_and_an_environment_of_another_python_is_replaced(bare: Path, file: str, size: str) -> None:
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "old").touch()
    (bare / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho 3 8\n")
    (bare / ".venv" / "bin" / "python").chmod(0o755)
    done = setup(bare, "sys.executable = '/bin/false'", PATH=programs(bare, file))  # nothing can be installed by it
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"setup: installing requirements/{file} into .venv ({size}; takes minutes, once)" in done.stdout
    assert not (bare / ".venv" / "old").exists()


@pytest.mark.parametrize("advice", ["", ".git", "no_scm"])
def test_a_copy_without_git_is_told_what_to_do(bare: Path, advice: str) -> None:
    (bare / "dvc.yaml").touch()
    (bare / ".dvc").mkdir()
    (bare / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n" + "    no_scm = true\n" * (advice == "no_scm")
    )
    if advice == ".git":
        (bare / ".git").mkdir()
    told = "setup: no git repository here, and dvc needs one: run git init, or: dvc config core.no_scm true\n"
    done = setup(bare, "sys.version_info = (3, 9, 2)", PATH="/missing")
    assert done.stdout == (told if not advice else "") and len(done.stderr.splitlines()) == 1


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
