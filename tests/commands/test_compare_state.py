"""`cvsi compare --rev`: a run against its state at a git revision or in a DVC experiment, read from DVC's cache."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cvsi.commands.compare import compare
from cvsi.commands.comparison import Comparison, tables
from cvsi.commands.main import app
from cvsi.core import params, parquet, schema
from cvsi.core.errors import CvsiError
from cvsi.core.paths import folder
from cvsi.evaluation.metrics import interval
from tests.commands.test_compare import RUNS, change, index, score
from tests.conftest import environment, project_params

pytestmark = pytest.mark.xdist_group("states")  # the repository is made once
ASPECTS = ("shape", "colour", "size")
EXPERIMENT = "pale-moon"
OUTPUTS = [folder(stage, "toy") for stage in ("index", "captions", "edits")] + [
    folder(stage, "toy", "tiny") for stage in ("gallery_vectors", "query_vectors", "scores")
]
PER_QUERY = folder("scores", "toy", "tiny") / "per_query.parquet"
STATES = {"one": 1, "two": 2, EXPERIMENT: 3}  # with the seeds of their scores; `two` is the current commit


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def dvc(*arguments: str) -> None:
    subprocess.run(
        ["dvc", *arguments], check=True, capture_output=True, env=environment(Path.cwd()) | {"GIT_AUTHOR_NAME": "A"}
    )


def commit(message: str) -> None:
    """Track the run's outputs as they are, and commit."""
    dvc("commit", "--force")
    git("add", "--all")
    git("commit", "-m", message)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, pl.DataFrame]]]:
    """A repository with an empty commit, the states `one` and `two` of the run `first`, and an experiment.

    With it the tables `per_query` of the three states, as they were written.
    """
    place, written = tmp_path_factory.mktemp("states"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, value in (("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@example.org")):
            patch.setenv(name, value)
        git("init", "--initial-branch", "main")
        git("config", "user.name", "A")
        git("config", "user.email", "a@example.org")
        dvc("init")
        dvc("config", "core.analytics", "false")
        dvc("remote", "add", "--default", "team", "../remote")  # DVC reads each commit's own settings
        git("add", "--all")
        git("commit", "-m", "empty")
        content = project_params()
        content["datasets"]["toy"] = content["datasets"]["demo"]
        content["datasets"]["again"] = content["datasets"]["demo"]
        content["runs"] = {name: dict(zip(("dataset", "backbone"), RUNS[name], strict=True)) for name in RUNS}
        Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        stage = {"cmd": "true", "outs": [path.as_posix() for path in OUTPUTS]}
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"made": stage}}), encoding="utf-8")
        index("toy", ASPECTS)
        for name, seed in STATES.items():
            score("first", seed, "aa", "phi1", pseudo=seed / 10)
            written[name] = pl.read_parquet(PER_QUERY)
            if name == EXPERIMENT:
                dvc("commit", "--force")
                dvc("exp", "save", "--name", EXPERIMENT)
                git("checkout", ".")
                dvc("checkout", "--force")
            else:
                commit(name)
            if name == "one":
                git("tag", "--annotate", "v1", "-m", "first state")
                git("branch", "old/state")
        yield place, written


@pytest.fixture
def project(template: tuple[Path, dict[str, pl.DataFrame]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository as working directory; its workspace is the state `two`."""
    place = tmp_path / "project"
    shutil.copytree(template[0], place, symlinks=True)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def written(template: tuple[Path, dict[str, pl.DataFrame]]) -> dict[str, pl.DataFrame]:
    """The values per query of each state."""
    return template[1]


def objects(path: Path) -> list[Path]:
    """The objects of an output's list, or of one of its files, in DVC's cache, at the state `one`."""
    lock = yaml.safe_load(git("show", "v1:dvc.lock"))
    digests = {out["path"]: out["md5"] for out in lock["stages"]["made"]["outs"]}
    cache = Path(".dvc/cache/files/md5")
    if path.as_posix() in digests:
        md5 = digests[path.as_posix()]
        return [cache / md5[:2] / md5[2:]]
    (tree,) = objects(path.parent)
    return [
        cache / row["md5"][:2] / row["md5"][2:] for row in json.loads(tree.read_text()) if row["relpath"] == path.name
    ]


def against(revision: str) -> Comparison:
    return compare(params.load(), "first", "first", rev=revision)


def refused(revision: str, run: str = "first") -> str:
    """The one line of a state that cannot be compared with."""
    with pytest.raises(CvsiError) as error:
        compare(params.load(), run, run, rev=revision)
    assert "\n" not in str(error.value)
    return str(error.value)


def check(comparison: Comparison, before: pl.DataFrame, after: pl.DataFrame) -> None:
    """That figures, counts and queries are those of two tables, worked out plainly."""
    rows = {row.name: row for row in comparison.splits["val"]}
    apart = (after["mAP@10"] - before["mAP@10"]).to_numpy()
    assert rows["mAP@10"].first == pytest.approx(before["mAP@10"].mean())
    assert rows["mAP@10"].second == pytest.approx(after["mAP@10"].mean())
    assert (rows["mAP@10"].low, rows["mAP@10"].high) == pytest.approx(interval(apart))
    changes = comparison.changes["val"]
    assert (changes.better, changes.worse, changes.same) == (sum(apart > 0), sum(apart < 0), sum(apart == 0))
    assert changes.better + changes.worse + changes.same == before.height
    for query in changes.moved:
        one, two = (
            table.row(by_predicate=pl.col("query_id") == query.query_id, named=True) for table in (before, after)
        )
        assert (query.before, query.after) == (one["mAP@10"], two["mAP@10"])
        assert (query.rank_before, query.rank_after) == (one["target_ranks"][0], two["target_ranks"][0])
        assert query.instruction == f"is {query.query_id}"
    sizes = [abs(query.after - query.before) for query in changes.moved]
    assert sizes == pytest.approx(sorted(abs(apart), reverse=True)[: len(sizes)])


@pytest.mark.parametrize(
    ("revision", "state"),
    [
        ("v1", "one"),
        ("old/state", "one"),
        ("HEAD~1", "one"),
        ("HEAD^", "one"),
        ("main~1", "one"),
        ("refs/tags/v1", "one"),
        ("short", "one"),
        ("full", "one"),
        ("HEAD", "two"),
        ("@", "two"),
        (EXPERIMENT, EXPERIMENT),
    ],
)
def test_a_state_is_read_by_every_kind_of_name(
    project: Path, written: dict[str, pl.DataFrame], revision: str, state: str
) -> None:
    number = git("rev-parse", "v1^{commit}")
    named = {"short": number[:7], "full": number}.get(revision, revision)
    comparison = against(named)
    assert comparison.first == (
        f"first at {named}" if number.startswith(named) else comparison.first
    ) and comparison.first.startswith(f"first at {named}")
    assert comparison.second == "first"
    check(comparison, written[state], written["two"])
    fusion = {} if state == "two" else {"fusion": {"query.pseudo": (str(STATES[state] / 10), "0.2")}}
    assert comparison.differences == fusion and comparison.doubts == []


def test_the_commit_of_a_name_is_shown(project: Path) -> None:
    assert against("HEAD~1").first == f"first at HEAD~1 ({git('rev-parse', '--short=7', 'HEAD~1')})"


def test_changes_that_are_not_committed_are_the_second_side(project: Path, written: dict[str, pl.DataFrame]) -> None:
    for output in OUTPUTS:
        for file in output.iterdir():
            file.chmod(0o644)
    score("first", 9, "aa", "phi1", pseudo=0.9)
    status = git("status", "--porcelain")
    check(against("HEAD"), written["two"], pl.read_parquet(PER_QUERY))
    assert git("status", "--porcelain") == status


def test_nothing_of_the_project_is_changed(project: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in sorted(project.rglob("*"))}
    against(EXPERIMENT)
    assert {path: path.lstat().st_mtime_ns for path in sorted(project.rglob("*"))} == before


def test_the_other_run_may_be_a_second_one(project: Path, written: dict[str, pl.DataFrame]) -> None:
    score("second", 5, "bb", "phi2")
    comparison = compare(params.load(), "first", "second", rev="v1")
    check(comparison, written["one"], pl.read_parquet(folder("scores", *RUNS["second"]) / "per_query.parquet"))
    assert set(comparison.differences) == {"backbone", "phi", "fusion"}


def test_the_state_decides_what_a_run_was(project: Path, written: dict[str, pl.DataFrame]) -> None:
    score("second", 5, "bb", "phi2")
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["runs"]["first"]["backbone"] = RUNS["second"][1]
    Path("params.yaml").write_text(yaml.safe_dump(content))
    after = pl.read_parquet(folder("scores", *RUNS["second"]) / "per_query.parquet")
    check(against("HEAD"), written["two"], after)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config", "../../elsewhere"),
        ("config", "{outside}"),
        ("config.local", "../../elsewhere"),
        ("config.local", '"{outside}"'),
    ],
)
def test_a_cache_that_lies_elsewhere_is_found(
    project: Path, written: dict[str, pl.DataFrame], file: str, named: str
) -> None:
    outside = project.parent / "elsewhere"
    shutil.move(".dvc/cache", outside)
    with Path(".dvc", file).open("a") as settings:
        settings.write(f"\n[cache]\n    dir = {named.format(outside=outside)}\n")
    check(against("HEAD~1"), written["one"], written["two"])


def test_a_project_below_the_root_of_its_repository(
    project: Path, written: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(".git", project.parent)
    monkeypatch.chdir(project.parent)
    git("add", "--all", "project")
    git("commit", "-m", "the project moved into a folder")
    monkeypatch.chdir(project)
    check(against("HEAD"), written["two"], written["two"])
    assert refused("HEAD~1").endswith("no params.yaml there; a state to compare with has it under git")


@pytest.mark.parametrize(
    "path",
    [
        folder("scores", "toy", "tiny"),
        folder("index", "toy"),
        folder("scores", "toy", "tiny") / "metrics.json",
        PER_QUERY,
        folder("scores", "toy", "tiny") / "provenance.json",
    ],
)
def test_what_the_cache_lacks_is_named_with_the_command_that_fetches_it(project: Path, path: Path) -> None:
    for file in objects(path):
        file.unlink()
    line = refused("v1")
    assert line.startswith(f"v1 ({git('rev-parse', '--short=7', 'v1^{commit}')}): ") and "not in DVC's cache" in line
    assert "; fetch: dvc fetch --all-commits cache/toy/" in line and path.as_posix() in line
    assert "in DVC's cache" in line and ("1 file of it is" in line) == bool(path.suffix)


def test_the_command_that_is_named_fetches_what_is_missing(project: Path, written: dict[str, pl.DataFrame]) -> None:
    dvc("push", "--all-commits")
    (rankings,) = objects(folder("scores", "toy", "tiny") / "rankings.parquet")
    shutil.rmtree(".dvc/cache")
    _, _, command = refused("HEAD~1").partition("fetch: dvc ")
    dvc(*command.split())
    check(against("HEAD~1"), written["one"], written["two"])
    assert not rankings.exists(), "only what a comparison reads is fetched"


def test_an_experiment_that_the_cache_lacks_is_pulled(project: Path) -> None:
    shutil.rmtree(".dvc/cache")
    assert refused(EXPERIMENT).endswith(f"fetch the experiment: dvc exp pull REMOTE {EXPERIMENT}")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"[]"])
@pytest.mark.parametrize(
    "path", [folder("scores", "toy", "tiny"), PER_QUERY, folder("index", "toy") / "queries.parquet"]
)
def test_a_damaged_object_is_one_line(project: Path, path: Path, content: bytes) -> None:
    for file in objects(path):
        file.chmod(0o644)
        file.write_bytes(content)
        assert refused("v1").startswith(f"{project / file}: damaged, its MD5 digest is ")


def more(queries: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([queries, queries.head(2).with_columns(query_id=pl.concat_str(pl.lit("new"), "query_id"))])


def fewer(queries: pl.DataFrame) -> pl.DataFrame:
    return queries.slice(3)


def renamed(queries: pl.DataFrame) -> pl.DataFrame:
    return queries.with_columns(query_id=pl.concat_str(pl.lit("q"), "query_id"))


def moved_to_another_split(queries: pl.DataFrame) -> pl.DataFrame:
    return queries.with_columns(split=pl.when(pl.col("query_id") == "4").then(pl.lit("test")).otherwise("split"))


def other_targets(queries: pl.DataFrame) -> pl.DataFrame:
    return queries.with_columns(
        target_ids=pl.when(pl.col("query_id") == "7").then(pl.lit(["i1"])).otherwise("target_ids")
    )


def targets_in_another_order(queries: pl.DataFrame) -> pl.DataFrame:
    return queries.with_columns(pl.col("target_ids").list.reverse())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (more, "2 queries only in first (val new0, ...)"),
        (fewer, "3 queries only in first at HEAD (NUMBER) (val 0, ...)"),
        (renamed, "40 queries only in first at HEAD (NUMBER) (val 0, ...); 40 queries only in first (val q0, ...)"),
        (moved_to_another_split, "1 query only in first at HEAD (NUMBER) (val 4); 1 query only in first (test 4)"),
        (other_targets, "1 query with other targets (val 7)"),
        (targets_in_another_order, "35 queries with other targets (val 0, ...)"),
    ],
)
def test_another_dataset_is_refused_with_what_differs(
    project: Path, other: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    path = folder("index", "toy") / "queries.parquet"
    queries = other(pl.read_parquet(path))
    path.unlink()
    parquet.write_parquet(queries.to_arrow().cast(schema.QUERIES), path)
    number = git("rev-parse", "--short=7", "HEAD")
    assert refused("HEAD") == (
        f"first at HEAD ({number}) and first are not of the same dataset: {expected.replace('NUMBER', number)}; "
        "compare runs with the same queries"
    )


def test_queries_in_another_order_are_the_same_ones(project: Path, written: dict[str, pl.DataFrame]) -> None:
    path = folder("index", "toy") / "images.parquet"
    images = pl.read_parquet(path).head(100)
    path.unlink()
    parquet.write_parquet(images.to_arrow().cast(schema.IMAGES), path)
    comparison = against("HEAD~1")
    assert comparison.differences["dataset"] == {"images": ("300 rows", "100 rows, not the same")}
    check(comparison, written["one"], written["two"])


@pytest.mark.parametrize(
    "revision", ["nothing", "HEAD~9", "0000000", "v1..HEAD", "HEAD:params.yaml", "--all", "", " ", "a\nb", "ünknown"]
)
def test_a_state_that_does_not_exist_is_one_line(project: Path, revision: str) -> None:
    assert "no such commit, tag, branch or experiment" in " ".join(refused(revision).split())


def test_no_repository_and_no_git_are_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    shutil.rmtree(".git")
    assert refused("HEAD").startswith("--rev HEAD: no git repository here (fatal: not a git repository")
    monkeypatch.setenv("PATH", "")
    assert refused("HEAD").endswith("--rev needs git")


def test_a_run_that_the_state_does_not_have(project: Path) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["runs"]["newer"] = {"dataset": "toy", "backbone": "tiny"}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    score("later", 4, "cc", "phi3")
    number = git("rev-parse", "--short=7", "HEAD")
    assert refused("HEAD", "newer").startswith(
        f"HEAD ({number}): no run 'newer' in its params.yaml; there are: first, "
    )
    assert "no output cache/toy/vit-l-14/scores: later was not run there" in refused("HEAD", "later")
    assert "no params.yaml there" in refused("HEAD~2")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("dvc.lock", None, "no dvc.lock there"),
        ("dvc.lock", "<<<<<<< HEAD\nstages:\n=======\n", "dvc.lock is not YAML"),
        ("dvc.lock", "[]\n", "dvc.lock has no keys"),
        ("dvc.lock", "", "dvc.lock has no keys"),
        ("dvc.lock", "stages: {}\n", "its dvc.lock has no output cache/toy/index"),
        ("dvc.lock", "stages: {made: {outs: [{path: cache/toy/index}]}}\n", "cache/toy/index has no MD5 digest"),
        ("dvc.lock", "stages: {made: {outs: [{path: cache/toy/index, md5: ../../b}]}}\n", "index has no MD5 digest"),
        ("dvc.lock", "stages: {made: {outs: [{path: a, etag: b}, c]}}\n", "its dvc.lock has no output cache/toy/index"),
        ("dvc.lock", "stages: [made]\n", "its dvc.lock has no output cache/toy/index"),
        ("params.yaml", "runs: [first]\n", "no run 'first' in its params.yaml; there are: none"),
        ("params.yaml", "runs: {first: {dataset: toy}}\n", "runs.first has no usable names"),
        ("params.yaml", "runs: {first: {dataset: ../toy, backbone: tiny}}\n", "runs.first has no usable names"),
        ("params.yaml", "runs: {first: toy}\n", "runs.first has no usable names"),
    ],
)
def test_a_state_with_unusable_files_is_one_line(project: Path, name: str, content: str | None, expected: str) -> None:
    kept = Path(name).read_bytes()
    if content is None:
        Path(name).unlink()
    else:
        Path(name).write_text(content)
    git("add", "--all")
    git("commit", "-m", "broken")
    Path(name).write_bytes(kept)
    assert expected in refused("HEAD")


def test_an_output_that_never_had_the_file_is_one_line(project: Path) -> None:
    (folder("scores", "toy", "tiny") / "metrics.json").unlink()
    commit("without metrics")
    shutil.copytree(folder("scores", "toy", "tiny"), "kept")
    (folder("scores", "toy", "tiny") / "metrics.json").write_text('{"val": {}}')
    assert "cache/toy/tiny/scores has no metrics.json" in refused("HEAD")


def test_scores_of_before_per_query_have_no_interval(project: Path) -> None:
    PER_QUERY.unlink()
    commit("as of an earlier version")
    score("first", 2, "aa", "phi1", pseudo=0.2)
    comparison = against("HEAD")
    number = git("rev-parse", "--short=7", "HEAD")
    assert comparison.doubts == [f"first at HEAD ({number}): no per_query.parquet in its scores; no interval"]
    assert comparison.changes == {} and {row.low for row in comparison.splits["val"]} == {None}


def test_a_file_that_cannot_be_read_is_named_by_its_state(project: Path) -> None:
    path = folder("edits", "toy") / "provenance.json"
    content = path.read_text()
    path.unlink()
    path.write_text(content)
    change("edits", "toy", schema=99)
    commit("of a later version")
    path.write_text(content)
    number = git("rev-parse", "--short=7", "HEAD")
    assert refused("HEAD").startswith(f"HEAD ({number}): cache/toy/edits/provenance.json: schema version 99, this cvsi")


def test_experiments_of_one_name_are_told_apart(project: Path, written: dict[str, pl.DataFrame]) -> None:
    one, two, mine = (git("rev-parse", name) for name in ("HEAD~2", "HEAD~1", "HEAD"))
    ref = "refs/exps/{}/{}/" + EXPERIMENT
    git("update-ref", ref.format(two[:2], two[2:]), "HEAD~1")
    check(against(EXPERIMENT), written[EXPERIMENT], written["two"])  # that of the current commit
    git("update-ref", "-d", ref.format(mine[:2], mine[2:]))
    check(against(EXPERIMENT), written["one"], written["two"])
    git("update-ref", ref.format(one[:2], one[2:]), "HEAD")
    assert refused(EXPERIMENT).startswith(f"--rev {EXPERIMENT}: 2 experiments have this name; give a commit: ")


def test_of_a_name_that_a_branch_and_an_experiment_have_the_branch_is_meant(
    project: Path, written: dict[str, pl.DataFrame]
) -> None:
    git("branch", EXPERIMENT, "v1")
    check(against(EXPERIMENT), written["one"], written["two"])


def test_aspects_are_sorted_by_their_difference_and_have_intervals(
    project: Path, written: dict[str, pl.DataFrame]
) -> None:
    rows = against(EXPERIMENT).splits["val"]
    aspects = [row for row in rows if "/" in row.name]
    assert {row.name for row in aspects} == {f"mAP@10/{aspect}" for aspect in ASPECTS}
    sizes = [abs(row.difference) for row in aspects]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    apart = (written["two"]["mAP@10"] - written[EXPERIMENT]["mAP@10"]).to_numpy()
    numbers = written["two"]["query_id"].cast(pl.Int64).to_numpy()
    for row in aspects:
        place = ASPECTS.index(row.name.removeprefix("mAP@10/")) + 1
        mine = apart[numbers % place == 0]
        assert (row.difference, row.low, row.high) == pytest.approx((mine.mean(), *interval(mine)))
    assert [row.name for row in rows[-3:]] == ["queries", "dropped", "fallbacks"]


def test_top_limits_the_queries_that_are_named(project: Path) -> None:
    whole = compare(params.load(), "first", "first", rev="v1", top=1000).changes["val"]
    assert len(whole.moved) > 12
    for top in (0, 1, 12):
        changes = compare(params.load(), "first", "first", rev="v1", top=top).changes["val"]
        assert changes.moved == whole.moved[:top] and changes.better == whole.better


def test_a_query_whose_target_alone_moved_comes_after_those_whose_metric_did(project: Path) -> None:
    moves = compare(params.load(), "first", "first", rev="v1", top=1000).changes["val"].moved
    still = [query.before == query.after for query in moves]
    assert still == sorted(still)
    assert all(query.rank_before != query.rank_after for query in moves if query.before == query.after)


def run(*arguments: str, columns: str | None) -> subprocess.CompletedProcess[str]:
    env = environment(Path.cwd())
    env = {name: value for name, value in env.items() if name != "COLUMNS"} | ({"COLUMNS": columns} if columns else {})
    return subprocess.run(
        [sys.executable, "-c", "from cvsi.commands.main import main; main()", "compare", *arguments],
        env=env | {"PYTHONPATH": os.environ.get("PYTHONPATH", "") or os.pathsep.join(sys.path)},
        text=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("columns", ["80", "160", None])
def test_the_command_fits_the_width(project: Path, columns: str | None) -> None:
    done = run("first", "--rev", EXPERIMENT, columns=columns)
    assert done.returncode == 0 and done.stderr.startswith("next: ") and done.stderr.count("\n") == 1, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns or 160)
    words = done.stdout.split()
    for head in ("difference", "interval", "instruction", "rank", "field", "part", EXPERIMENT, "query.pseudo"):
        assert head in words, f"{head} is cut:\n{done.stdout}"
    changes = against(EXPERIMENT).changes["val"]
    better = f"better on {changes.better} queries, worse on {changes.worse}, the same on {changes.same}"
    assert f"val, mAP@10: first is {better}" in lines
    assert all(f" {query.before:.2f} -> {query.after:.2f} " in done.stdout for query in changes.moved)


def test_the_command_as_json(project: Path) -> None:
    done = CliRunner().invoke(app, ["compare", "first", "--rev", "HEAD~1", "--json", "--top", "3"])
    found = json.loads(done.stdout)
    expected = compare(params.load(), "first", "first", rev="HEAD~1", top=3)
    assert found == json.loads(expected.model_dump_json())
    assert set(found["changes"]["val"]) == {"metric", "better", "worse", "same", "moved"}
    assert len(found["changes"]["val"]["moved"]) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["first", "--rev", "nothing"], "cvsi: --rev nothing: no such commit, tag, branch or experiment"),
        (["first", "--rev", ""], "cvsi: --rev : no such commit, tag, branch or experiment"),
        (["first", "--rev", "HEAD", "--other", "cache"], "cvsi: --other and --rev: give one of the two"),
        (["first"], "cvsi: compare needs a second run, --rev with an earlier state, or --other"),
        (["nothing", "--rev", "HEAD"], "cvsi: params.yaml: no run 'nothing'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(project: Path, arguments: list[str], expected: str) -> None:
    done = run(*arguments, columns=None)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert expected in line


@pytest.mark.parametrize("width", [80, 160])
def test_long_names_and_texts_stay_readable(project: Path, width: int) -> None:
    comparison = against("v1")
    changes = comparison.changes["val"]
    query = changes.moved[0].model_copy(
        update={
            "query_id": "holiday/2021/some-very-long-name-of-a-picture-0001.jpeg",
            "instruction": "is [red]bigger[/red] \x1b[31m and " + "stands further away, " * 20,
            "rank_after": None,
        }
    )
    comparison = comparison.model_copy(
        update={
            "first": "first at a-branch/with-a-very-long-name-that-nobody-can-remember (0123456)",
            "changes": {"val": changes.model_copy(update={"moved": [query]})},
            "differences": {"captioner": {"a_rather_long.dotted.name_of.a_field": ("x" * 300, "y" * 300)}},
        }
    )
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables(comparison):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for head in ("difference", "interval", "instruction", "rank", "captioner", "field", "(0123456)"):
        assert head in words, "\n".join(lines)
    assert "\x1b" not in "".join(lines) and "[red]bigger[/red]" in " ".join(lines) and ">1,000" in " ".join(lines)


def test_counts_of_queries_that_do_not_count_in_both(project: Path, written: dict[str, pl.DataFrame]) -> None:
    values = written["two"]["mAP@10"].to_list()
    table = written["two"].with_columns(pl.Series("mAP@10", [None, None, *values[2:]]))
    PER_QUERY.unlink()
    parquet.write_parquet(table.to_arrow().cast(schema.per_query(table.columns[4:])), PER_QUERY)
    changes = against("v1").changes["val"]
    apart = np.array(values[2:]) - written["one"]["mAP@10"].to_numpy()[2:]
    assert (changes.better, changes.worse, changes.same) == (sum(apart > 0), sum(apart < 0), sum(apart == 0))
    assert not {"0", "1"} & {query.query_id for query in changes.moved}


@pytest.mark.parametrize("name", ["query_id", "split", "target_ranks"])
def test_values_without_a_column_are_a_warning(project: Path, name: str) -> None:
    table = pl.read_parquet(PER_QUERY).drop(name)
    PER_QUERY.unlink()
    table.write_parquet(PER_QUERY)
    comparison = against("v1")
    assert comparison.doubts == [f"first: per_query.parquet has no column '{name}'; no interval"]
    assert comparison.changes == {}
