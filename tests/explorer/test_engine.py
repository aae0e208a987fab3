"""The engine's results are those of `scores`; new queries ask only the models that they need, and write nothing."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.datasets.formats import FORMATS
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import Answer, request
from cvsi.models.editor import Answer as Raw
from tests import toy_engines
from tests.conftest import Workspace
from tests.explorer.conftest import COPY, QUERIES

RUN = Path("cache/toy/tiny")
MODELS = {"_captioner", "_editor", "_encoder"}


def loaded(engine: Engine) -> set[str]:
    return MODELS & set(engine.models.__dict__)


def ids(answer: Answer) -> list[str]:
    return [result.image_id for result in answer.results]


def numbers(answer: Answer) -> list[float]:
    return [result.score for result in answer.results]


def of_scores(query: int) -> pl.DataFrame:
    """The rankings that the stage wrote for a query, by its place in `QUERIES`."""
    split = "val" if "targets" in QUERIES[query] else "test"
    rows = pl.read_parquet(RUN / "scores" / "rankings.parquet").filter(pl.col("split") == split)
    names = rows["query_id"].unique(maintain_order=True)
    return rows.filter(pl.col("query_id") == names[query if split == "val" else 0])


def ask(engine: Engine, query: int, by: str = "id", **more: Any) -> Answer:
    reference, text = str(QUERIES[query]["reference"]), QUERIES[query]["instruction"]
    image: dict[str, Any] = {"image_id": reference} if by == "id" else {"image": Path("photos", reference).read_bytes()}
    return engine.answer(request(kind="composed", text=text, k=100, **image, **more))


@pytest.mark.parametrize("by", ["id", "file"])
@pytest.mark.parametrize("query", range(len(QUERIES)))
def test_a_query_of_the_dataset_has_the_results_of_scores_and_needs_no_model(
    engine: Engine, query: int, by: str
) -> None:
    shutil.rmtree("cache/store")  # a clone that pulled the outputs has no rows
    answer, expected = ask(engine, query, by), of_scores(query)
    assert ids(answer) == expected["image_id"].to_list()
    assert numbers(answer) == pytest.approx(expected["score"].to_list(), abs=1e-6)
    assert [result.rank for result in answer.results] == expected["rank"].to_list()
    assert loaded(engine) == set()


@pytest.mark.parametrize("by", ["id", "file"])
@pytest.mark.parametrize("query", range(len(QUERIES)))
def test_rows_of_the_store_give_the_same_results_and_need_no_model(
    engine: Engine, query: int, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "_known", lambda *_: None)  # as for a query that is not of the dataset
    answer, expected = ask(engine, query, by), of_scores(query)
    # A file's content may be that of two images, which are both left out.
    expected = expected.filter(pl.col("image_id").is_in(ids(answer)))
    assert len(ids(answer)) >= 7
    assert ids(answer) == expected["image_id"].to_list()
    assert numbers(answer) == pytest.approx(expected["score"].to_list(), abs=1e-6)
    assert loaded(engine) == set()


@pytest.mark.parametrize("k", [1, 3, 9, 500])
def test_the_first_k_and_paths_below_the_root(engine: Engine, k: int) -> None:
    answer = engine.answer(request(kind="like", image_id="red.png", k=k))
    assert len(answer.results) == min(k, 9)
    assert all((Path("photos") / result.path).is_file() for result in answer.results)
    assert numbers(answer) == sorted(numbers(answer), reverse=True)


@pytest.mark.parametrize("image", ["blue.png", COPY])
def test_equal_scores_are_ranked_by_position(engine: Engine, image: str) -> None:
    answer = engine.answer(request(kind="like", image_id=image))
    assert ids(answer)[:2] == [COPY, "blue.png"] and numbers(answer)[0] == numbers(answer)[1]
    assert numbers(answer)[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("query", range(len(QUERIES)))
def test_a_text_alone_ranks_as_the_method_text(engine: Engine, query: int) -> None:
    text = QUERIES[query]["instruction"]
    rows = pl.read_parquet(RUN / "query_vectors" / "*.parquet").rename({"instruction": "instruction_vector"})
    places = pl.read_parquet("cache/toy/index/queries.parquet")
    (row,) = places.join(rows, on=["split", "query_id"]).filter(pl.col("instruction") == text).rows(named=True)
    table = pq.read_table(next((RUN / "gallery_vectors").glob("*.parquet")))
    gallery = np.array(table["image"].to_pylist(), dtype=np.float32)
    expected = gallery @ np.array(row["instruction_vector"], np.float32)
    answer = engine.answer(request(kind="text", text=text, k=9))
    order = np.argsort(-expected, kind="stable")
    assert numbers(answer) == pytest.approx(expected[order].tolist(), abs=1e-5)
    assert ids(answer)[:3] == [table["image_id"][int(place)].as_py() for place in order[:3]]
    assert loaded(engine) == set()


class Counted:
    """How often the toy models were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captions = self.answers = 0
        caption, answer = toy_engines.ColourCaptioner.captions, toy_engines.RuleEditor.answers

        def captions(own: Any, *arguments: Any) -> Any:
            self.captions += 1
            return caption(own, *arguments)

        def answers(own: Any, *arguments: Any) -> Any:
            self.answers += 1
            return answer(own, *arguments)

        monkeypatch.setattr(toy_engines.ColourCaptioner, "captions", captions)
        monkeypatch.setattr(toy_engines.RuleEditor, "answers", answers)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    """A picture that is not of the dataset."""
    Image.new("RGB", (50, 70), "navy").save(tmp_path / "navy.png")
    return (tmp_path / "navy.png").read_bytes()


def test_a_new_image_is_captioned_once_and_its_query_edited(engine: Engine, photo: bytes, counted: Counted) -> None:
    first = engine.answer(request(kind="composed", image=photo, text="is green"))
    assert (counted.captions, counted.answers) == (1, 1) and loaded(engine) == MODELS
    assert first.edited == ("it is green now",) and first.status == "ok" and len(first.results) == 9
    again = engine.answer(request(kind="composed", image=photo, text="is green"))
    assert (counted.captions, counted.answers) == (1, 1) and again == first
    other = engine.answer(request(kind="composed", image=photo, text="is white"))
    assert (counted.captions, counted.answers) == (1, 2) and numbers(other) != numbers(first)


def test_an_edited_text_asks_no_language_model(engine: Engine, photo: bytes, counted: Counted) -> None:
    answer = engine.answer(request(kind="composed", image=photo, text="is green", edited=("a green disc",)))
    assert (counted.captions, counted.answers) == (0, 0) and loaded(engine) == {"_encoder"}
    assert answer.edited == ("a green disc",) and answer.status == "" and not answer.fell_back
    other = engine.answer(request(kind="composed", image=photo, text="is green", edited=("a white house",)))
    assert numbers(other) != numbers(answer)


def test_an_edited_text_replaces_that_of_a_query_of_the_dataset(engine: Engine) -> None:
    own, other = ask(engine, 0), ask(engine, 0, edited=("a white house by the sea",))
    assert numbers(own) != numbers(other) and set(ids(own)) == set(ids(other))


@pytest.mark.parametrize(
    ("fusion", "models", "asked"),
    [
        ({"query": {"reference": 1}, "gallery": {"image": 1}}, {"_encoder"}, (0, 0)),
        ({"query": {"reference": 1, "instruction": 1}, "gallery": {"image": 1}}, {"_encoder"}, (0, 0)),
        ("image+text", {"_encoder"}, (0, 0)),
        ({"query": {"source": 1}, "gallery": {"caption": 1}}, {"_encoder", "_captioner"}, (1, 0)),
        ({"query": {"pseudo": 1}, "gallery": {"image": 1}}, MODELS, (1, 1)),
        ("pdv", MODELS, (1, 1)),
    ],
)
def test_only_the_models_of_the_fusion_are_loaded(
    run: Workspace, photo: bytes, counted: Counted, fusion: Any, models: set[str], asked: tuple[int, int]
) -> None:
    run.params(datasets__toy__fusion=fusion)
    engine = Engine("toy-tiny", params.load())
    answer = engine.answer(request(kind="composed", image=photo, text="is green"))
    assert len(answer.results) == 9 and loaded(engine) == models and (counted.captions, counted.answers) == asked
    warm = Engine("toy-tiny", params.load())
    warm.load()
    assert loaded(warm) == models


@pytest.mark.parametrize("kind", ["text", "like", "composed"])
def test_without_a_weight_for_a_pseudo_token_no_phi_is_needed(run: Workspace, photo: bytes, kind: str) -> None:
    run.params(backbones__tiny__phi="nowhere.safetensors", datasets__toy__fusion="image+text")
    engine, image = Engine("toy-tiny", params.load()), {} if kind == "text" else {"image": photo}
    text = {} if kind == "like" else {"text": "is new"}
    assert len(engine.answer(request(kind=kind, **image, **text)).results) == 9
    run.params(datasets__toy__fusion="pseudo")
    with pytest.raises(CvsiError, match=r"nowhere\.safetensors"):
        Engine("toy-tiny", params.load()).answer(request(kind="composed", image=photo, text="is new"))


def test_computed_rows_do_not_pile_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvsi.explorer.components.KeptRows.forget.__defaults__", (5,))
    for number in range(20):
        engine.answer(request(kind="text", text=f"a disc of colour {number}"))
    assert 1 <= engine.models._text_rows._held.num_rows <= 6


def test_nothing_is_written(run: Workspace, engine: Engine, photo: bytes) -> None:
    before = run.bytes_below("toy", "store")
    engine.answer(request(kind="composed", image=photo, text="is green"))
    engine.answer(request(kind="text", text="a green disc"))
    engine.answer(request(kind="like", image=photo))
    assert run.bytes_below("toy", "store") == before


@pytest.mark.parametrize("by", ["id", "file"])
def test_the_reference_is_left_out_where_the_queries_leave_theirs_out(engine: Engine, by: str) -> None:
    image: dict[str, Any] = {"image_id": "red.png"} if by == "id" else {"image": Path("photos/red.png").read_bytes()}
    answer = engine.answer(request(kind="composed", text="is new here", **image))
    assert len(answer.results) == 8 and "red.png" not in ids(answer)


def change_queries(**columns: pl.Expr) -> None:
    """Rewrite columns of the index's queries, as another format would have them."""
    file = Path("cache/toy/index/queries.parquet")
    pl.read_parquet(file).with_columns(**columns).write_parquet(file)


def test_the_reference_is_kept_where_the_queries_keep_theirs(run: Workspace) -> None:
    change_queries(exclude_ids=pl.lit([], dtype=pl.List(pl.String)))
    answer = Engine("toy-tiny", params.load()).answer(request(kind="composed", text="is new", image_id="red.png"))
    assert len(answer.results) == 9 and "red.png" in ids(answer)


def test_without_queries_the_format_decides(run: Workspace, photo: bytes) -> None:
    for file in (Path("cache/toy/index/queries.parquet"), *(RUN / "query_vectors").glob("*.parquet")):
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    engine = Engine("toy-tiny", params.load())
    assert len(engine.answer(request(kind="composed", text="is new", image_id="red.png")).results) == 8
    assert len(engine.answer(request(kind="composed", text="is new", image=photo)).results) == 9
    assert len(engine.answer(request(kind="text", text="a green disc")).results) == 9


def test_a_format_says_what_its_queries_do() -> None:
    says = {name: kind.excludes_reference for name, kind in FORMATS if name in ("circo", "cirr", "fashioniq", "folder")}
    assert says == {"circo": False, "cirr": True, "fashioniq": False, "folder": True}


def test_a_fallback_is_told(run: Workspace, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_engines.RuleEditor, "answers", lambda _, prompts: [Raw("", "stop")] * 2)
    answer = Engine("toy-tiny", params.load()).answer(request(kind="composed", image=photo, text="is new here"))
    assert answer.fell_back and answer.status.startswith("no answer") and len(answer.results) == 9


def test_a_failure_that_may_pass_is_asked_again(run: Workspace, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, wanted = Engine("toy-tiny", params.load()), request(kind="composed", image=photo, text="is new here")
    with monkeypatch.context() as patch:
        patch.setattr(toy_engines.RuleEditor, "answers", lambda _, prompts: [Raw("", "failed: 503")] * 2)
        assert engine.answer(wanted).fell_back
    assert not engine.answer(wanted).fell_back


def test_vectors_of_another_program_serve_the_queries_of_the_dataset_alone(run: Workspace, photo: bytes) -> None:
    for file in (RUN / "query_vectors").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("foreign", table["edited"]), file)
    run.params(datasets__toy__fusion={"query": {"foreign": 1}, "gallery": {"image": 1}})
    engine = Engine("toy-tiny", params.load())
    assert len(ask(engine, 0).results) == 8
    with pytest.raises(CvsiError, match="no component computes 'foreign'"):
        engine.answer(request(kind="composed", image=photo, text="is green"))


def refused(engine: Engine, **parts: Any) -> str:
    with pytest.raises(CvsiError) as error:
        engine.answer(request(**parts))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 50, b"%PDF-1.4", b"\xff\xd8\xff\xe0" + b"\0" * 99],
    ids=["text", "PNG", "GIF", "PDF", "JPEG"],
)
def test_bytes_that_are_no_image_are_one_line(engine: Engine, data: bytes) -> None:
    assert refused(engine, kind="like", image=data).startswith("the image cannot be read")


@pytest.mark.parametrize("name", ["nope.png", "../red.png", "/etc/hostname", "red.png\0", "Red.png"])
def test_an_id_that_the_dataset_does_not_have_is_one_line(engine: Engine, name: str) -> None:
    assert "no such image of dataset toy" in refused(engine, kind="like", image_id=name)


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": "text", "text": " \n "},
        {"kind": "text", "text": "a" * 20_000},
        {"kind": "text", "text": "a" * 5_000},
        {"kind": "text", "text": "a\udcffb"},
        {"kind": "text", "text": "a\0b"},
        {"kind": "text", "text": "a", "k": 0},
        {"kind": "text", "text": "a", "k": 1_001},
        {"kind": "text", "text": "a", "image_id": "red.png"},
        {"kind": "text", "text": "a", "edited": ("b",)},
        {"kind": "composed", "text": "a"},
        {"kind": "composed", "text": "", "image_id": "red.png"},
        {"kind": "composed", "text": "a", "image_id": "red.png", "image": b"x"},
        {"kind": "composed", "text": "a", "image_id": "red.png", "edited": (" ",)},
        {"kind": "composed", "text": "a", "image_id": "red.png", "edited": ("b",) * 99},
        {"kind": "like"},
        {"kind": "like", "image_id": "red.png", "text": "a"},
        {"kind": "other", "text": "a"},
        {"kind": "text", "text": "a", "path": "/etc/passwd"},
    ],
)
def test_parts_that_do_not_fit_are_one_line(engine: Engine, parts: dict[str, Any]) -> None:
    assert refused(engine, **parts)


def test_a_picture_of_the_dataset_that_changed_or_is_gone_is_one_line(run: Workspace, engine: Engine) -> None:
    shutil.rmtree("cache/store")
    shutil.copy("photos/green.png", "photos/red.png")
    assert "the file changed since it was indexed" in refused(engine, kind="like", image_id="red.png")
    Path("photos/blue.png").unlink()
    assert "blue.png: No such file" in refused(engine, kind="like", image_id="blue.png")


@pytest.mark.parametrize("stage", ["gallery_vectors", "query_vectors"])
def test_a_run_without_vectors_is_one_line(run: Workspace, stage: str) -> None:
    shutil.rmtree(RUN / stage)
    with pytest.raises(CvsiError, match=f"{stage}.*dvc repro"):
        Engine("toy-tiny", params.load()).answer(request(kind="text", text="a"))


def test_a_run_without_an_index_is_one_line(run: Workspace) -> None:
    shutil.rmtree("cache/toy/index")
    with pytest.raises(CvsiError, match="index"):
        Engine("toy-tiny", params.load())


def test_a_run_that_does_not_exist_is_one_line(run: Workspace) -> None:
    with pytest.raises(CvsiError, match="no run 'nope'; there are: toy-tiny"):
        Engine("nope", params.load())
