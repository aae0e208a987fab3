"""Two runs of one recipe from an empty store: every file of every output is the same, to the last byte."""

import shutil
from pathlib import Path
from typing import Any

from tests.conftest import Workspace

STAGES = {"index", "captions", "edits", "gallery_vectors", "query_vectors", "scores", "report"}


def test_two_runs_from_an_empty_store_are_byte_identical(
    toy: Workspace, tmp_path: Path, server_editor: dict[str, Any]
) -> None:
    toy.params(datasets__toy__editor=server_editor)
    other = Workspace(tmp_path / "another" / "folder")
    other.path.mkdir(parents=True)
    for name in ("photos", "params.yaml"):
        source = toy.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, other.path / name)
    for workspace in (toy, other):
        workspace.run_all("toy", "tiny")
    first, second = toy.bytes_below("toy"), other.bytes_below("toy")
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} == set()
    assert {name.split("/")[-2] for name in first if name.endswith("/provenance.json")} == STAGES
    assert not [name for name, content in first.items() if str(tmp_path).encode() in content]
