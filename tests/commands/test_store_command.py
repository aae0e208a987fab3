"""The store's upkeep: what it holds, what outputs use, what goes, and that nobody's work is taken from under them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands import store
from cvsi.commands.main import app
from cvsi.core import tables
from cvsi.core.errors import CvsiError
from cvsi.models import model_id
from cvsi.store.locks import alone
from tests.conftest import project_params

STORE = Path("cache/store")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shelves in a store, made by another process; an output is made from one of them."""
    monkeypatch.chdir(tmp_path)
    code = """
import pyarrow as pa
from cvsi.store import Shelf
schema = pa.schema({"key": pa.string(), "value": pa.string()})
for model in ("used", "unused"):
    Shelf("cache/store", "captions", {"model": model}, schema).add(pa.table({"key": ["a"], "value": ["b"]}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with tables.output("captions", "toy", recipe={"model": "used"}):
        pass
    return tmp_path


def old(days: float) -> None:
    """Let everything in the store be that many days old."""
    for place in [*STORE.rglob("*")]:
        os.utime(place, (time.time() - days * store.DAY,) * 2)


def made_by() -> list[str]:
    return sorted(part.made_by for part in store.survey(STORE))


def test_what_is_there_who_made_it_and_which_outputs_use_it() -> None:
    parts = {part.made_by: part for part in store.survey(STORE)}
    assert set(parts) == {"model used", "model unused"}
    assert parts["model used"].by == ("toy/captions",) and parts["model unused"].by == ()
    part = parts["model used"]
    assert (
        part.kind == "captions"
        and part.files == 2
        and part.size == sum(file.stat().st_size for file in part.place.iterdir())
    )


def test_what_nobody_used_for_so_long_goes_and_what_an_output_was_made_from_stays() -> None:
    assert store.remove(STORE, 1) == []
    old(10)
    assert store.remove(STORE, 11) == []
    (gone,) = store.remove(STORE, 9)
    assert gone.made_by == "model unused" and made_by() == ["model used"]


def test_what_stands_for_a_model_that_is_not_here_is_shown_and_stays(workspace: Path) -> None:
    code = "from cvsi import weights; weights.record('models/absent', '0' * 64, 'cache/store')"
    subprocess.run([sys.executable, "-c", code], check=True)
    old(100)
    assert {part.kind for part in store.survey(STORE)} == {"captions", "weights"}
    assert [part.kind for part in store.remove(STORE, 1)] == ["captions"]
    assert model_id.recorded("models/absent", STORE) == "0" * 64


def test_a_stage_that_finds_its_rows_counts_as_a_use() -> None:
    old(10)
    code = """
import polars as pl, pyarrow as pa
from cvsi.store import Shelf
schema = pa.schema({"key": pa.string(), "value": pa.string()})
Shelf("cache/store", "captions", {"model": "unused"}, schema).mend(pl.Series(["a"]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.remove(STORE, 9) == []


def test_nothing_goes_while_somebody_has_a_shelf_open() -> None:
    old(10)
    code = """
import sys, pyarrow as pa
from cvsi.store import Shelf
Shelf("cache/store", "captions", {"model": "other"}, pa.schema({"key": pa.string()}))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(CvsiError, match="somebody is at work in this store"):
            store.remove(STORE, 9)
        process.kill()  # the kernel lets go of the lock
    assert len(store.remove(STORE, 9)) == 1


def test_who_opens_a_shelf_waits_for_a_removal() -> None:
    code = """
import pyarrow as pa
from cvsi.store import Shelf
Shelf("cache/store", "captions", {}, pa.schema({"key": pa.string()}))
"""
    with alone(STORE) as held:
        assert held
        process = subprocess.Popen([sys.executable, "-c", code])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
    assert process.wait(20) == 0


def test_only_what_the_store_made_is_touched(tmp_path: Path) -> None:
    (STORE / "captions" / "notes").mkdir()
    (STORE / "mine").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (STORE / "captions" / ("0" * 64)).symlink_to(outside)
    (STORE / "captions" / ".half-0123.partial").mkdir()
    old(10)
    store.remove(STORE, 0)
    assert outside.is_dir() and (STORE / "captions" / "notes").is_dir() and (STORE / "mine").is_dir()
    assert not list(STORE.rglob("*.partial"))


def test_damaged_files_are_counted_apart() -> None:
    part = next(part for part in store.survey(STORE) if part.by)
    file = next(part.place.glob("*.parquet"))
    file.write_bytes(b"")
    code = """
import polars as pl, pyarrow as pa
from cvsi.store import Shelf
schema = pa.schema({"key": pa.string(), "value": pa.string()})
Shelf("cache/store", "captions", {"model": "used"}, schema).mend(pl.Series(["a"]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    part = next(part for part in store.survey(STORE) if part.by)
    assert (part.files, part.damaged) == (1, 1)
    (part.place / "recipe.json").write_text("[")
    assert "?" in made_by()


def test_no_store_is_one_line() -> None:
    with pytest.raises(CvsiError, match="no store there yet"):
        store.survey(Path("nowhere"))


def test_the_command_shows_asks_and_removes(workspace: Path) -> None:
    (workspace / "params.yaml").write_text(yaml.safe_dump(project_params()))
    old(10)
    run = CliRunner().invoke
    shown = run(app, ["store"])
    assert "model unused" in shown.output and "toy/captions" in shown.output and "10 days ago" in shown.output
    refused = run(app, ["store", "--unused-for", "5"], input="n\n")
    assert refused.exit_code == 1 and made_by() == ["model unused", "model used"]
    assert "1 part removed" in run(app, ["store", "--unused-for", "5"], input="y\n").output
    (STORE / "captions" / ".half-0123.partial").mkdir()
    assert "0 parts removed" in run(app, ["store", "--unused-for", "5", "--yes"]).output
    assert not list(STORE.rglob("*.partial"))
    assert made_by() == ["model used"]
