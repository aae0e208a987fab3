"""Runs on backbones that compose image and instruction: vectors, store, scores, table and search, against numpy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cvsi.commands import download, requirements
from cvsi.commands.main import app
from cvsi.core import params, paths, tables
from cvsi.core.errors import CvsiError
from cvsi.core.vector_columns import matrix_of
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import request
from cvsi.models import encoder
from cvsi.models.encoder import ENCODERS, BackboneEncoder, EncoderKind, load_encoder
from cvsi.pipeline import vectors
from cvsi.pipeline.embeddings import ComposedJob
from tests.conftest import Workspace, made_once
from tests.models.tiny_encoders import save_clip, save_qwen
from tests.stage_inputs import write_captions, write_edits, write_index

KINDS = {"bge-vl": "clip", "qwen3-vl-embedding": "qwen"}
PARTS = ["edited", "reference", "source", "instruction"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `clip` and `qwen`."""

    def make(folder: Path) -> None:
        save_clip(folder / "clip")
        save_qwen(folder / "qwen")

    return made_once(tmp_path_factory, "composing-models", make)


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, toy: Workspace, models: Path) -> Iterator[Workspace]:
    """A workspace whose dataset `toy` ranks by the method `composed` on the backbone `joint`."""
    backbone = {"kind": request.param, "model": str(models / KINDS[request.param]), "precision": "fp32"}
    content = toy.params()
    toy.params(
        backbones=content["backbones"] | {"joint": backbone},
        runs={"toy-joint": {"dataset": "toy", "backbone": "joint"}},
        datasets__toy__fusion="composed",
    )
    write_index()
    write_captions()
    write_edits()
    yield toy


def write_all() -> params.Params:
    settings = params.load()
    vectors.write_gallery("toy", "joint", settings)
    vectors.write_queries("toy", "joint", settings)
    return settings


def no_model(*arguments: object) -> None:
    raise AssertionError("a model is loaded")


def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loading any backbone an error."""
    monkeypatch.setattr("cvsi.models.bge_vl_model.BgeVl.__init__", no_model)
    monkeypatch.setattr("cvsi.models.qwen3_vl_embedding_model.Qwen3VlEmbedding.__init__", no_model)


def encoder_of(settings: params.Params) -> BackboneEncoder:
    loaded = load_encoder(settings.backbone("joint"), settings.compute)
    loaded.load()
    return loaded


def unit(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def test_a_run_ranks_by_the_composed_vectors(run: Workspace) -> None:
    settings = write_all()
    table, gallery = tables.whole("query_vectors", "toy", "joint"), tables.whole("gallery_vectors", "toy", "joint")
    assert table.column_names == ["query_id", "split", *PARTS, "composed"]
    loaded, queries = encoder_of(settings), pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    pictures = [loaded.prepare(Image.open(f"photos/{name}").convert("RGB")) for name in queries["reference_id"]]
    expected = loaded.composed_vectors(pictures, queries["instruction"].to_list()).numpy()
    composed = matrix_of(table, "composed", "here")
    assert np.allclose(composed, expected, atol=1e-6) and np.allclose(np.linalg.norm(composed, axis=1), 1, atol=1e-5)
    reference = matrix_of(table, "reference", "here")
    assert np.allclose(reference, unit(loaded.image_embeddings(pictures).numpy()), atol=1e-6)
    texts = loaded.text_vectors(loaded.tokens(queries["instruction"].to_list())).numpy()
    assert np.allclose(matrix_of(table, "instruction", "here"), texts, atol=1e-6)

    scores.build("toy", "joint", settings)
    images = pl.DataFrame(gallery.select(["image_id"]))["image_id"].to_list()
    products = composed @ matrix_of(gallery, "image", "here").T
    rankings = pl.read_parquet("cache/toy/joint/scores/rankings.parquet")
    for row, query in enumerate(queries.iter_rows(named=True)):
        order = [
            position
            for position in np.argsort(-products[row], kind="stable")
            if images[position] != query["reference_id"]
        ]
        ranked = rankings.filter(split=query["split"], query_id=query["query_id"]).sort("rank")
        assert ranked["image_id"].to_list() == [images[position] for position in order]
        assert np.allclose(ranked["score"].to_numpy(), products[row][order], atol=1e-5)


def test_the_table_has_the_methods_that_the_backbone_allows(run: Workspace) -> None:
    settings = write_all()
    scores.build("toy", "joint", settings)
    report.build("toy", "joint", settings)
    methods = pl.read_parquet("cache/toy/joint/report/methods.parquet")["method"].unique(maintain_order=True).to_list()
    assert methods[0] == "composed" and {"image", "text", "image+text", "edited", "product", "pdv"} <= {*methods}
    assert not {"cvsi", "pseudo", "soft"} & {*methods}


def test_rows_are_found_by_image_and_instruction(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all()
    before = run.bytes_below("toy/joint")
    content = run.params()
    run.params(
        datasets=content["datasets"] | {"again": content["datasets"]["toy"]},
        runs={"again-joint": {"dataset": "again", "backbone": "joint"}},
    )
    shutil.rmtree("cache/toy/joint")
    for stage in ("index", "captions", "edits"):
        shutil.copytree(f"cache/toy/{stage}", f"cache/again/{stage}")
    without_models(monkeypatch)
    write_all()
    assert run.bytes_below("toy/joint") == before
    settings = params.load()
    vectors.write_queries("again", "joint", settings)
    again = tables.whole("query_vectors", "again", "joint")
    assert again.equals(tables.whole("query_vectors", "toy", "joint"))
    facts = tables.provenance(paths.folder("query_vectors", "toy", "joint"))
    assert facts["composed"]["kind"] == "composed" and "pseudo" not in facts


def test_blocks_and_workers_do_not_change_the_vectors(run: Workspace) -> None:
    write_all()
    before = tables.whole("query_vectors", "toy", "joint")
    run.params(store="other-store", compute={"image_batch": 2, "block_batches": 1, "text_batch": 2})
    write_all()
    after = tables.whole("query_vectors", "toy", "joint")
    for part in (*PARTS, "composed"):
        assert np.allclose(matrix_of(after, part, "here"), matrix_of(before, part, "here"), atol=1e-5)
    assert len([*Path("other-store/composed_vectors").rglob("*.parquet")]) == 2  # three queries in blocks of two


def test_of_two_reference_images_the_mean_counts(run: Workspace) -> None:
    table = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    first = table.with_columns(second_reference_id=pl.Series(["blue.png", "", "black.png"]))
    first.write_parquet("cache/toy/index/queries.parquet")
    settings = write_all()
    composed = matrix_of(tables.whole("query_vectors", "toy", "joint"), "composed", "here")
    loaded = encoder_of(settings)
    pairs = [("red.png", "blue.png"), ("blue.png", None), ("black.png", "black.png")]
    for row, (pair, instruction) in enumerate(zip(pairs, table["instruction"], strict=True)):
        pictures = [loaded.prepare(Image.open(f"photos/{name}").convert("RGB")) for name in pair if name]
        both = loaded.composed_vectors(pictures, [instruction] * len(pictures)).numpy()
        assert np.allclose(composed[row], unit(both.sum(axis=0, keepdims=True))[0], atol=1e-6)


def test_an_instruction_without_a_word_leaves_the_image(run: Workspace) -> None:
    table = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    table.with_columns(instruction=pl.Series(["", "  ", "is green"])).write_parquet("cache/toy/index/queries.parquet")
    settings = write_all()
    table = tables.whole("query_vectors", "toy", "joint")
    composed, reference = (matrix_of(table, part, "here") for part in ("composed", "reference"))
    if settings.backbone("joint").kind == "bge-vl":
        assert np.allclose(composed[:2], reference[:2], atol=1e-6)
    assert np.isfinite(composed).all() and not np.allclose(composed[2], reference[2], atol=1e-3)


def test_a_part_of_an_image_is_composed(run: Workspace) -> None:
    from cvsi.core.images import image_digest

    images = pl.DataFrame(tables.read("index", "toy", "images.parquet"))
    crop = [8.0, 8.0, 40.0, 36.0]
    digests = [image_digest(digest, crop) for digest in images["digest"]]
    column = pl.Series("crop", [crop] * images.height, dtype=pl.Array(pl.Float32, 4))
    whole = images.with_columns(digest=pl.Series(digests)).with_columns(column)
    tables_before = write_all()
    before = matrix_of(tables.whole("query_vectors", "toy", "joint"), "composed", "here")
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = whole.to_arrow()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(crop * images.height, pa.float32()), 4)
    made = made.set_column(made.column_names.index("crop"), "crop", lists)
    pq.write_table(made, "cache/toy/index/images.parquet")
    write_captions()
    assert tables_before == params.load()
    write_all()
    after = matrix_of(tables.whole("query_vectors", "toy", "joint"), "composed", "here")
    assert not np.allclose(before, after, atol=1e-3)


def test_search_composes_image_and_text(run: Workspace) -> None:
    settings = write_all()
    scores.build("toy", "joint", settings)
    engine = Engine("toy-joint", settings)
    known = engine.answer(request(kind="composed", text="is green", image_id="red.png", k=5))
    rankings = pl.read_parquet("cache/toy/joint/scores/rankings.parquet").filter(split="val").sort("query_id", "rank")
    assert [result.image_id for result in known.results] == rankings["image_id"].to_list()[:5]
    new = engine.answer(request(kind="composed", text="is large", image=Path("photos/red.png").read_bytes(), k=3))
    loaded = encoder_of(settings)
    picture = loaded.prepare(Image.open("photos/red.png").convert("RGB"))
    gallery = tables.whole("gallery_vectors", "toy", "joint")
    products = matrix_of(gallery, "image", "here") @ loaded.composed_vectors([picture], ["is large"]).numpy()[0]
    names = [name for name in np.array(gallery["image_id"].to_pylist())[np.argsort(-products)] if name != "red.png"]
    assert [result.image_id for result in new.results] == names[:3] and not new.status
    assert len(engine.answer(request(kind="text", text="a disc", k=4)).results) == 4
    assert len(engine.answer(request(kind="like", image_id="red.png", k=4)).results) == 4
    engine.load()


def test_a_fusion_that_the_backbone_cannot_make_is_one_line(run: Workspace) -> None:
    run.params(datasets__toy__fusion="cvsi")
    settings = write_all()
    with pytest.raises(CvsiError, match=r"backbones\.joint has no phi; add a phi, or remove the weight"):
        scores.build("toy", "joint", settings)
    with pytest.raises(CvsiError, match=r"backbones\.joint has no phi; add a phi, or remove the weight"):
        Engine("toy-joint", settings).answer(request(kind="composed", text="is green", image_id="red.png", k=5))
    done = CliRunner().invoke(app, ["check"])
    assert "backbones.joint has no phi" in str(done.exception)


def test_a_clip_with_the_method_composed_is_one_line(toy: Workspace) -> None:
    toy.params(datasets__toy__fusion="composed")
    write_index()
    write_captions()
    write_edits()
    settings = params.load()
    vectors.write_gallery("toy", "tiny", settings)
    vectors.write_queries("toy", "tiny", settings)
    assert "composed" not in tables.schema_of("query_vectors", "toy", "tiny").names
    assert "composed" not in tables.provenance(paths.folder("query_vectors", "toy", "tiny"))
    assert not any(isinstance(job, ComposedJob) for job in vectors.query_jobs("toy", "tiny", settings))
    with pytest.raises(CvsiError, match="no column 'composed', which has a weight in the dataset's fusion"):
        scores.build("toy", "tiny", settings)
    done = CliRunner().invoke(app, ["check"])
    assert isinstance(done.exception, CvsiError)
    assert "backbones.tiny is of kind open_clip, which makes no composed vectors" in str(done.exception)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "clip-sum"}, "params.yaml: backbones.joint.kind: unknown kind of backbone 'clip-sum'; there are: "),
        ({"pretrained": "openai"}, "params.yaml: backbones.joint.pretrained: unknown key"),
        ({"preprocess": "padded"}, "params.yaml: backbones.joint.preprocess: "),
        ({"tokens": 3}, "params.yaml: backbones.joint.tokens: unknown key"),
    ],
)
def test_wrong_blocks_are_one_line(toy: Workspace, models: Path, changes: dict[str, Any], line: str) -> None:
    block = {"kind": "bge-vl", "model": str(models / "clip")} | changes
    toy.params(backbones=toy.params()["backbones"] | {"joint": block})
    with pytest.raises(CvsiError) as error:
        settings = params.load()
        write_index()
        vectors.query_jobs("toy", "joint", settings)
    assert line in str(error.value) and "\n" not in str(error.value)
    done = CliRunner().invoke(app, ["check"])
    assert isinstance(done.exception, CvsiError) and line in str(done.exception)


def test_a_phi_is_trained_for_a_clip_only(toy: Workspace, models: Path) -> None:
    block = {"kind": "bge-vl", "model": str(models / "clip")}
    content = toy.params()
    toy.params(
        backbones=content["backbones"] | {"joint": block}, phis={"x": content["phis"]["tiny"] | {"backbone": "joint"}}
    )
    from cvsi.training.train import train

    with pytest.raises(CvsiError, match="is of kind bge-vl, which has no phi; name a backbone of kind open_clip"):
        train("x", params.load())


def test_check_lists_a_missing_model_and_download_takes_its_repository(toy: Workspace, models: Path) -> None:
    names = {"base": "BAAI/BGE-VL-base", "2b": "Qwen/Qwen3-VL-Embedding-2B"}
    content = toy.params()
    runs = {name: {"dataset": "toy", "backbone": name} for name in content["backbones"] if "-vl-" in name}
    assert len(runs) == 4
    toy.params(runs=runs | {"folder": {"dataset": "toy", "backbone": "wrong"}}, backbones=content["backbones"] | {
        "wrong": {"kind": "bge-vl", "model": str(models / "qwen")}
    })  # fmt: skip
    settings = params.load()
    inventory = requirements.collect(settings)
    missing = "\n".join(f"{what}: {where}" for what, where in inventory.missing.items())
    for name in names.values():
        assert missing.count(f"backbone {name} at revision") == 1 and name in inventory.downloads
    assert "is of type 'qwen3_vl', but a backbone of kind bge-vl is a CLIP" in missing
    failures: list[str] = []
    wanted = {model.repository: model for model in download.wanted(settings, failures)}
    assert not failures and wanted["BAAI/BGE-VL-base"].keys == ("backbones.bge-vl-base.revision",)
    assert wanted["BAAI/BGE-VL-base"].file is None
    assert encoder.width_of(settings.backbone("qwen3-vl-embedding-8b")) == 4096


class Flat(BackboneEncoder):
    """A backbone of another package: colours as vectors."""

    def __init__(self, *arguments: object) -> None:
        self.device = torch.device("cpu")

    def load(self) -> None:
        pass

    def prepare(self, image: Image.Image) -> Any:
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float()

    def image_embeddings(self, images: Any) -> torch.Tensor:
        return torch.stack(list(images))

    def tokens(self, texts: Any) -> Any:
        return texts

    def text_vectors(self, tokens: Any, images: torch.Tensor | None = None) -> torch.Tensor:
        return torch.eye(3)[[len(text) % 3 for text in tokens]]


def test_a_kind_of_another_package_is_one_entry(toy: Workspace) -> None:
    kind = EncoderKind(
        width=lambda backbone: 3, recipe=lambda backbone, rows, precision: {"kind": rows, "flat": 1}, load=Flat
    )
    toy.params(backbones=toy.params()["backbones"] | {"flat": {"kind": "flat", "model": "none"}})
    write_index()
    write_captions()
    write_edits()
    with ENCODERS.using("flat", kind):
        vectors.write_gallery("toy", "flat", params.load())
        vectors.write_queries("toy", "flat", params.load())
        with pytest.raises(CvsiError, match="this kind of backbone makes no composed vectors"):
            Flat().composed_vectors([], [])
    table = tables.whole("query_vectors", "toy", "flat")
    assert table.column_names == ["query_id", "split", *PARTS]
    assert np.allclose(np.linalg.norm(matrix_of(table, "reference", "here"), axis=1), 1, atol=1e-5)
    assert json.loads(Path("cache/toy/flat/query_vectors/provenance.json").read_text())["image"]["flat"] == 1
