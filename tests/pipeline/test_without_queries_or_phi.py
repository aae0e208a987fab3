"""Edits and query vectors of no queries, and of a backbone without phi: the right columns, and no model for nothing."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest

from cvsi.core import params, paths, provenance, schema, tables
from cvsi.core.errors import CvsiError
from cvsi.models import clip_encoder, phi
from cvsi.models.clip import embedding_dims, recipe
from cvsi.pipeline import edits, vectors
from cvsi.pipeline.components import QUERY_COMPONENTS
from cvsi.pipeline.embeddings import ImageVectorJob, PseudoTokenJob, TextVectorJob
from tests.conftest import Workspace
from tests.pipeline.test_components import OtherSentence
from tests.stage_inputs import write_captions, write_edits, write_index

WITHOUT = [part for part in schema.QUERY_PARTS if part != "pseudo"]


def no_model(*arguments: object) -> NoReturn:
    raise AssertionError("a model is loaded")


def without_queries(toy: Workspace) -> None:
    """An index without queries, and the captions of its images."""
    (toy.path / "photos" / "queries.jsonl").write_text("")
    write_index()
    write_captions()


def without_phi(toy: Workspace, **changes: Any) -> params.Params:
    """The settings with a backbone that has no key `phi`, or `phi: null`."""
    content = toy.params(**changes)
    del content["backbones"]["tiny"]["phi"]
    toy.params(backbones=content["backbones"] | {"null": content["backbones"]["tiny"] | {"phi": None}})
    return params.load()


@pytest.mark.parametrize(
    "editor",
    [
        {"engine": "vllm", "model": "models/not-here"},
        {"engine": "vllm", "model": "nobody/not-in-the-cache", "style": "chat"},
        {"engine": "server", "address": "http://127.0.0.1:9/v1", "model": "m"},
    ],
)
def test_edits_without_queries_need_no_editor(toy: Workspace, editor: dict[str, str]) -> None:
    without_queries(toy)
    toy.params(datasets__toy__editor=editor)
    edits.write("toy", params.load())
    table = tables.whole("edits", "toy")
    assert table.schema.equals(schema.EDITS) and table.num_rows == 0
    assert tables.provenance(paths.folder("edits", "toy")) == {"queries": 0}


def test_a_wrong_editor_is_an_error_without_queries_too(toy: Workspace) -> None:
    without_queries(toy)
    toy.params(datasets__toy__editor={"engine": "vllm", "model": "m", "temprature": 1})
    with pytest.raises(CvsiError, match=r"datasets\.toy\.editor\.temprature: unknown key"):
        edits.write("toy", params.load())


@pytest.mark.parametrize("with_phi", [True, False])
def test_query_vectors_without_queries_load_no_model(
    toy: Workspace, with_phi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_queries(toy)
    settings = params.load() if with_phi else without_phi(toy)
    edits.write("toy", settings)
    monkeypatch.setattr(clip_encoder.Encoder, "__init__", no_model)
    vectors.write_queries("toy", "tiny", settings)
    table = tables.whole("query_vectors", "toy", "tiny")
    width = embedding_dims(settings.backbone("tiny"))[0]
    assert table.num_rows == 0
    assert table.schema.equals(schema.query_vectors(width, schema.QUERY_PARTS if with_phi else WITHOUT))


@pytest.mark.parametrize("backbone", ["tiny", "null"])
def test_a_backbone_without_phi_computes_all_other_columns(
    toy: Workspace, backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index()
    write_captions()
    write_edits()
    vectors.write_queries("toy", "tiny", params.load())
    before = tables.whole("query_vectors", "toy", "tiny")
    settings = without_phi(toy, store="other-store")
    monkeypatch.setattr(phi, "load", no_model)
    with QUERY_COMPONENTS.using("drawing", OtherSentence()):
        vectors.write_queries("toy", backbone, settings)
    table = tables.whole("query_vectors", "toy", backbone)
    assert table.column_names == ["query_id", "split", *WITHOUT]
    assert table.equals(before.select(table.column_names))
    assert "the backbone has no phi: no column pseudo, drawing" in capsys.readouterr().out
    assert not (toy.path / "other-store" / "pseudo_vectors").exists()
    facts = tables.provenance(paths.folder("query_vectors", "toy", backbone))
    assert "pseudo" not in facts and "templates" not in facts and "phi" not in json.dumps(facts)
    assert not provenance.by_part(provenance.recipes("toy", backbone))["phi"]


def test_a_backbone_without_phi_has_no_job_for_pseudo_tokens(toy: Workspace) -> None:
    settings = without_phi(toy)
    assert [type(job) for job in vectors.query_jobs("toy", "tiny", settings)] == [ImageVectorJob, TextVectorJob]
    toy.params(backbones__tiny__phi="some.safetensors")
    kinds = [type(job) for job in vectors.query_jobs("toy", "tiny", params.load())]
    assert kinds == [ImageVectorJob, TextVectorJob, PseudoTokenJob]


def test_rows_of_images_and_texts_do_not_depend_on_phi(toy: Workspace) -> None:
    with_phi, without = params.load().backbone("tiny"), without_phi(toy).backbone("tiny")
    for kind in ("image", "text"):
        assert recipe(with_phi, kind, "fp32") == recipe(without, kind, "fp32")
    with pytest.raises(CvsiError, match="has no phi, which pseudo tokens need"):
        recipe(without, "pseudo", "fp32")


def test_a_phi_that_is_not_on_disk_is_one_line(toy: Workspace) -> None:
    write_index()
    write_captions()
    write_edits()
    toy.params(backbones__tiny__phi="models/gone.safetensors")
    with pytest.raises(CvsiError, match=r"models/gone\.safetensors") as error:
        vectors.write_queries("toy", "tiny", params.load())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["", 3, ["a"], {"path": "a"}, True])
def test_a_phi_that_is_no_path_is_one_line(toy: Workspace, value: object) -> None:
    toy.params(backbones__tiny__phi=value)
    with pytest.raises(CvsiError, match=r"params.yaml: backbones.tiny.phi: \S") as error:
        params.load()
    assert str(error.value).count("backbones.tiny.phi") == 1


def test_an_encoder_without_phi_embeds_texts_and_says_that_it_has_no_phi(toy: Workspace, tmp_path: Path) -> None:
    settings = without_phi(toy)
    encoder = clip_encoder.Encoder(settings.backbone("tiny"), settings.compute)
    encoder.check_phi()
    with pytest.raises(CvsiError, match="has no phi"):
        _ = encoder.phi


def test_empty_tables_keep_their_types_when_they_are_read(toy: Workspace) -> None:
    without_queries(toy)
    edits.write("toy", params.load())
    assert vectors.query_rows("toy").height == 0
    assert vectors.query_images("toy").schema == vectors.gallery_images("toy").schema
    for rows in (vectors.query_texts("toy"), vectors.query_sentences("toy")):
        assert rows.height == 0 and pa.types.is_large_string(rows.to_arrow().schema.field("key").type)
