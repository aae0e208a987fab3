"""The columns of the vector tables: what each built-in component is, and components of another package."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from cvsi.core import params, paths, provenance, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import QUERY_PARTS
from cvsi.core.vector_columns import matrix_of
from cvsi.models.clip import template
from cvsi.models.clip_encoder import Encoder
from cvsi.pipeline.components import GALLERY_COMPONENTS, QUERY_COMPONENTS, Component, MeanOfTexts, OneText
from cvsi.pipeline.embeddings import Embeddings
from cvsi.pipeline.vectors import write_gallery, write_queries
from tests.conftest import Workspace
from tests.stage_inputs import DISC_CAPTIONS, write_captions, write_edits, write_index

BUILT_IN = ["edited", "pseudo", "reference", "source", "instruction"]


class UpperCase(Component):
    """The unit vector of the instruction in capitals."""

    def texts(self, rows: pl.DataFrame) -> pl.Series:
        return rows["instruction"].str.to_uppercase()

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        return embeddings.texts(self.texts(rows))


class OtherSentence(Component):
    """phi's word in another sentence than the method's."""

    uses_phi = True

    def sentences(self, rows: pl.DataFrame) -> pl.Series:
        return "a drawing of $ which " + rows["instruction"]

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        return embeddings.pseudo_tokens(rows["digest"], self.sentences(rows))


@pytest.fixture
def tables_written(toy: Workspace) -> Iterator[Encoder]:
    """The tables that vectors are made from; the encoder that the stages use."""
    write_index()
    write_captions()
    write_edits()
    settings = params.load()
    yield Encoder(settings.backbone("tiny"), settings.compute)


@pytest.fixture
def more_components() -> Iterator[None]:
    """Components of another package, for one test."""
    query = {"capitals": UpperCase(), "drawing": OtherSentence()}
    with ExitStack() as stack:
        for name, component in query.items():
            stack.enter_context(QUERY_COMPONENTS.using(name, component))
        stack.enter_context(GALLERY_COMPONENTS.using("name", OneText("image_id")))
        yield


def columns_of(stage: str) -> dict[str, np.ndarray]:
    table = tables.whole(stage, "toy", "tiny")
    names = [name for name in table.column_names if name not in ("query_id", "split", "image_id")]
    return {name: matrix_of(table, name, stage) for name in names}


def texts_of(encoder: Encoder, texts: list[str]) -> np.ndarray:
    return encoder.text_vectors(encoder.tokens(texts)).numpy()


def close(ours: np.ndarray, expected: np.ndarray, near: float = 1e-6) -> bool:
    return ours.shape == expected.shape and bool(np.allclose(ours, expected, atol=near))


def test_built_in_components_are_vectors_of_texts_images_and_pseudo_tokens(tables_written: Encoder) -> None:
    encoder, queries = tables_written, pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    write_queries("toy", "tiny", params.load())
    columns = columns_of("query_vectors")
    assert list(columns) == BUILT_IN
    instructions = queries["instruction"].to_list()
    assert close(columns["edited"], texts_of(encoder, instructions))
    assert close(columns["instruction"], texts_of(encoder, instructions))
    means = [texts_of(encoder, DISC_CAPTIONS[image]).mean(axis=0) for image in queries["reference_id"]]
    assert close(columns["source"], np.stack(means))
    pictures = [Image.open(f"photos/{image}").convert("RGB") for image in queries["reference_id"]]
    embeddings = encoder.image_embeddings([encoder.prepare(picture) for picture in pictures])
    assert close(columns["reference"], torch.nn.functional.normalize(embeddings, dim=-1).numpy())
    sentences = encoder.tokens([template(text, "a red ring") for text in instructions])
    assert close(columns["pseudo"], encoder.text_vectors(sentences, embeddings).numpy())


def test_the_recipe_of_query_vectors_names_both_forms_of_the_sentence(tables_written: Encoder) -> None:
    """Beside the rows' own recipes: those are digests of stored rows, which a change would compute again."""
    write_queries("toy", "tiny", params.load())
    facts = tables.provenance(paths.folder("query_vectors", "toy", "tiny"))
    assert facts["templates"] == {
        "objects added": "a photo of $ that {instruction}. And the photo should have {added}.",
        "nothing added": "a photo of $ that {instruction}.",
    }
    assert facts["pseudo"] == tables_written.recipe("pseudo")
    assert facts["pseudo"]["template"] == facts["templates"]["objects added"]
    recipes: dict[str, dict[str, Any]] = {stage: {} for stage in provenance.STAGES}
    parts = provenance.by_part(recipes | {"query_vectors": facts})
    assert parts["phi"]["nothing added"] == "a photo of $ that {instruction}." and "templates" not in parts["backbone"]


def test_a_registered_component_is_a_column(tables_written: Encoder, more_components: None) -> None:
    encoder, queries = tables_written, pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    write_queries("toy", "tiny", params.load())
    columns = columns_of("query_vectors")
    assert list(columns) == [*BUILT_IN, "capitals", "drawing"]
    instructions = queries["instruction"].to_list()
    assert close(columns["capitals"], texts_of(encoder, [text.upper() for text in instructions]))
    pictures = [Image.open(f"photos/{image}").convert("RGB") for image in queries["reference_id"]]
    embeddings = encoder.image_embeddings([encoder.prepare(picture) for picture in pictures])
    sentences = encoder.tokens([f"a drawing of $ which {text}" for text in instructions])
    assert close(columns["drawing"], encoder.text_vectors(sentences, embeddings).numpy())
    write_gallery("toy", "tiny", params.load())
    columns = columns_of("gallery_vectors")
    assert list(columns) == ["image", "caption", "name"]
    ids = pl.DataFrame(tables.read("index", "toy", "images.parquet"))["image_id"].to_list()
    assert close(columns["name"], texts_of(encoder, ids), near=1e-3)  # float16


def test_more_components_change_no_other_column_and_use_the_stored_rows(
    tables_written: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_queries("toy", "tiny", params.load())
    before = columns_of("query_vectors")
    capsys.readouterr()
    with QUERY_COMPONENTS.using("added", MeanOfTexts("edited")):
        write_queries("toy", "tiny", params.load())
    assert capsys.readouterr().out.count(", 0 to embed") == 3
    after = columns_of("query_vectors")
    assert list(after) == [*BUILT_IN, "added"]
    assert all(np.array_equal(after[name], before[name]) for name in BUILT_IN)
    assert np.array_equal(after["added"], before["edited"])


def test_a_name_is_registered_once() -> None:
    with pytest.raises(CvsiError, match="query component 'edited' is defined twice; rename one of them"):
        QUERY_COMPONENTS.register("edited", UpperCase())


def test_a_mean_of_no_texts_is_zero(tables_written: Encoder) -> None:
    captions = DISC_CAPTIONS | {"red.png": []}
    write_captions(captions)
    write_gallery("toy", "tiny", params.load())
    ids = pl.DataFrame(tables.read("index", "toy", "images.parquet"))["image_id"].to_list()
    zero = [not bool(vector.any()) for vector in columns_of("gallery_vectors")["caption"]]
    assert zero == [image == "red.png" for image in ids]


def test_a_component_names_the_computed_columns_that_it_reads() -> None:
    reads = {name: set(component.reads) for name, component in QUERY_COMPONENTS if name in QUERY_PARTS}
    assert reads == {
        "edited": {"edited"}, "pseudo": {"added"}, "reference": set(), "source": {"captions"}, "instruction": set()
    }  # fmt: skip
    assert Component().reads == {"captions", "edited", "added"}  # one that does not say gets all
