"""A team's work: clones that share by git, a DVC remote and a store, also several at the same time.

By default, a clone pulls from an S3 server and reproduces, and the commands of docs/sharing.md are run on a small
pipeline; the longer scenarios are marked `slow`.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from cvsi.core.digest import digest
from cvsi.core.schema import STORED_CAPTIONS, roles_in
from cvsi.store.rows import RowStore
from tests.conftest import Workspace, repro
from tests.imports import ROOT
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
    lock_of,
    publish,
    remote,
    start_team,
)

# As in tests/project/test_pipeline.py: the shared project takes a minute to make.
pytestmark = pytest.mark.xdist_group("project")


@pytest.fixture(scope="module", params=["s3", pytest.param("folder", marks=pytest.mark.slow)])
def team(
    request: pytest.FixtureRequest, project: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp(f"team-{request.param}")
    with remote(request.param, folder) as address:
        yield start_team(project, folder, address)


@pytest.fixture(scope="module")
def mate(team: Team) -> Workspace:
    """A member who cloned and pulled."""
    return team.join("mate")


def test_a_teammate_pulls_reproduces_and_computes_nothing(team: Team, mate: Workspace) -> None:
    assert mate.bytes_below("demo") == team.first.bytes_below("demo")
    assert not list(mate.path.rglob("*.pyc"))
    for _ in range(2):  # the first run writes bytecode beside the code that the stages depend on
        ran, printed = repro(mate)
        assert ran == [] and "Running stage 'index@demo'" in printed
    assert list((mate.path / "cvsi").rglob("*.pyc"))
    assert computed(mate) == {}
    assert mate.bytes_below("demo") == team.first.bytes_below("demo")
    assert clean(mate)


def test_no_key_is_written_to_any_file(team: Team, mate: Workspace) -> None:
    for file in team.folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_with_another_prompt_only_its_new_outputs_are_pushed_and_pulled(team: Team, mate: Workspace) -> None:
    prompt = mate.path / "cvsi" / "prompts" / "demo_edited.txt"
    prompt.write_text(prompt.read_text(encoding="utf-8").strip() + " Be terse.\n", encoding="utf-8")
    before, before_first = cached(mate), cached(team.first)
    ran, _ = repro(mate)
    assert ran == ["edits", "query_vectors", "scores", "report"] and computed(mate)["edits"] == 32
    commit(mate, "a terse prompt")
    publish(mate)
    rows = computed(team.first)
    fetch(team.first)
    assert cached(team.first) - before_first == cached(mate) - before != set()
    assert repro(team.first)[0] == [] and computed(team.first) == rows
    assert team.first.bytes_below("demo") == mate.bytes_below("demo")
    assert clean(team.first)


@pytest.mark.slow
@pytest.mark.parametrize("team", ["folder"], indirect=True)  # the remote does not matter here
def test_with_the_teams_store_only_new_images_are_captioned(team: Team) -> None:
    store = team.folder / "store"
    shutil.copytree(team.first.path / "cache" / "store", store)
    known = set(pl.read_parquet(store / "captions" / "*" / "*.parquet")["key"])
    clone = team.join("collector", START)
    images = clone.params(store=str(store))["world"]["gallery"] + 20
    clone.params(world__gallery=images)
    _, printed = repro(clone)
    new = set(column(clone, "index/images", "digest")) - known
    # Tests before this one may have captioned ten of them.
    assert 10 <= len(new) <= 20 and f"{images} images: {images - len(new)} in the store" in printed
    rows = computed(clone)
    assert rows["captions"] == rows["image_vectors"] == len(new)
    assert set(rows) == {"captions", "image_vectors", "text_vectors"}
    assert len(column(clone, "captions/*", "captions")) == 5 * images
    assert not (clone.path / "cache" / "store").exists()


@pytest.mark.slow
def test_two_fill_one_store_at_once_while_a_third_reads(project: Workspace, tmp_path: Path) -> None:
    store, folders = tmp_path / "store", [tmp_path / "one", tmp_path / "two"]
    captions = pl.read_parquet(project.path / "cache/demo/captions/*.parquet")
    wanted = dict(captions.select("digest", "captions").iter_rows())
    (recipe,) = (project.path / "cache" / "store" / "captions").glob("*/recipe.json")
    processes = [start_captions(project, folder, store) for folder in folders]
    seen = set()
    while any(process.poll() is None for process in processes):
        rows = RowStore(store, "captions", json.loads(recipe.read_bytes()), STORED_CAPTIONS)
        keys = captions["digest"].unique()
        assert rows.quarantine_corrupt(keys) == []  # an incomplete file would be corrupt
        present = keys.filter(~keys.is_in(rows.missing(keys).implode()))
        captions_by_key = dict(zip(present, rows.get(present)["captions"].to_pylist(), strict=True))
        assert captions_by_key.items() <= wanted.items()
        seen.add(len(captions_by_key))
        time.sleep(0.05)
    assert [process.wait() for process in processes] == [0, 0], [process.communicate() for process in processes]
    assert any(0 < rows < len(wanted) for rows in seen)
    for folder in folders:
        assert Workspace(folder).bytes_below("demo/captions") == project.bytes_below("demo/captions")
    names = [file.name for file in (store / "captions" / recipe.parent.name).iterdir()]
    assert {name.rpartition(".")[2] for name in names} == {"parquet", "json"}
    stored = pl.read_parquet(store / "captions" / recipe.parent.name / "*.parquet")
    assert stored.height == sum(computed(Workspace(folder))["captions"] for folder in folders)
    assert set(stored["key"]) == set(wanted)


def start_captions(project: Workspace, folder: Path, store: Path) -> subprocess.Popen[str]:
    """Start captioning in a workspace with the project's index alone, and a store in another folder."""
    (folder / "cache" / "demo").mkdir(parents=True)
    shutil.copytree(project.path / "cache" / "demo" / "index", folder / "cache" / "demo" / "index")
    for name in ("demo", "data"):
        (folder / name).symlink_to(project.path / name)
    shutil.copy(project.path / "params.yaml", folder)
    workspace = Workspace(folder)
    workspace.params(store=str(store))
    return workspace.start("captions", "demo")


@pytest.mark.slow
def test_two_experiments_at_once_fill_one_store(project: Workspace, tmp_path: Path) -> None:
    laboratory, store = copy(project, tmp_path / "laboratory"), tmp_path / "store"
    laboratory.params(store=str(store))
    commit(laboratory, "a store that experiments share")
    # The backbone gets other pictures: both experiments need all vectors, and the same ones.
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
    return (values.explode().drop_nulls() if values.dtype == pl.List else values).to_list()


def texts(project: Workspace) -> set[str]:
    """The keys of all texts that the demo's vectors need."""
    parts = column(project, "captions/*", "captions") + column(project, "edits/*", "edited")
    edits = next((project.path / "cache/demo/edits").glob("*.parquet"))
    for role in roles_in(pq.read_schema(edits)):
        parts += column(project, "edits/*", role)
    return {digest(text) for text in parts + column(project, "index/queries", "instruction")}


SHARING = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
PIPELINE = """
stages:
  index: {cmd: "mkdir -p cache/index && cp images cache/index/", always_changed: true, outs: [cache/index]}
  edits: {cmd: "mkdir -p cache/edits && cat prompt cache/index/images > cache/edits/a && echo edits >> log",
          deps: [prompt, cache/index], outs: [cache/edits]}
  scores: {cmd: "mkdir -p cache/scores && sed s/^/of-/ cache/edits/a > cache/scores/a && echo scores >> log",
           deps: [cache/edits], outs: [cache/scores]}
"""


def every_day(first: str) -> list[str]:
    """The commands of a block of "Every day" in docs/sharing.md, which begins with this command."""
    (block,) = re.findall(rf"\n\n((?:    .*\n)*    {first}.*\n(?:    .*\n)*)", SHARING.partition("## Every day")[2])
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    return [command.strip() for line in lines for command in line.split("&&")]


def run_block(member: Workspace, commands: list[str]) -> None:
    for command in commands:
        words = [*command.split(), "--quiet"] + (["-m", "a state"] if command == "git commit" else [])
        call(member, *(words[:-1] if command.startswith("git add") else words))


def computed_stages(member: Workspace) -> list[str]:
    """The stages that a member computed so far, in order."""
    log = member.path / "log"
    return log.read_text().split() if log.exists() else []


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Workspace, Workspace]:
    """A member with two committed states of a small pipeline, the second one on the remote, and a teammate's clone."""
    first, mate = Workspace(tmp_path / "first"), Workspace(tmp_path / "mate")
    first.path.mkdir()
    for name, text in {"dvc.yaml": PIPELINE, "images": "i", "prompt": "one", ".gitignore": "log\n/cache\n"}.items():
        (first.path / name).write_text(text)
    call(first, "git", "init", "--quiet")
    call(first, "dvc", "init", "--quiet")
    call(first, "dvc", "remote", "add", "--quiet", "--default", "team", str(tmp_path / "remote"))
    call(first, "dvc", "repro", "--quiet")
    commit(first, "prompt one")
    (first.path / "prompt").write_text("tried and not committed")
    call(first, "dvc", "repro", "--quiet")
    call(first, "git", "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    call(first, "git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    call(first, "git", "push", "--quiet", "--set-upstream", "origin", "HEAD")
    call(first, "git", "clone", "--quiet", str(tmp_path / "origin.git"), str(mate.path))
    (first.path / "prompt").write_text("two")
    return first, mate


def state(member: Workspace, prompt: str, *options: str) -> str:
    """Reproduce with a prompt; the scores."""
    (member.path / "prompt").write_text(prompt)
    call(member, "dvc", "repro", "--quiet", *options)
    return (member.path / "cache/scores/a").read_text()


def test_a_prompt_changed_back_is_restored_by_the_commands_of_every_day(pair: tuple[Workspace, Workspace]) -> None:
    first, mate = pair
    run_block(first, every_day("git add"))
    run_block(mate, every_day("git pull"))
    assert computed_stages(first) == ["edits", "scores"] * 3 and computed_stages(mate) == []
    assert state(mate, "one", "--pull") == "of-onei" and computed_stages(mate) == []
    assert state(mate, "tried and not committed", "--pull") == "of-tried and not committedi"
    assert computed_stages(mate) == ["edits", "scores"]  # the condition that it was committed
    state(mate, "three")
    run_block(mate, every_day("git add"))  # a clone without the outputs of the first state can push
    run_block(first, every_day("git pull"))
    assert (first.path / "prompt").read_text() == "three" and len(computed_stages(first)) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("push", "repro"), [([], ["--pull"]), (["--all-commits"], [])])
def test_without_either_option_it_is_computed_again(
    pair: tuple[Workspace, Workspace], push: list[str], repro: list[str]
) -> None:
    first, mate = pair
    state(first, "two")
    commit(first, "prompt two")
    call(first, "dvc", "push", "--quiet", "--run-cache", *push)
    call(first, "git", "push", "--quiet")
    run_block(mate, every_day("git pull")[:2])
    assert state(mate, "one", *repro) == "of-onei" and computed_stages(mate) == ["edits", "scores"]
