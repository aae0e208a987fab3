"""`cvsi store`: sizes, uses by outputs, what is deleted, and that no running process loses rows."""

import os
import shutil
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
from cvsi.store.locks import exclusive_lock
from cvsi.store.rows import Store
from tests.conftest import project_params
from tests.models.checkpoints import folder_of, without

STORE = Path("cache/store")


def run(code: str, folder: Path = Path()) -> None:
    """Run some code in a process of its own, which holds the store's shared lock until it ends."""
    head = "import polars as pl, pyarrow as pa\nfrom cvsi.store.rows import RowStore\n"
    head += "schema = pa.schema({'key': pa.string(), 'value': pa.string()})\n"
    subprocess.run([sys.executable, "-c", head + code], cwd=folder, check=True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two recipes in a store, written by another process."""
    folder = tmp_path_factory.mktemp("filled")
    code = """
for model in ("used", "unused"):
    rows = RowStore("cache/store", "captions", {"model": model}, schema)
    rows.append(pa.table({"key": ["a"], "value": ["b"]}))
"""
    run(code, folder)
    return folder


@pytest.fixture(autouse=True)
def workspace(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the filled store, and an output that was made from one of the two recipes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    with tables.output("captions", "toy", recipe={"model": "used"}):
        pass
    return tmp_path


def old(days: float) -> None:
    """Make everything in the store that many days old."""
    for path in [*STORE.rglob("*")]:
        os.utime(path, (time.time() - days * store.DAY,) * 2)


def made_by() -> list[str]:
    return sorted(part.made_by for part in store.survey(STORE))


def test_sizes_recipes_and_outputs_are_shown() -> None:
    parts = {part.made_by: part for part in store.survey(STORE)}
    assert set(parts) == {"model used", "model unused"}
    assert parts["model used"].by == ("toy/captions",) and parts["model unused"].by == ()
    part = parts["model used"]
    assert (
        part.kind == "captions"
        and part.files == 2
        and part.size == sum(file.stat().st_size for file in part.folder.iterdir())
    )


def test_unused_rows_are_deleted_and_rows_of_an_output_are_kept() -> None:
    assert store.remove(STORE, 1) == []
    old(10)
    assert store.remove(STORE, 11) == []
    (deleted,) = store.remove(STORE, 9)
    assert deleted.made_by == "model unused" and made_by() == ["model used"]


def test_the_digest_of_a_missing_model_is_shown_and_kept(workspace: Path) -> None:
    code = """
from pathlib import Path
from cvsi.models.model_id import record
from cvsi.store.rows import Store
record("models/absent", "0" * 64, Store(Path("cache/store")))
"""
    run(code)
    old(100)
    assert {part.kind for part in store.survey(STORE)} == {"captions", "weights"}
    assert [part.kind for part in store.remove(STORE, 1)] == ["captions"]
    assert model_id.recorded("models/absent", Store(STORE)) == "0" * 64


def test_reading_stored_rows_counts_as_a_use() -> None:
    old(10)
    run('RowStore("cache/store", "captions", {"model": "unused"}, schema).quarantine_corrupt(pl.Series(["a"]))')
    assert store.remove(STORE, 9) == []


def test_nothing_is_deleted_while_another_process_uses_the_store() -> None:
    old(10)
    code = """
import sys, pyarrow as pa
from cvsi.store.rows import RowStore
RowStore("cache/store", "captions", {"model": "other"}, pa.schema({"key": pa.string()}))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(CvsiError, match="another process uses this store"):
            store.remove(STORE, 9)
        process.kill()  # the kernel releases the lock
    assert len(store.remove(STORE, 9)) == 1


def test_opening_rows_waits_for_a_deletion() -> None:
    code = """
import pyarrow as pa
from cvsi.store.rows import RowStore
print("opening", flush=True)
RowStore("cache/store", "captions", {}, pa.schema({"key": pa.string()}))
"""
    with exclusive_lock(STORE) as held:
        assert held
        process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True)
        assert process.stdout is not None and process.stdout.readline() == "opening\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    process.communicate()
    assert process.returncode == 0


def test_only_folders_of_the_store_are_deleted(tmp_path: Path) -> None:
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
    file = next(part.folder.glob("*.parquet"))
    file.write_bytes(b"")
    run('RowStore("cache/store", "captions", {"model": "used"}, schema).quarantine_corrupt(pl.Series(["a"]))')
    part = next(part for part in store.survey(STORE) if part.by)
    assert (part.files, part.damaged) == (1, 1)
    (part.folder / "recipe.json").write_text("[")
    assert "?" in made_by()


def test_no_store_is_one_line() -> None:
    with pytest.raises(CvsiError, match="no store yet"):
        store.survey(Path("nowhere"))


def test_the_command_shows_asks_and_removes(workspace: Path) -> None:
    (workspace / "params.yaml").write_text(yaml.safe_dump(project_params()))
    old(10)
    invoke = CliRunner().invoke
    shown = invoke(app, ["store"])
    rows = {line.rpartition("  ")[2]: line.split() for line in shown.stdout.splitlines()}
    assert rows["model used"][2:-2] == ["2", "800", "bytes", "10", "days", "ago", "toy"]
    assert rows["model unused"][-3] == "-" and shown.stderr == "next: cvsi check\n"
    refused = invoke(app, ["store", "--unused-for", "5"], input="n\n")
    assert refused.exit_code == 1 and made_by() == ["model unused", "model used"]
    assert "1 part deleted" in invoke(app, ["store", "--unused-for", "5"], input="y\n").output
    (STORE / "captions" / ".half-0123.partial").mkdir()
    assert "0 parts deleted" in invoke(app, ["store", "--unused-for", "5", "--yes"]).output
    assert not list(STORE.rglob("*.partial"))
    assert made_by() == ["model used"]


def digest_of(model: str) -> str:
    return next(part.folder.name for part in store.survey(STORE) if part.made_by == f"model {model}")


@pytest.mark.parametrize("digits", [8, 20, 64])
def test_the_rows_of_one_recipe_are_deleted_by_its_digest(digits: int, workspace: Path) -> None:
    """Also those of an output here, and however recently they were used."""
    (workspace / "params.yaml").write_text(yaml.safe_dump(project_params()))
    used, invoke = digest_of("used"), CliRunner().invoke
    refused = invoke(app, ["store", "--remove", used[:digits]], input="n\n")
    assert refused.exit_code == 1 and "model used" in refused.output and "toy/captions" in refused.output
    assert made_by() == ["model unused", "model used"]
    done = invoke(app, ["store", "--remove", used[:digits]], input="y\n")
    assert f"deleted captions/{used}, 2 files (model used)" in done.output
    assert made_by() == ["model unused"] and not list(STORE.rglob("*.partial"))
    assert "deleted captions/" in invoke(app, ["store", "--remove", digest_of("unused"), "--yes"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "0" * 64], "no recipe begins with 0000"),
        (["--remove", "0123456"], "give the first 8 or more digits of a recipe"),
        (["--remove", "../captions"], "give the first 8 or more digits of a recipe"),
        (["--remove", "weights"], "give the first 8 or more digits of a recipe"),
        (["--remove", "0" * 8, "--unused-for", "3"], "--remove and --unused-for: give one of the two"),
    ],
)
def test_what_names_no_recipe_deletes_nothing(arguments: list[str], message: str, workspace: Path) -> None:
    (workspace / "params.yaml").write_text(yaml.safe_dump(project_params()))
    failed = CliRunner().invoke(app, ["store", *arguments, "--yes"])
    assert message in str(failed.exception) and made_by() == ["model unused", "model used"]


def test_digits_that_begin_several_recipes_are_refused() -> None:
    for kind, name in (("captions", "ab" * 32), ("edits", "ab" * 31 + "cd")):
        (STORE / kind / name).mkdir(parents=True)
    with pytest.raises(CvsiError, match=r"2 recipes begin with abababab .*; give more digits"):
        store.part_of(STORE, "abababab")
    assert store.part_of(STORE, "ab" * 31 + "cd").kind == "edits"


def test_one_recipe_is_not_deleted_while_another_process_uses_the_store() -> None:
    part = store.part_of(STORE, digest_of("used"))
    code = "import sys; from pathlib import Path; from cvsi.store.locks import shared_lock\n"
    code += "shared_lock(Path('cache/store')); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(CvsiError, match="another process uses this store"):
            store.remove_part(STORE, part)
        process.kill()
    assert made_by() == ["model unused", "model used"]
    store.remove_part(STORE, part)
    assert made_by() == ["model unused"]


def test_models_that_do_not_fit_are_named_with_their_rows(workspace: Path) -> None:
    """Rows of a broken captioner stay in use as long as nothing has to be computed; this finds them."""
    content = project_params()
    (workspace / "params.yaml").write_text(yaml.safe_dump(content))
    invoke = CliRunner().invoke
    assert "every model folder of params.yaml fits its model" in invoke(app, ["store", "--check-models"]).output
    broken = folder_of("blip2", without("language_projection."), workspace / "broken")
    weights = model_id.content_digest(broken)
    run(f"RowStore('cache/store', 'captions', {{'weights': '{weights}'}}, schema).append("
        "pa.table({'key': ['a'], 'value': ['b']}))")  # fmt: skip
    content["captioners"]["tiny"]["model"] = "broken"
    (workspace / "params.yaml").write_text(yaml.safe_dump(content))
    found = invoke(app, ["store", "--check-models"])
    (part,) = (part for part in store.survey(STORE) if part.made_by.startswith("weights"))
    assert found.exit_code == 1 and "broken: the checkpoint does not fit its model: 2 keys are missing" in found.output
    assert f"rows made with it: captions: cvsi store --remove {part.folder.name[:16]}" in found.output
    assert invoke(app, ["store", "--remove", part.folder.name[:16], "--yes"]).exit_code == 0
    assert "rows made with it: none in the store" in invoke(app, ["store", "--check-models"]).output
