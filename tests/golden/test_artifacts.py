"""A small store and two datasets to all artifacts, by the real stages: nothing is computed, and no byte differs.

`data/expected.json` holds the digests of the outputs as commit 67f3d76 wrote them, `data/expected/` the text of the
small ones. The stored edits have no finish reasons, as then; their table has the statuses of a later parser. Digests
hold for the pinned pyarrow; those of columns, which say what differs, hold for any.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.digest import digest
from cvsi.datasets.files import FACTS_RECIPE
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import request
from tests.golden.workspace import (
    BACKBONE,
    DATA,
    DATASETS,
    NUMBERS,
    OF_DATASET,
    OF_RUN,
    SHARDED,
    columns,
    lay_out,
    load,
    run_stages,
    sha256,
    store_files,
)

# One worker runs all tests on the same workspace, which takes half a minute to make.
pytestmark = pytest.mark.xdist_group("golden")

EXPECTED: dict[str, dict[str, Any]] = load(DATA / "expected.json")
VECTORS = {"image_vectors", "text_vectors", "pseudo_vectors"}
KINDS = {
    "index": {"files"},
    "captions": {"captions"},
    "edits": {"edits"},
    "gallery_vectors": VECTORS - {"pseudo_vectors"},
    "query_vectors": VECTORS,
    "scores": set(),
    "report": set(),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage was run once."""
    place = tmp_path_factory.mktemp("golden")
    lay_out(place)
    run_stages(place)
    return place


def test_every_row_is_found_and_none_but_facts_of_files_is_computed(workspace: Path) -> None:
    records = [load(file) for file in sorted((workspace / "cache" / ".runs").glob("*.json"))]
    ran = {(record["stage"], *record["arguments"]) for record in records}
    of_datasets = {(stage, dataset) for stage in OF_DATASET for dataset in DATASETS}
    assert ran == of_datasets | {(stage, dataset, BACKBONE) for stage in OF_RUN for dataset in DATASETS}
    for record in records:
        assert {step["kind"] for step in record["steps"]} == KINDS[record["stage"]]
        for step in record["steps"]:
            if step["kind"] == "files":  # a copy of a file has another inode, so it is read once more
                assert (step["found"], step["computed"]) == (0, step["distinct"]) and step["distinct"] > 0, record
                continue
            assert (step["computed"], step["load_seconds"]) == (0, 0), record
            assert step["found"] == step["distinct"] > 0, record


def test_no_model_was_loaded(workspace: Path) -> None:
    # What libraries print meanwhile goes there; the facts of files, which are computed, print nothing.
    assert (workspace / "cache" / ".runs" / "libraries.log").read_bytes() == b""


@pytest.mark.parametrize("name", EXPECTED)
def test_an_output_is_as_it_was(workspace: Path, name: str) -> None:
    file, expected = workspace / name, EXPECTED[name]
    assert file.exists(), f"{name} is gone"
    if file.suffix == ".json":
        assert load(file) == load(DATA / "expected" / name), f"{name} has other values"
    else:
        found, wanted = columns(file), expected["columns"]
        other = [column for column in dict.fromkeys([*wanted, *found]) if found.get(column) != wanted.get(column)]
        assert not other, f"{name}: other values in {', '.join(other)}"
        assert list(found) == list(wanted), f"{name}: the same columns in another order"
    assert sha256(file) == expected["sha256"], f"{name}: the same values in other bytes"


@pytest.mark.parametrize("place", SHARDED)
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_table_has_no_further_part(workspace: Path, dataset: str, place: str) -> None:
    folder = f"cache/{dataset}/{place}"
    parts = {file.relative_to(workspace).as_posix() for file in (workspace / folder).glob("*.parquet")}
    assert parts == {name for name in EXPECTED if name.startswith(f"{folder}/")}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_weightings_have_the_numbers_they_had(workspace: Path, dataset: str) -> None:
    name = f"cache/{dataset}/{BACKBONE}/{NUMBERS}"
    found, expected = load(workspace / name), load(DATA / "expected" / name)
    assert found["metric"] == expected["metric"] and set(found["splits"]) == set(expected["splits"])
    for split, weightings in expected["splits"].items():
        for weighting, numbers in weightings.items():
            assert found["splits"][split][weighting] == pytest.approx(numbers, abs=1e-9), (split, weighting)


def test_the_store_is_left_as_it_was(workspace: Path) -> None:
    left, before = store_files(workspace / "cache" / "store"), store_files(DATA / "store")
    new = left.keys() - before.keys()
    assert left == before | {name: left[name] for name in new}
    assert {name.split("/")[1] for name in new} == {digest(FACTS_RECIPE)} and all(
        name.startswith("files/") for name in new
    )


@pytest.mark.parametrize("run", ["golden-tiny", "golden-cirr-tiny"])
def test_a_search_for_each_query_has_the_results_of_scores(
    workspace: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIRCO keeps the reference of a query, CIRR leaves it out; no model is loaded for either."""
    monkeypatch.chdir(workspace)
    engine = Engine(run, params.load())
    queries = pl.read_parquet(f"cache/{engine.dataset}/index/queries.parquet")
    rankings = pl.read_parquet(f"cache/{engine.dataset}/{BACKBONE}/scores/rankings.parquet")
    asked = queries.unique(["reference_id", "instruction"], keep="first", maintain_order=True)
    for query in asked.iter_rows(named=True):
        wanted = request(kind="composed", image_id=query["reference_id"], text=query["instruction"], k=100)
        found = engine.answer(wanted).results
        own = rankings.filter(split=query["split"], query_id=query["query_id"])
        assert [result.image_id for result in found] == own["image_id"].to_list()
        assert [result.score for result in found] == own["score"].to_list()  # the data are such that nothing rounds
    assert asked.height > 5 and "_encoder" not in vars(engine.models)
