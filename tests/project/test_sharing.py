"""A team's work: clones that share by git, a DVC remote and a store; several at work at once."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from cvsi.core.digest import digest
from cvsi.core.schema import STORED_CAPTIONS
from cvsi.store.rows import Shelf
from tests.conftest import Workspace, repro
from tests.project.collaboration import (
    SECRET,
    START,
    Team,
    cached,
    call,
    clean,
    commit,
    computed,
    copy,
    fetch,
    found,
    lock_of,
    publish,
    remote,
)

# As in tests/project/test_pipeline.py: the shared project takes a minute to make.
pytestmark = pytest.mark.xdist_group("project")


@pytest.fixture(scope="module", params=["folder", "s3"])
def team(
    request: pytest.FixtureRequest, project: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    place = tmp_path_factory.mktemp(f"team-{request.param}")
    with remote(request.param, place) as where:
        yield found(project, place, where)


@pytest.fixture(scope="module")
def mate(team: Team) -> Workspace:
    """Whoever cloned, and pulled, and did nothing else."""
    return team.join("mate")


def test_a_teammate_pulls_reproduces_and_computes_nothing(team: Team, mate: Workspace) -> None:
    assert mate.bytes_below("demo") == team.first.bytes_below("demo")
    ran, said = repro(mate)
    assert ran == [] and "Running stage 'index@demo'" in said
    assert computed(mate) == {}
    assert mate.bytes_below("demo") == team.first.bytes_below("demo")
    assert clean(mate)


def test_no_key_is_written_anywhere(team: Team, mate: Workspace) -> None:
    for file in team.place.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_of_another_prompt_only_what_it_made_is_pushed_and_pulled(team: Team, mate: Workspace) -> None:
    prompt = mate.path / "cvsi" / "prompts" / "demo_edited.txt"
    prompt.write_text(prompt.read_text(encoding="utf-8").strip() + " Be terse.\n", encoding="utf-8")
    before, had = cached(mate), cached(team.first)
    ran, _ = repro(mate)
    assert ran == ["edits", "query_vectors", "scores", "report"] and computed(mate)["edits"] == 32
    commit(mate, "a terse prompt")
    publish(mate)
    rows = computed(team.first)
    fetch(team.first)
    assert cached(team.first) - had == cached(mate) - before != set()
    assert repro(team.first)[0] == [] and computed(team.first) == rows
    assert team.first.bytes_below("demo") == mate.bytes_below("demo")
    assert clean(team.first)


# Which remote it is changes nothing here, and this takes half a minute.
@pytest.mark.parametrize("team", ["folder"], indirect=True)
def test_with_the_teams_store_only_new_images_are_captioned(team: Team) -> None:
    store = team.place / "store"
    shutil.copytree(team.first.path / "cache" / "store", store)
    known = set(pl.read_parquet(store / "captions" / "*" / "*.parquet")["key"])
    clone = team.join("collector", START)
    images = clone.params(store=str(store))["world"]["gallery"] + 20
    clone.params(world__gallery=images)
    _, said = repro(clone)
    new = set(column(clone, "index/images", "digest")) - known
    # Tests before this one may have had the store's owner caption ten of them.
    assert 10 <= len(new) <= 20 and f"{images} images: {images - len(new)} in the store" in said
    rows = computed(clone)
    assert rows["captions"] == rows["image_vectors"] == len(new)
    assert set(rows) == {"captions", "image_vectors", "text_vectors"}
    assert len(column(clone, "captions/*", "captions")) == 5 * images
    assert not (clone.path / "cache" / "store").exists()


def test_two_fill_one_store_at_once_while_a_third_reads(project: Workspace, tmp_path: Path) -> None:
    store, people = tmp_path / "store", [tmp_path / "one", tmp_path / "two"]
    captions = pl.read_parquet(project.path / "cache/demo/captions/*.parquet")
    wanted = dict(captions.select("digest", "captions").iter_rows())
    (recipe,) = (project.path / "cache" / "store" / "captions").glob("*/recipe.json")
    processes = [filling(project, place, store) for place in people]
    seen = set()
    while any(process.poll() is None for process in processes):
        shelf = Shelf(store, "captions", json.loads(recipe.read_bytes()), STORED_CAPTIONS)
        keys = captions["digest"].unique()
        assert shelf.mend(keys) == []  # half a file would be damaged
        there = keys.filter(~keys.is_in(shelf.missing(keys).implode()))
        rows = dict(zip(there, shelf.take(there)["captions"].to_pylist(), strict=True))
        assert rows.items() <= wanted.items()
        seen.add(len(rows))
        time.sleep(0.05)
    assert [process.wait() for process in processes] == [0, 0], [process.communicate() for process in processes]
    assert any(0 < rows < len(wanted) for rows in seen)
    for place in people:
        assert Workspace(place).bytes_below("demo/captions") == project.bytes_below("demo/captions")
    shelf_of_all = [file.name for file in (store / "captions" / recipe.parent.name).iterdir()]
    assert {name.rpartition(".")[2] for name in shelf_of_all} == {"parquet", "json"}
    rows_there = pl.read_parquet(store / "captions" / recipe.parent.name / "*.parquet")
    assert rows_there.height == sum(computed(Workspace(place))["captions"] for place in people)
    assert set(rows_there["key"]) == set(wanted)


def filling(project: Workspace, place: Path, store: Path) -> subprocess.Popen[str]:
    """Start captioning in a workspace with the project's index alone, and a store that is somewhere else."""
    (place / "cache" / "demo").mkdir(parents=True)
    shutil.copytree(project.path / "cache" / "demo" / "index", place / "cache" / "demo" / "index")
    for name in ("demo", "data"):
        (place / name).symlink_to(project.path / name)
    shutil.copy(project.path / "params.yaml", place)
    workspace = Workspace(place)
    workspace.params(store=str(store))
    return workspace.start("captions", "demo")


def test_two_experiments_at_once_fill_one_store(project: Workspace, tmp_path: Path) -> None:
    laboratory, store = copy(project, tmp_path / "laboratory"), tmp_path / "store"
    laboratory.params(store=str(store))
    commit(laboratory, "a store that experiments share")
    # Other pictures for the backbone: both need all vectors, and the same ones.
    plain = ["-S", "backbones.tiny.preprocess=plain"]
    heavy = ["-S", "datasets.demo.fusion.query.edited=0.9"]

    def run(name: str, changes: list[str]) -> str:
        return call(laboratory, "dvc", "exp", "run", "--temp", "--name", name, *changes)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, ("plain", "heavy"), (plain, plain + heavy)))
    one, other = lock_of(laboratory, "plain"), lock_of(laboratory, "heavy")
    same = ("captions@demo", "edits@demo", "gallery_vectors@demo-tiny", "query_vectors@demo-tiny")
    assert all(one[stage] == other[stage] for stage in same) and one["scores@demo-tiny"] != other["scores@demo-tiny"]
    wanted = {"image_vectors": set(column(project, "index/images", "digest")), "text_vectors": texts(project)}
    for kind, keys in wanted.items():
        assert set(pl.read_parquet(store / kind / "*" / "*.parquet")["key"]) == keys
    assert repro(laboratory)[0] == [] and clean(laboratory)


def column(project: Workspace, table: str, name: str) -> list[str]:
    values = pl.read_parquet(project.path / "cache" / "demo" / f"{table}.parquet")[name]
    return (values.explode() if values.dtype == pl.List else values).to_list()


def texts(project: Workspace) -> set[str]:
    """The keys of all texts that the demo's vectors are made of."""
    parts = column(project, "captions/*", "captions") + column(project, "edits/*", "edited")
    return {digest(text) for text in parts + column(project, "index/queries", "instruction")}
