"""Where a stage's time is spent: timers that add up, and the table of `cvsi times`."""

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.commands.times import environment, of_run, records
from cvsi.core import run_log
from cvsi.core.devices import device
from cvsi.core.params import Compute


class Clock:
    """A clock that moves only by `advance`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the run log, with no time spent on anything so far."""
    clock = Clock()
    monkeypatch.setattr(run_log, "time", clock)
    monkeypatch.setattr(run_log, "_spent", {})
    return clock


def test_time_inside_another_timer_is_counted_once(clock: Clock) -> None:
    with run_log.timed("compute"):
        clock.advance(5)
        with run_log.timed("read"):
            clock.advance(10)
        clock.advance(7)
    assert run_log.spent() == {"compute": 12, "read": 10}


def test_an_error_stops_its_timer(clock: Clock) -> None:
    with pytest.raises(ValueError, match="no"), run_log.timed("read"):
        clock.advance(2)
        raise ValueError("no")
    clock.advance(20)
    assert run_log.spent() == {"read": 2}
    with run_log.timed("write"):
        clock.advance(3)
    assert run_log.spent() == {"read": 2, "write": 3}


def test_time_of_other_threads_is_not_counted(clock: Clock) -> None:
    def write() -> None:
        with run_log.timed("write"):
            clock.advance(1)

    thread = threading.Thread(target=write)
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
    runs = tmp_path / "cache" / ".runs"
    runs.mkdir(parents=True)
    monkeypatch.setenv("COLUMNS", "160")
    return runs


def test_the_latest_run_that_ended_well_is_shown(folder: Path) -> None:
    record(folder, "1", "captions", seconds=50)
    record(folder, "2", "captions", seconds=10)
    record(folder, "3", "captions", outcome="stopped by SIGTERM", seconds=70)
    assert [run.seconds for run in records(every=False)] == [10]
    assert [run.seconds for run in records(every=True)] == [50, 10, 70]
    rows = [line.split() for line in CliRunner().invoke(app, ["times"]).output.splitlines()]
    row = next(row for row in rows if row[:2] == ["captions", "toy"])
    other = "3.5 s"  # 10 less 6.5
    assert row[2:] == f"10.0 s 2.0 s 1.0 s 3.0 s 0.5 s {other} 2026-01-02 00:00:00".split()
    step = next(row for row in rows if row[:2] == ["captions", "9"])
    assert step[1:] == "9 1 3 5 4.0 s 2.0 s 2.5".split()


def test_devices_and_versions_are_printed_below(folder: Path) -> None:
    record(folder, "1", "captions")
    record(folder, "2", "index")
    lines = CliRunner().invoke(app, ["times"]).stdout.splitlines()
    assert lines[-2:] == [
        "captions toy (10.0 s): cuda on EPYC, H100, Python 3.11, torch 2.1",
        "index toy (10.0 s): cuda on EPYC, H100, Python 3.11, torch 2.2",
    ]
    assert environment(of_run("toy", "tiny")) == lines[-2:]
    assert of_run("other", "tiny") == []


def test_the_device_of_a_run_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_facts", {})
    assert device(Compute(device="cpu")).type == "cpu"
    assert run_log._facts == {"device": "cpu"}
    assert all(name and name == name.strip() for name in run_log.hardware())


def test_an_incomplete_record_of_a_killed_run_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder, "1", "captions")
    (folder / "2.json").write_text('{"stage": "cap')
    assert len(records(every=True)) == 1
    assert "2.json: not a readable record" in capsys.readouterr().err


def test_without_records_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["times"])
    assert result.exit_code == 1 and "no records yet" in str(result.exception)
