"""How a stage ends: signals, errors of the user, and bugs, each with one line and no incomplete output."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

PATIENCE = 60.0  # seconds for a process to end, also while the cores are busy

SCRIPT = """
import time
from pathlib import Path
from cvsi.core import stage_runner, tables
from cvsi.core.console import info
from cvsi.core.errors import CvsiError

def work(kind: str) -> None:
    '''End in one of several ways.'''
    with tables.output("work", "toy") as out:
        out.file("half.txt").write_text("half")
        if kind == "sleep":
            info("ready")
            time.sleep(600)
        elif kind == "known":
            raise CvsiError("file.json: broken, correct it")
        elif kind == "bug":
            raise KeyError("what is this?")
        elif kind == "full":
            Path("full.txt").write_text("more than the limit")
        elif kind == "missing":
            Path("missing.txt").read_text()

if __name__ == "__main__":
    stage_runner.run(work)
"""


def start(folder: Path, kind: str) -> subprocess.Popen[str]:
    script = folder / "work.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), kind]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(folder: Path) -> dict[str, object]:
    (file,) = (folder / "cache" / ".runs").glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "sleep")
    assert process.stdout is not None and "ready" in process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)  # the stage itself sleeps ten times as long
    assert process.returncode == 128 + number
    assert err.splitlines() == [
        f"work sleep: stopped by {number.name}; finished blocks are kept, run it again to go on"
    ]
    assert list((tmp_path / "cache" / "toy").iterdir()) == []
    assert number.name in str(record(tmp_path)["outcome"])


def test_a_signal_while_modules_are_imported_ends_it_too(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "from cvsi.core import stage_runner\nimport time\nprint('importing', flush=True)\ntime.sleep(600)\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and "importing" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and len(err.splitlines()) == 1 and "stopped by SIGTERM" in err


def test_an_error_of_the_system_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text("from cvsi.core import stage_runner\nopen('missing/file')\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), "toy"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 1 and done.stderr.startswith("work toy: missing/file: No such file or directory; libr")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("known", "work known: file.json: broken, correct it"),
        ("missing", "work missing: missing.txt: No such file or directory"),
        ("bug", "work bug: a bug, please report it with cache/.runs/work-"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, kind: str, line: str) -> None:
    process = start(tmp_path, kind)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and err.startswith(line)
    assert list((tmp_path / "cache" / "toy").iterdir()) == []
    if kind == "bug":
        (details,) = (tmp_path / "cache" / ".runs").glob("*.traceback.txt")
        assert "Traceback" in details.read_text(encoding="utf-8") and details.name in err


def test_a_script_runs_the_package_beside_it_and_not_the_environments(tmp_path: Path) -> None:
    for name in ("cvsi", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "cvsi" / "datasets" / "index.py").open("a", encoding="utf-8") as code:
        code.write("\nprint('code of', __file__)\n")
    command = [sys.executable, str(tmp_path / "stages" / "index.py"), "toy"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.stdout == f"code of {tmp_path / 'cvsi' / 'datasets' / 'index.py'}\n"
    assert done.returncode == 1 and "params.yaml: no such file" in done.stderr


def test_a_run_leaves_a_record_outside_every_output(tmp_path: Path) -> None:
    assert start(tmp_path, "nothing").wait() == 0
    content = record(tmp_path)
    assert content["outcome"] == "done" and content["arguments"] == ["nothing"]
    assert sorted(path.name for path in (tmp_path / "cache" / "toy" / "work").iterdir()) == [
        "half.txt",
        "provenance.json",
    ]


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("known", 1, "work known: file.json: broken, correct it (no record of this run: File too large)"),
        (
            "bug",
            1,
            "work bug: a bug, please report it (its traceback could not be written: File too large): KeyError: ",
        ),
        ("full", 1, "work full: input or output: File too large; raise the limit on a file's size (ulimit -f), then "),
        ("nothing", 0, "work nothing: done, but no record of this run: File too large"),
    ],
)
def test_it_is_one_line_where_nothing_can_be_written(tmp_path: Path, kind: str, code: int, line: str) -> None:
    script = SCRIPT.replace('with tables.output("work", "toy") as out:', "if True:")
    (tmp_path / "work.py").write_text(script.replace('out.file("half.txt").write_text("half")', "pass"))
    done = subprocess.run(
        [sys.executable, "work.py", kind],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)),
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(line), done.stderr


def test_a_wrong_number_of_arguments_is_explained(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and "kind" in done.stderr
