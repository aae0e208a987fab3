"""The line `next: ...`: one per command, true for what is on disk, a command that exists; not in what programs read."""

import ast
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import polars as pl
import pytest
import typer
import yaml
from dvc.cli import parse_args
from typer.testing import CliRunner

from cvsi.commands import next_step
from cvsi.commands.main import app
from cvsi.commands.next_step import Step
from cvsi.commands.store import DAY, Part
from cvsi.commands.sweep_grid import Components, Split, Sweep
from cvsi.commands.sweep_noise import Noise
from cvsi.core import params, schema
from cvsi.datasets.formats import FORMATS
from tests.conftest import project_params
from tests.imports import ROOT

COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OLD, NEW = 1.0, 4e9  # seconds since 1970
TWO = {"first": {"dataset": "demo", "backbone": "tiny"}, "second": {"dataset": "demo", "backbone": "vit-b-32"}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the project's params.yaml and nothing that a stage makes."""
    monkeypatch.chdir(tmp_path)
    write({"demo-tiny": {"dataset": "demo", "backbone": "tiny"}})
    return tmp_path


def write(runs: dict[str, dict[str, str]]) -> params.Params:
    Path("params.yaml").write_text(yaml.safe_dump(project_params() | {"runs": runs}), encoding="utf-8")
    return params.load()


def make(*files: str) -> None:
    for name in files:
        path = Path("cache") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")


def part(used: float, *by: str, kind: str = "captions") -> Part:
    return Part(kind, Path("a" * 64), 1, 1, used, by, "", 0)


def swept(name: str, **weights: float) -> Sweep:
    components = Components(schema.QUERY_PARTS, schema.GALLERY_PARTS)
    row = {"split": "val", "name": name} | dict.fromkeys(components.names, 0.0) | weights | {"mAP@10": 50.0}
    return Sweep(pl.DataFrame([row]), components, FORMATS.get("circo", "test").protocol, 1, 1.0)


def session(served: bool, best: str) -> Any:
    return SimpleNamespace(run="demo-tiny", params=params.load(), served=served, best=best)


def summed(*runs: str, submissions: dict[str, list[str]] | None = None) -> Any:
    return SimpleNamespace(runs=[SimpleNamespace(run=run) for run in runs], submissions=submissions or {})


REPORT, SCORES = "demo/tiny/report/index.html", "demo/tiny/scores/metrics.json"
VECTORS = "demo/tiny/gallery_vectors/part-00000.parquet"


def steps() -> Iterator[tuple[str, Step, str]]:
    """What is on disk, and each step with what it must be; the files of one are there for those after it."""
    settings = params.load()
    compared: Any = SimpleNamespace(doubts=[])
    yield "no report", next_step.after_show("demo-tiny", settings), "dvc repro"
    yield "no vectors", next_step.after_open("demo-tiny", settings), "dvc repro"
    yield "no scores", next_step.after_summary(summed(), settings), "dvc repro"
    yield "no records", next_step.after_store([]), "cvsi check"
    make(REPORT, SCORES, VECTORS, ".runs/1.json")
    yield "report", next_step.after_show("demo-tiny", settings), "cvsi open demo-tiny"
    yield "vectors", next_step.after_open("demo-tiny", settings), "cvsi search demo-tiny --text 'a beach'"
    yield "compared", next_step.after_compare(compared, "demo-tiny", settings), "cvsi open demo-tiny"
    compared.doubts.append("demo-tiny: its scores were made by another recipe; run dvc repro")
    yield "stale", next_step.after_compare(compared, "demo-tiny", settings), "dvc repro"
    yield "one run", next_step.after_summary(summed("demo-tiny", "demo-tiny"), settings), "cvsi open demo-tiny"
    files = {"demo-tiny": ["cache/a b/test.json"]}
    hidden = next_step.after_summary(summed(submissions=files), settings)
    yield "hidden labels", hidden, "cvsi check-submission 'cache/a b/test.json'"
    yield "times", next_step.after_times(), "cvsi check"
    yield "used", next_step.after_store([part(OLD, "demo/captions"), part(NEW)]), "cvsi times"
    yield "permanent", next_step.after_store([part(OLD, kind="changed_files")]), "cvsi times"
    yield "unused", next_step.after_store([part(OLD)]), "cvsi store --unused-for 30"
    yield "deleted", next_step.after_deletion(), "cvsi store"
    again = next_step.after_deletion(["demo/tiny/scores", "demo/captions"])
    yield "deleted under an output", again, "dvc repro --force captions@demo"
    yield "nothing missing", next_step.after_check(0), "dvc repro"
    yield "missing", next_step.after_check(2), "cvsi check"
    yield "costs of methods", next_step.after_methods(), "cvsi check"
    yield "set", next_step.after_set("captioners.tiny.n", ["captioners.tiny.n: 5 -> 9"]), "dvc repro"
    yield "weight", next_step.after_set("datasets.demo.fusion.query.edited", ["a: 1 -> 2"]), "dvc repro"
    yield "data", next_step.after_set("active", ["active: [demo] -> [circo]"]), "cvsi check"
    yield "same", next_step.after_set("captioners.tiny.n", ["n: is 5 already; nothing changed"]), "cvsi check"
    yield "submission", next_step.after_check_submission(), "cvsi summary"
    yield "pack", next_step.after_pack(Path("my pack")), "cvsi unpack 'my pack'"
    yield "unpack", next_step.after_unpack(), "cvsi check"
    converted = next_step.after_convert_phi("models/phi.safetensors", "tiny", settings)
    yield "phi", converted, "cvsi set backbones.tiny.phi models/phi.safetensors"
    same = settings.backbone("tiny").phi or ""
    yield "same phi", next_step.after_convert_phi(same, "tiny", settings), "dvc repro"
    yield "phi of no backbone", next_step.after_convert_phi("x.safetensors", "", None), "cvsi check"
    best = swept("", edited=0.4, pseudo=0.6, image=1)
    value = "{query: {edited: 0.4, pseudo: 0.6}, gallery: {image: 1}}"
    sweep = next_step.after_sweep(best, "demo", "tiny", settings)
    yield "sweep", sweep, f"cvsi set datasets.demo.fusion '{value}'"
    own = swept("edited, cvsi", edited=1, image=1)
    yield "best already", next_step.after_sweep(own, "demo", "tiny", settings), "cvsi open demo-tiny"
    noise = Noise(0, 60, np.zeros(2), np.zeros(2), np.zeros(2), np.array([True, True]))
    near = replace(best, splits={"val": Split(np.zeros((2, 7)), 60, 1, noise, None, "")})
    yield "as good", next_step.after_sweep(near, "demo", "tiny", settings), "cvsi open demo-tiny"
    outside = replace(noise, within=np.array([True, False]))
    far = replace(near, splits={"val": replace(near.splits["val"], noise=outside)})
    yield "worse", next_step.after_sweep(far, "demo", "tiny", settings), f"cvsi set datasets.demo.fusion '{value}'"
    yield "no run", next_step.after_sweep(own, "demo", "vit-b-32", settings), "cvsi check"
    yield "search", next_step.after_search(session(False, "1")), "cvsi serve demo-tiny"
    served = next_step.after_search(session(True, "it's -1.png"))
    yield "served", served, """cvsi search demo-tiny '--like=it'"'"'s -1.png'"""
    yield "hostile", next_step.after_search(session(True, "a\x1b[2J.png")), "cvsi open demo-tiny"
    yield "no result", next_step.after_search(session(True, "")), "cvsi open demo-tiny"
    yield "version", next_step.after_version(), "cvsi check"
    added = ("cvsi check", "cvsi check --download", "dvc repro", "cvsi search mine-laptop --text 'a beach'")
    for step, command in zip(next_step.after_add("mine-laptop"), added, strict=True):
        yield f"added, then {command}", step, command
    (already,) = next_step.after_add("")
    yield "added already", already, "cvsi check"
    yield "presets", next_step.after_presets(), "cvsi add FOLDER --preset NAME"
    both = write(TWO)
    make("demo/vit-b-32/scores/metrics.json")
    yield "two runs", next_step.after_summary(summed("first", "second"), both), "cvsi compare first second"


def exists(line: str) -> None:
    """Parse the command of a line with the program's own parser; fails where it is none."""
    program, *words = shlex.split(line.removeprefix("next: "), comments=True)
    if program == "dvc":
        assert parse_args(words).cmd == "repro"
        return
    assert program == "cvsi" and words[0] in COMMANDS, line
    COMMANDS[words[0]].make_context(words[0], words[1:])


def test_each_step_is_what_the_state_calls_for_and_a_command_that_exists() -> None:
    seen = set()
    for state, step, command in steps():
        assert shlex.join(step.words) == command, state
        assert step.line.startswith(f"next: {command}") and "\n" not in step.line, state
        exists(step.line)
        seen.add(state)
    assert len(seen) == 46


def test_every_function_is_tested_and_used() -> None:
    functions = {name for name in vars(next_step) if name.startswith("after_")}
    tested = {node.attr for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Attribute)}
    used = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cvsi/commands").glob("*.py"))
    assert functions <= tested and all(f"next_step.{name}(" in used for name in functions)


def test_every_command_prints_one() -> None:
    """Each command's function, or one that it calls by name, ends with it."""
    tree = ast.parse((ROOT / "cvsi/commands/main.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    commands = [node for node in functions if any("app.command" in ast.unparse(each) for each in node.decorator_list)]
    assert len(commands) == len(COMMANDS)
    silent = [node.name for node in commands if "next_step." not in ast.unparse(node)]
    assert silent == ["serve", "explore"], "both run until Ctrl-C, and their own line says what to do"


def test_the_line_is_on_standard_error_alone(place: Path) -> None:
    make(".runs/1.json")
    record = {"stage": "world", "arguments": [], "began": "2026-01-01T00:00:00", "seconds": 1, "outcome": "done"}
    Path("cache/.runs/1.json").write_text(json.dumps(record))
    result = CliRunner().invoke(app, ["times"])
    assert result.exit_code == 0 and result.stderr == "next: cvsi check\n" and "next:" not in result.stdout


def test_json_has_none_on_either_stream(place: Path) -> None:
    result = CliRunner().invoke(app, ["summary", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["runs"] == [] and result.stderr == ""


def test_an_error_has_none() -> None:
    result = CliRunner().invoke(app, ["show", "demo-tiny"])
    assert result.exit_code == 1 and "next:" not in result.output


def test_set_and_check_print_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = CliRunner().invoke(app, ["set", "captioners.tiny.n", "9"])
    assert changed.exit_code == 0 and changed.stderr == "next: dvc repro\n"
    again = CliRunner().invoke(app, ["set", "captioners.tiny.n", "9"])
    assert again.stderr == "next: cvsi check\n" and "already" in again.stdout
    monkeypatch.setattr("cvsi.commands.check.report", lambda *_: 2)
    checked = CliRunner().invoke(app, ["check"])
    assert checked.exit_code == 1 and checked.stderr == "next: cvsi check    # when the missing things are there\n"


@pytest.mark.parametrize("days", [29, 31])
def test_rows_are_old_after_thirty_days(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 100 * DAY)
    words = next_step.after_store([part((100 - days) * DAY)]).words
    assert ("--unused-for" in words) == (days > 30)
