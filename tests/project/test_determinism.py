"""Two runs of one recipe from nothing: every file of every output is the same, to the last byte."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import Workspace, environment

# The stages one after the other in one process, which saves minutes of imports. BLIP-2 and CLIP are the demo's; edits,
# whose engine takes a minute to start, are written as any program may write them.
STAGES = """
import polars as pl
from cvsi import captions, indexing, params, scores, tables, vectors
from cvsi.report.build import build
from cvsi.schema import EDITS
settings = params.load()
indexing.build("toy", settings)
captions.build("toy", settings)
asked = pl.DataFrame(tables.read("index", "toy", "queries.parquet")).select("query_id", "split", "instruction")
said = pl.concat_list("instruction")
edits = asked.with_columns(edited=said, added=pl.lit("disc"), status=pl.lit("ok"), answers=said)
with tables.output("edits", "toy") as out:
    out.shard(edits.to_arrow(), EDITS)
for stage in (vectors.gallery, vectors.queries, scores.build, build):
    stage("toy", "tiny", settings)
"""
PLACES = {"index", "captions", "edits", "gallery_vectors", "query_vectors", "scores", "report"}


def test_two_runs_from_an_empty_store_are_byte_identical(toy: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "elsewhere" / "again")
    other.path.mkdir(parents=True)
    for name in ("photos", "params.yaml"):
        source = toy.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, other.path / name)
    for workspace in (toy, other):
        subprocess.run([sys.executable, "-c", STAGES], cwd=workspace.path, env=environment(workspace.path), check=True)
    first, second = toy.bytes_below("toy"), other.bytes_below("toy")
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} == set()
    assert {name.split("/")[-2] for name in first if name.endswith("/provenance.json")} == PLACES
    assert not [name for name, content in first.items() if str(tmp_path).encode() in content]
