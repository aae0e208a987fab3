"""Scores and the report of a dataset without queries: empty tables with their columns, and a page with the gallery."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from cvsi.commands import sweep
from cvsi.commands.check import check_blocks
from cvsi.commands.main import app
from cvsi.core import params, paths, schema, tables
from cvsi.core.errors import CvsiError
from cvsi.datasets import index
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, scores
from cvsi.evaluation.report import build, gallery_cards
from cvsi.pipeline import edits, vectors
from tests.conftest import Workspace
from tests.stage_inputs import DISC_CAPTIONS, write_captions, write_edits, write_index, write_vectors

WITHOUT_PHI = [part for part in schema.QUERY_PARTS if part != "pseudo"]
OF_OTHERS = {"soft", "osrcir", "sdr", "roles", "composed"}  # methods that need a reader, or another backbone
PLAIN = {"query": {"edited": 0.7, "reference": 0.3}, "gallery": {"image": 0.8, "caption": 0.2}}


def prepared(toy: Workspace, captions: dict[str, list[str]] = DISC_CAPTIONS, **changes: Any) -> params.Params:
    """Everything before the scores of a dataset without queries; its settings."""
    (toy.path / "photos" / "queries.jsonl").write_text("")
    toy.params(**changes)
    write_index()
    write_captions(captions)
    edits.write("toy", params.load())
    without = params.load().backbone("tiny").phi is None
    write_vectors(WITHOUT_PHI if without else schema.QUERY_PARTS)
    return params.load()


def reported(settings: params.Params) -> str:
    """The page after scores and report."""
    scores.build("toy", "tiny", settings)
    build.build("toy", "tiny", settings)
    return (paths.folder("report", "toy", "tiny") / "index.html").read_text(encoding="utf-8")


def contract(shared: Path) -> int:
    """The exit code of the contract's own check of the outputs; what it prints is in the test's output."""
    tool = shared / "tools" / "check_contract.py"
    return subprocess.run([sys.executable, str(tool), "cache", "toy", "tiny"]).returncode


@pytest.mark.parametrize("phi", ["some.safetensors", None])
@pytest.mark.parametrize("fusion", [PLAIN, "pdv", "image+text"])
def test_scores_are_empty_tables_with_their_columns(toy: Workspace, phi: str | None, fusion: object) -> None:
    settings = prepared(toy, backbones__tiny__phi=phi, datasets__toy__fusion=fusion)
    scores.build("toy", "tiny", settings)
    folder = paths.folder("scores", "toy", "tiny")
    rankings, values = (pq.read_table(folder / f"{name}.parquet") for name in ("rankings", "per_query"))
    names = format_of(settings.dataset("toy"), "toy").protocol.names()
    assert rankings.num_rows == values.num_rows == 0
    assert rankings.schema.equals(schema.RANKINGS) and values.schema.equals(schema.per_query(names))
    assert json.loads((folder / "metrics.json").read_text()) == {}
    assert not list(folder.glob("submissions/*"))


def test_the_contract_holds(toy: Workspace, shared: Path) -> None:
    reported(prepared(toy, backbones__tiny__phi=None, datasets__toy__fusion=PLAIN))
    assert contract(shared) == 0
    table = tables.whole("edits", "toy")
    assert table.schema.equals(schema.EDITS)
    methods = pq.read_table(paths.folder("report", "toy", "tiny") / "methods.parquet")
    assert methods.num_rows == 0 and methods.column_names[:3] == ["method", "query_id", "split"]


def test_the_page_shows_every_image_of_a_small_gallery_with_a_caption(toy: Workspace) -> None:
    page = reported(prepared(toy))
    assert "All 8 images, each with its first caption." in page and "has no queries yet" in page
    assert page.count("<figure") == page.count("data:image/png;base64,") == 8
    for name, captions in DISC_CAPTIONS.items():
        assert f"<figcaption>{captions[0]}<span" in page and f'alt="image {name}"' in page
    for text in ("Example queries", "No split has labels", "fell back", "<dt>editor</dt>", "Methods on", "Infinity"):
        assert text not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page


def test_the_page_has_queries_that_can_be_copied(toy: Workspace) -> None:
    settings = prepared(toy)
    block = re.findall(r"<pre>(.*?)</pre>", reported(settings), re.DOTALL)[0]
    lines = block.replace("&#34;", '"').strip().splitlines()
    assert len(lines) == 2 and "targets" not in lines[0] and "targets" in lines[1]
    (toy.path / "photos" / "queries.jsonl").write_text("\n".join(lines) + "\n")
    write_index()
    queries = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    images = pl.DataFrame(tables.read("index", "toy", "images.parquet"))["image_id"]
    assert queries["split"].to_list() == ["test", "val"]
    assert queries["reference_id"].is_in(images.implode()).all()
    assert queries["target_ids"].explode().drop_nulls().is_in(images.implode()).all()


def test_a_page_with_queries_has_no_gallery(toy: Workspace) -> None:
    settings = prepared(toy)
    (toy.path / "photos" / "queries.jsonl").write_text('{"reference": "red.png", "instruction": "is green"}\n')
    write_index()
    row = {"query_id": "0", "split": "test", "edited": ["a disc"], "added": "", "status": "ok"}
    row |= {"answer_status": ["ok"], "answers": ["a disc"], "finish": ["stop"]}
    with tables.output("edits", "toy") as out:
        out.shards(pl.DataFrame([row]).to_arrow(), schema.EDITS)
    write_vectors(schema.QUERY_PARTS)
    page = reported(settings)
    assert "<h2>Example queries</h2>" in page and "No split has labels" in page
    assert "<h2>Gallery</h2>" not in page and "Add queries" not in page and "has no queries yet" not in page


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("<b>bold</b> & \"quotes\"", "&lt;b&gt;bold&lt;/b&gt; &amp; &#34;quotes&#34;"),
        ("", "(no caption)"),
        ("a " * 400, f"{('a ' * 80).rstrip()}…"),
        ("一只狗", "一只狗"),
    ],
)  # fmt: skip
def test_captions_are_escaped_and_cut(toy: Workspace, caption: str, shown: str) -> None:
    page = reported(prepared(toy, DISC_CAPTIONS | {"red.png": [caption] if caption else []}))
    assert f"<figcaption>{shown}<span" in page and "<b>bold" not in page


def many(toy: Workspace, number: int, picture: Image.Image, hidden: int = 0) -> None:
    """An index without queries of so many equal pictures, with captions; the last `hidden` ones are not ranked."""
    (toy.path / "photos" / "one.jpg").unlink(missing_ok=True)
    picture.save(toy.path / "photos" / "one.jpg", quality=95)
    ids = [f"{n:05d}" for n in range(number)]
    images = pl.DataFrame(
        {"image_id": ids, "path": ["one.jpg"] * number, "digest": [f"{n:064x}" for n in range(number)]}
    ).with_columns(
        width=pl.lit(picture.width, pl.Int32), height=pl.lit(picture.height, pl.Int32),
        in_gallery=pl.int_range(pl.len()) < number - hidden,
    )  # fmt: skip
    captions = images.select("image_id", "digest", captions=pl.concat_list(pl.lit("a picture")))
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images.to_arrow(), schema.IMAGES)
        out.table("queries.parquet", schema.QUERIES.empty_table(), schema.QUERIES)
    with tables.output("captions", "toy") as out:
        out.shards(captions.to_arrow(), schema.CAPTIONS)


@pytest.fixture
def any_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are read without a look at their digest, so that one file can be many images."""

    def opened(path: Path, digest: str, side: int) -> str:
        from cvsi.evaluation.report.thumbnails import address

        with Image.open(path) as image:
            return address(image.convert("RGB"), side)

    monkeypatch.setattr(gallery_cards, "thumbnail", opened)


@pytest.mark.parametrize(("number", "hidden"), [(1, 0), (47, 0), (49, 1), (500, 100), (20_000, 0)])
def test_a_sample_is_spread_over_the_gallery(toy: Workspace, any_digest: None, number: int, hidden: int) -> None:
    many(toy, number, Image.new("RGB", (40, 30), "red"), hidden)
    cards = gallery_cards.gallery_cards("toy", Path("photos"))
    shown, ranked = [int(card["id"]) for card in cards], number - hidden
    assert len(cards) == min(ranked, 48) and shown == sorted(set(shown))
    assert shown[0] == 0 and max(shown) < ranked
    assert max(np.diff([*shown, ranked])) <= -(-ranked // 48)


def test_pictures_with_many_bytes_are_thinned_out_evenly(
    toy: Workspace, any_digest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    many(toy, 48, Image.fromarray(noise))
    all_of_them = gallery_cards.gallery_cards("toy", Path("photos"))
    size = len(all_of_them[0]["picture"])
    assert sum(len(card["picture"]) for card in all_of_them) <= gallery_cards.MOST_BYTES
    monkeypatch.setattr(gallery_cards, "MOST_BYTES", 13 * size)
    assert [int(card["id"]) for card in gallery_cards.gallery_cards("toy", Path("photos"))] == list(range(0, 48, 4))


def test_lengths_of_the_page_are_bounded_by_shape(toy: Workspace, any_digest: None) -> None:
    for size, ratio in (((4, 400), 0.6), ((400, 4), 2.4), ((300, 200), 1.5)):
        many(toy, 2, Image.new("RGB", size, "red"))
        assert {card["ratio"] for card in gallery_cards.gallery_cards("toy", Path("photos"))} == {ratio}


def test_an_example_of_a_single_image_has_no_right_answer() -> None:
    (line,) = gallery_cards.example([{"id": 'a "b".jpg'}])
    assert json.loads(line) == {"reference": 'a "b".jpg', "instruction": "the same place at night"}


def computed(toy: Workspace) -> None:
    """Index and vectors of the toy dataset by its stages, captions and edits as written by hand."""
    settings = params.load()
    index.build("toy", settings)
    write_captions()
    if tables.read("index", "toy", "queries.parquet").num_rows:
        write_edits()
    else:
        edits.write("toy", settings)
    vectors.write_gallery("toy", "tiny", settings)
    vectors.write_queries("toy", "tiny", settings)


def one_line(call: Callable[[], object]) -> str:
    """The one line with which a call must fail."""
    with pytest.raises(CvsiError) as error:
        call()
    (line,) = str(error.value).splitlines()
    return line


def test_labelled_queries_without_phi_have_metrics_and_name_the_methods_left_out(
    toy: Workspace, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=PLAIN)
    computed(toy)
    page = reported(params.load())
    folder = paths.folder("report", "toy", "tiny")
    content = json.loads((folder / "weightings.json").read_text())
    fusions = methods.table(params.load(), "toy")
    needing = {name for name, fusion in fusions.items() if "pseudo" in fusion.query_columns}
    assert needing and set(content["left_out"]) == needing | OF_OTHERS
    assert {content["left_out"][name] for name in needing} == {"no column pseudo; the backbone has no phi"}
    assert set(content["splits"]["val"]) == set(fusions) - needing - OF_OTHERS
    assert set(pq.read_table(folder / "methods.parquet")["method"].to_pylist()).isdisjoint(needing)
    for name in needing:
        assert f"<b>{name}</b> (no column pseudo; the backbone has no phi)" in page
    assert "<dt>phi</dt><dd>none: no pseudo tokens</dd>" in page and "<h2>Gallery</h2>" not in page
    assert contract(shared) == 0
    capsys.readouterr()
    assert CliRunner().invoke(app, ["show", "toy-tiny"]).output.count("no column pseudo; the backbone has no phi")
    columns = sweep.build("toy", "tiny", params.load(), step=0.5).frame.columns
    assert "edited" in columns and "pseudo" not in columns
    assert "'pseudo'" in one_line(lambda: sweep.build("toy", "tiny", params.load(), ["edited", "pseudo"], 0.5))


def test_the_page_of_a_backbone_with_phi_leaves_out_what_needs_a_reader(toy: Workspace) -> None:
    toy.params(datasets__toy__fusion=PLAIN)
    computed(toy)
    page = reported(params.load())
    content = json.loads((paths.folder("report", "toy", "tiny") / "weightings.json").read_text())
    assert set(content["left_out"]) == OF_OTHERS and "no phi" not in page
    of_target = "needs a reader with the role target"
    assert content["left_out"]["sdr"] == content["left_out"]["osrcir"] == of_target
    assert f"<b>sdr</b> ({of_target})" in page


WITH_PSEUDO: dict[str, object] = {
    "weights": {"query": {"edited": 0.6, "pseudo": 0.4}, "gallery": {"image": 1}},
    "pseudo alone": {"query": {"pseudo": 1}, "gallery": {"image": 1}},
    "negative": {"query": {"edited": 1, "pseudo": -0.1}, "gallery": {"image": 1}},
    "by name": "pseudo",
    "forms": {"forms": {"similarity": {"query": {"edited": 1, "pseudo": 1}, "gallery": {"image": 1}, "unit": True}},
              "score": {"kind": "sum"}},
    "own method": "mine",
}  # fmt: skip


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("fusion", WITH_PSEUDO.values(), ids=WITH_PSEUDO)
def test_a_fusion_with_a_weight_for_pseudo_without_phi_is_one_line_that_names_both(
    toy: Workspace, fusion: object, queries: bool
) -> None:
    mine = {"query": {"pseudo": 0.2, "edited": 0.8}, "gallery": {"image": 1}}
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=fusion, methods={"mine": mine})
    if not queries:
        (toy.path / "photos" / "queries.jsonl").write_text("")
    write_index()
    write_vectors(WITHOUT_PHI)
    settings = params.load()
    checked = CliRunner().invoke(app, ["check"])
    assert checked.exit_code != 0
    for line in (one_line(lambda: scores.build("toy", "tiny", settings)), one_line(lambda: check_blocks(settings))):
        assert "pseudo" in line and "datasets.toy.fusion" in line and "backbones.tiny has no phi" in line
    assert not paths.folder("scores", "toy", "tiny").exists()


@pytest.mark.parametrize(
    "fusion", [PLAIN, "pdv", "edited", {"query": {"edited": 1, "pseudo": 0}, "gallery": {"image": 1}}]
)
def test_a_fusion_without_pseudo_needs_no_phi(toy: Workspace, fusion: object) -> None:
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=fusion)
    write_index()
    write_vectors(WITHOUT_PHI)
    check_blocks(params.load())
    scores.build("toy", "tiny", params.load())
    assert json.loads((paths.folder("scores", "toy", "tiny") / "metrics.json").read_text())["val"]["queries"] == 2


@pytest.mark.parametrize("phi", [None, "some.safetensors"])
def test_phi_is_not_blamed_for_another_column(toy: Workspace, phi: str | None) -> None:
    toy.params(backbones__tiny__phi=phi, datasets__toy__fusion=PLAIN)
    write_index()
    write_vectors(["edited", "pseudo"])
    line = one_line(lambda: scores.build("toy", "tiny", params.load()))
    assert "no column 'reference'" in line and "phi" not in line


def test_vectors_with_pseudo_of_another_program_are_used_without_phi(toy: Workspace) -> None:
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion="pseudo")
    write_index()
    write_vectors(schema.QUERY_PARTS)
    scores.build("toy", "tiny", params.load())
    assert json.loads((paths.folder("scores", "toy", "tiny") / "metrics.json").read_text())["val"]["queries"] == 2


@pytest.mark.parametrize("content", ["\n \n\t\n", None, "dropped"])
def test_all_stages_of_a_folder_without_queries(toy: Workspace, shared: Path, content: str | None) -> None:
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=PLAIN, datasets__toy__missing_images="drop")
    file = toy.path / "photos" / "queries.jsonl"
    file.unlink()
    if content == "dropped":
        file.write_text('{"reference": "gone.png", "instruction": "is green", "targets": ["red.png"]}\n')
    elif content is not None:
        file.write_text(content)
    computed(toy)
    page = reported(params.load())
    assert contract(shared) == 0 and page.count("<figure") == 8
    for stage, rows in (("edits", 0), ("query_vectors", 0), ("gallery_vectors", 8)):
        backbone = None if stage == "edits" else "tiny"
        assert tables.whole(stage, "toy", backbone).num_rows == rows
    assert not tables.whole("query_vectors", "toy", "tiny").column_names.count("pseudo")


def test_the_commands_of_a_run_without_queries(toy: Workspace) -> None:
    (toy.path / "photos" / "queries.jsonl").unlink()
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=PLAIN)
    computed(toy)
    reported(params.load())

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        assert "Traceback" not in done.output and isinstance(done.exception, CvsiError | SystemExit | None)
        return done.exit_code, done.output if done.exit_code == 0 else str(done.exception)

    code, printed = command("check")
    assert code == 0 and "no queries to edit" in printed and "photos/queries.jsonl: no such file" in printed
    assert "editor" not in printed and "Nothing is missing." in printed
    code, printed = command("show", "toy-tiny")
    assert code == 0 and "toy has no queries: no rankings, no metrics" in printed and "photos/queries.jsonl" in printed
    code, printed = command("summary")
    assert code == 0 and "toy-tiny: no queries; its gallery is shown in cache/toy/tiny/report/index.html" in printed
    assert command("sweep", "toy", "tiny") == (1, one_line(lambda: sweep.build("toy", "tiny", params.load())))
    assert command("compare", "toy-tiny", "toy-tiny")[0] == 1


def test_queries_added_to_a_gallery_replace_it(toy: Workspace) -> None:
    queries = (toy.path / "photos" / "queries.jsonl").read_text()
    toy.params(backbones__tiny__phi=None, datasets__toy__fusion=PLAIN)
    for content, rows, figures in (("", 0, True), (queries, 3, False), ("\n", 0, True)):
        (toy.path / "photos" / "queries.jsonl").write_text(content)
        computed(toy)
        page = reported(params.load())
        assert ("<h2>Gallery</h2>" in page) == figures and ("Example queries" in page) != figures
        rankings = pq.read_table(paths.folder("scores", "toy", "tiny") / "rankings.parquet")
        assert len(set(zip(rankings["split"].to_pylist(), rankings["query_id"].to_pylist(), strict=True))) == rows
