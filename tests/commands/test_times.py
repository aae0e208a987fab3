"""Where a stage's time goes: accounts that add up, and the table of `cvsi times`."""

import json
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.commands.times import circumstances, of_run, records
from cvsi.core import run_log
from cvsi.core.devices import device
from cvsi.core.params import Compute


def test_time_inside_another_account_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_spent", {})
    with run_log.spending("compute"):
        time.sleep(0.05)
        with run_log.spending("read"):
            time.sleep(0.1)
        time.sleep(0.05)
    spent = run_log.spent()
    assert set(spent) == {"compute", "read"}
    assert 0.1 <= spent["compute"] < 0.19 and 0.1 <= spent["read"] < 0.19


def test_an_error_closes_its_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_spent", {})
    with pytest.raises(ValueError, match="no"), run_log.spending("read"):
        raise ValueError("no")
    before = run_log.spent()
    time.sleep(0.02)
    assert run_log.spent() == before
    with run_log.spending("write"):
        pass
    assert set(run_log.spent()) == {"read", "write"}


def test_other_threads_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_spent", {})

    def elsewhere() -> None:
        with run_log.spending("write"):
            time.sleep(0.01)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert run_log.spent() == {}


def record(folder: Path, name: str, stage: str, outcome: str = "done", seconds: float = 10.0) -> None:
    steps = [{"kind": "captions", "rows": 9, "distinct": 8, "found": 3, "computed": 5, "load_seconds": 2, "seconds": 4}]
    times = {"load": 2.0, "read": 1.0, "compute": 3.0, "write": 0.5}
    content = {"stage": stage, "arguments": ["toy"], "began": f"2026-01-0{name}T00:00:00.000+00:00", "seconds": seconds}
    content |= {"outcome": outcome, "times": times, "steps": steps, "python": "3.11", "device": "cuda"}
    content |= {"hardware": ["EPYC", "H100"], "libraries": {"torch": f"2.{name}"}}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "cache" / ".runs"
    place.mkdir(parents=True)
    monkeypatch.setenv("COLUMNS", "160")
    return place


def test_the_latest_run_that_ended_well_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(folder, "1", "captions", seconds=50)
    record(folder, "2", "captions", seconds=10)
    record(folder, "3", "captions", outcome="stopped by SIGTERM", seconds=70)
    assert [found.seconds for found in records(every=False)] == [10]
    assert [found.seconds for found in records(every=True)] == [50, 10, 70]
    monkeypatch.setattr("cvsi.commands.main.WIDE", 200)
    rows = [line.split() for line in CliRunner().invoke(app, ["times"]).output.splitlines()]
    row = next(row for row in rows if row[:2] == ["captions", "toy"])
    assert row[3:] == "10.0 s 2.0 s 1.0 s 3.0 s 0.5 s 3.5 s".split()  # other: 10 less 6.5
    step = next(row for row in rows if row[:2] == ["captions", "4.0"])
    assert step[1:] == "4.0 s 2.0 s 9 1 3 5 2.5".split()


def test_what_it_ran_on_and_with_is_said_below(folder: Path) -> None:
    record(folder, "1", "captions")
    record(folder, "2", "index")
    said = CliRunner().invoke(app, ["times"]).output.splitlines()
    assert said[-2:] == [
        "captions toy (10.0 s): cuda on EPYC, H100, Python 3.11, torch 2.1",
        "index toy (10.0 s): cuda on EPYC, H100, Python 3.11, torch 2.2",
    ]
    assert circumstances(of_run("toy", "tiny")) == said[-2:]
    assert of_run("other", "tiny") == []


def test_a_run_knows_the_device_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_facts", {})
    assert device(Compute(device="cpu")).type == "cpu"
    assert run_log._facts == {"device": "cpu"}
    assert all(name and name == name.strip() for name in run_log.hardware())


def test_a_record_that_a_kill_cut_short_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder, "1", "captions")
    (folder / "2.json").write_text('{"stage": "cap')
    assert len(records(every=True)) == 1
    assert "2.json: not a readable record" in capsys.readouterr().err


def test_without_records_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["times"])
    assert result.exit_code == 1 and "no records yet" in str(result.exception)
