"""Engines of another package, found by its entry points, caption and edit in the stages' own processes."""

from pathlib import Path

import polars as pl
import pytest

from cvsi.core.errors import CvsiError
from cvsi.models.engines import captioner_settings, editor_settings
from tests.conftest import Workspace
from tests.stage_inputs import write_index
from tests.toy_engines import install_toy_engines


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of this and other processes with the toy engines as an installed package."""
    folder = tmp_path_factory.mktemp("package")
    install_toy_engines(folder, monkeypatch)
    return folder


def test_engines_of_another_package_caption_and_edit(toy: Workspace, package: Path) -> None:
    for library in ("vllm", "transformers", "torch"):
        (package / f"{library}.py").write_text("raise AssertionError('these engines need no such library')\n")
    write_index()
    toy.params(
        datasets__toy__captioner={"engine": "colour", "n": 2},
        datasets__toy__editor={"engine": "rule", "ending": "now"},
        compute={"device": "cpu", "workers": 2, "caption_batch": 3, "block_batches": 1},
    )  # fmt: skip
    assert "8 images: 0 in the store, 8 to caption" in toy.run("captions", "toy")
    captions = dict(pl.read_parquet("cache/toy/captions/*.parquet").select("image_id", "captions").iter_rows())
    assert len(captions) == 8 and len({lines[0] for lines in captions.values()}) == 8
    assert all(len(lines) == 2 and lines[0].startswith("a picture of colour ") for lines in captions.values())
    assert "3 queries: 0 in the store, 3 to edit" in toy.run("edits", "toy")
    edits = pl.read_parquet("cache/toy/edits/*.parquet")
    assert edits["edited"].to_list() == [["it is green now"], ["it is yellow now"], captions["black.png"]]
    assert edits["status"].to_list() == ["ok", "ok", "refused: a tag"]  # the instruction has one
    for stage in ("captions", "edits"):
        assert "in the store, 0 to" in toy.run(stage, "toy")
    toy.params(datasets__toy__captioner__words="a photo of")
    assert "8 images: 0 in the store, 8 to caption" in toy.run("captions", "toy")


def test_an_engine_that_does_not_load_or_has_a_wrong_block_is_one_line(toy: Workspace, package: Path) -> None:
    write_index()
    where = "params.yaml: datasets.toy.captioner"
    toy.params(datasets__toy__captioner={"engine": "colour", "n": 0})
    assert toy.error("captions", "toy") == f"captions toy: {where}.n: Input should be greater than 0 (got 0)"
    with pytest.raises(CvsiError) as error:
        captioner_settings({"engine": "broken"}, "datasets.toy.captioner")
    assert str(error.value).startswith(
        f"{where}.engine: captioner engine 'broken' (toy_engines:NOTHING) does not load: "
    )
    with pytest.raises(CvsiError) as error:
        captioner_settings({"engine": "color"}, "datasets.toy.captioner")
    beginning, _, names = str(error.value).partition("there are: ")
    assert beginning == f"{where}.engine: unknown captioner engine 'color'; "
    assert names.startswith("transformers, vllm, ") and {"broken", "colour"} <= set(names.split(", "))
    where = "params.yaml: datasets.toy.editor"
    with pytest.raises(CvsiError) as error:
        editor_settings({"engine": "absent"}, "datasets.toy.editor")
    assert str(error.value).startswith(
        f"{where}.engine: editor engine 'absent' (no_such_module:EDITOR) does not load: "
    )
    toy.params(datasets__toy__editor={"engine": "rule"})
    assert toy.error("edits", "toy") == f"edits toy: {where}.ending: key is missing"
