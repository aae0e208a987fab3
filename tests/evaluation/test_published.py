"""Published figures: copied without a slip, and set beside ours only where that is fair."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Dataset
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation import methods, published
from cvsi.evaluation.report import published_section
from tests.conftest import Workspace
from tests.imports import ROOT

SETTINGS = params.load(ROOT / "params.yaml")
B32, L14, GIGA = (SETTINGS.backbone(name) for name in ("vit-b-32", "vit-l-14", "vit-bigg-14"))
# Rows of the field's tables that no run of ours can stand beside.
LEFT_OUT = {"MVFT-JI", "FiRE BLIP-3-4B", "E5-V 8B", "MM-Embed 7.6B", "BGE-VL-MLLM 7.6B"}
BENCHMARKS = ("circo", "cirr", "fashioniq-dress", "fashioniq-shirt", "fashioniq-toptee")
PARTS = ("fashioniq-shirt", "fashioniq-dress", "fashioniq-toptee", "fashioniq-average")


def cells(shared: Path, section: str) -> list[list[str]]:
    """The rows of a section's table, header and rule left out."""
    part = (shared / "FIELD.md").read_text(encoding="utf-8").split(f"### {section} ")[1].split("\n### ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[0:1] == "|"][2:]


def ours(method: str, backbone: str, benchmark: str) -> list[published.Row]:
    return [
        row
        for row in published.load().rows
        if (row.method, row.backbone) == (method, backbone) and benchmark in row.figures
    ]


def plain(method: str) -> str:
    """A method without its remark in parentheses."""
    return re.sub(r"\s*\(.*\)$", "", method)


def number(cell: str) -> float | None:
    return None if cell in ("-", "") else float(cell)


@pytest.mark.parametrize(("section", "backbone"), [("1.2", "vit-b-32"), ("1.3", "vit-l-14"), ("1.4", "vit-bigg-14")])
def test_every_figure_of_circo_and_cirr_is_as_printed(shared: Path, section: str, backbone: str) -> None:
    wanted: dict[tuple[str, str], tuple[float | None, ...]] = {}
    for method, *figures, source in cells(shared, section):
        if plain(method) in LEFT_OUT or method == "CVSI":
            continue
        for benchmark, part in (("circo", figures[:4]), ("cirr", figures[4:])):
            wanted[plain(method), benchmark] = tuple(number(cell) for cell in part)
            (row,) = ours(plain(method), backbone, benchmark)
            assert (row.kind == "trained") == ("(trained)" in method)
            assert len(row.sources) == len(re.split("[,;] ", source))
    figures_of = {
        (row.method, name): figures
        for row in published.load().rows
        for name, figures in row.figures.items()
        if row.backbone == backbone and name in ("circo", "cirr")
    }
    assert len(wanted) > 30 and figures_of == wanted


def test_every_figure_of_fashioniq_is_as_printed(shared: Path) -> None:
    wanted = {}
    for method, letter, *parts, _ in cells(shared, "1.5"):
        if plain(method) in LEFT_OUT or method == "CVSI":
            continue
        backbone = {"B": "vit-b-32", "L": "vit-l-14", "G": "vit-bigg-14"}[letter]
        for benchmark, cell in zip(PARTS, parts, strict=True):
            wanted[plain(method), backbone, benchmark] = tuple(map(float, cell.split(" (")[0].split("/")))
    figures_of = {
        (row.method, row.backbone, name): figures
        for row in published.load().rows
        for name, figures in row.figures.items()
        if name in PARTS
    }
    assert len(wanted) > 150 and figures_of == wanted


def test_names_are_those_of_our_parameters_metrics_and_methods() -> None:
    content = published.load()
    named = {dataset.benchmark for dataset in SETTINGS.datasets.values()} - {None}
    assert named == set(content.benchmarks) - {"fashioniq-average"}
    for name, benchmark in content.benchmarks.items():
        assert set(benchmark.metrics) <= set(FORMATS.get(name.partition("-")[0], "test").protocol.names())
    for name, clip in content.backbones.items():
        assert (clip.model, clip.pretrained) == (SETTINGS.backbone(name).model, SETTINGS.backbone(name).pretrained)
    assert set(content.counterparts) == {row.weighting for row in content.rows if row.weighting}
    assert set(content.counterparts) <= set(methods.table(SETTINGS, "circo"))


def test_the_seven_benchmark_datasets_and_no_other_name_a_benchmark() -> None:
    named = {name: dataset.benchmark for name, dataset in SETTINGS.datasets.items() if dataset.benchmark}
    assert named == {
        "circo": "circo", "cirr-val": "cirr", "cirr-test1": "cirr", "fashioniq-dress": "fashioniq-dress",
        "fashioniq-shirt": "fashioniq-shirt", "fashioniq-toptee": "fashioniq-toptee",
    }  # fmt: skip


def verdicts(
    benchmark: str, split: str, backbone: Backbone, weighting: str, metrics: dict[str, float] | None
) -> list[tuple[str, str, str]]:
    pairs = published.compare(benchmark, split, backbone, weighting, metrics)
    return [(row.method, comparison.verdict, comparison.words) for row, comparison in pairs]


def test_near_is_within_two_points_at_every_cut_off() -> None:
    # LinCIR with ViT-L on dresses: 20.92 and 42.44.
    near = {"Recall@1": 99.0, "Recall@10": 22.0, "Recall@50": 41.0}
    assert verdicts("fashioniq-dress", "val", L14, "pseudo", near) == [
        ("LinCIR", "near", "near: within 2 points, at most -1.44 (Recall@50)")
    ]
    far = near | {"Recall@10": 30.0}
    assert verdicts("fashioniq-dress", "val", L14, "pseudo", far) == [("LinCIR", "off", "off: +9.08 at Recall@10")]
    ((_, comparison),) = published.compare("fashioniq-dress", "val", L14, "pseudo", far)
    assert comparison.ours == {"Recall@10": 30.0, "Recall@50": 41.0}
    assert comparison.differences == pytest.approx({"Recall@10": 9.08, "Recall@50": -1.44})


def test_a_language_model_may_explain_a_difference_where_a_method_uses_one() -> None:
    # CIReVL with ViT-L on dresses: 24.79 and 44.76; LinCIR has no language model.
    ((_, _, words),) = verdicts("fashioniq-dress", "val", L14, "edited", {"Recall@10": 21.79, "Recall@50": 44.76})
    assert words == "off: -3.00 at Recall@10; the language model alone may explain up to 4 points"
    ((_, _, words),) = verdicts("fashioniq-dress", "val", L14, "pseudo", {"Recall@10": 17.92})
    assert words == "off: -3.00 at Recall@10"


def test_fashioniq_with_openais_small_clip_is_not_comparable_with_cirevl() -> None:
    ((_, verdict, words),) = verdicts("fashioniq-shirt", "val", B32, "edited", {"Recall@10": 28.36})
    assert verdict == "not comparable"
    assert "published: ViT-B-32, weights of OpenCLIP; here: ViT-B-32-quickgelu openai" in words
    open_clip = B32.model_copy(update={"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"})
    ((_, verdict, _),) = verdicts("fashioniq-shirt", "val", open_clip, "edited", {"Recall@10": 28.36})
    assert verdict == "near"


@pytest.mark.parametrize("change", [{"pretrained": "laion400m_e32"}, {"model": "ViT-B-32"}, {"pretrained": "b32.pt"}])
def test_other_clip_weights_are_not_comparable(change: dict[str, str]) -> None:
    lines = verdicts("circo", "test", B32.model_copy(update=change), "edited", {"mAP@5": 14.94})
    assert [verdict for _, verdict, _ in lines] == ["not comparable"]
    assert "other CLIP weights (published: ViT-B-32-quickgelu openai; here: " in lines[0][2]


def test_validation_is_another_split_and_a_hidden_one_is_for_the_server() -> None:
    for benchmark, split in (("circo", "test"), ("cirr", "test1")):
        lines = verdicts(benchmark, "val", GIGA, "edited", {"mAP@5": 26.77, "Recall@1": 34.65})
        assert lines == [("CIReVL", "not comparable", f"not comparable: other split (published: {split}, here: val)")]
        assert [verdict for _, verdict, _ in verdicts(benchmark, split, GIGA, "edited", None)] == ["submit to see"]


@pytest.mark.parametrize("backbone", [B32, L14, GIGA])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_cvsi_itself_has_no_figure(benchmark: str, backbone: Backbone) -> None:
    split = published.load().benchmarks[benchmark].split
    ((method, verdict, _),) = verdicts(benchmark, split, backbone, "cvsi", {"Recall@10": 50.0})
    assert (method, verdict) == ("CVSI", "not available")


def test_a_method_without_figures_has_no_verdict() -> None:
    assert [verdict for _, verdict, _ in verdicts("circo", "test", L14, "pdv", {})] == ["not comparable"]
    assert verdicts("circo", "test", L14, "image", {"mAP@5": 1.0}) == []


def dataset(benchmark: str | None) -> Dataset:
    return SETTINGS.dataset("circo").model_copy(update={"benchmark": benchmark})


def test_the_section_has_every_row_and_ours_beside_the_counterparts() -> None:
    table = {"val": {"cvsi": {"mAP@5": 30.0}, "edited": {"mAP@5": 18.0}, "pseudo": {"mAP@5": 12.0}}}
    section = published_section.section("circo", dataset("circo"), L14, ["val", "test"], table)
    assert section is not None and json.dumps(section)
    by_method = {row["method"]: row for row in section["rows"]}
    assert len(by_method) == len(section["rows"]) == len(published.rows("circo", L14)) > 20
    assert [own["verdict"] for own in by_method["CIReVL"]["ours"]] == ["not comparable", "submit to see"]
    assert [own["weighting"] for own in by_method["LinCIR public demo ckpt"]["ours"]] == ["pseudo", "pseudo"]
    assert by_method["SEARLE"]["ours"] == [] and by_method["SEARLE"]["figures"]["mAP@5"] == 11.68
    assert by_method["CIReVL"]["ours"][0]["ours"] == {"mAP@5": 18.0}


def test_a_benchmark_without_figures_is_one_line() -> None:
    with pytest.raises(CvsiError, match=r"datasets\.mine\.benchmark: no figures of 'other'; there are: circo"):
        published_section.section("mine", dataset("other"), L14, ["val"], {})


def test_no_benchmark_no_section_and_no_such_clip_no_rows() -> None:
    assert published_section.section("circo", dataset(None), L14, ["val"], {}) is None
    section = published_section.section("circo", dataset("circo"), SETTINGS.backbone("tiny"), ["val"], {})
    assert section is not None and section["rows"] == []


@pytest.mark.xdist_group("project")
def test_the_page_of_a_benchmark_has_the_section_and_the_demos_has_not(project: Workspace, tmp_path: Path) -> None:
    title = "Beside published figures"
    folder = "cache/demo/tiny/report"
    assert title not in (project.path / folder / "index.html").read_text(encoding="utf-8")
    assert not (project.path / folder / "published.json").exists()
    for name in ("data", "demo", "cache/demo"):
        shutil.copytree(project.path / name, tmp_path / name)
    content = yaml.safe_load((project.path / "params.yaml").read_text(encoding="utf-8"))
    content["datasets"]["demo"]["benchmark"] = "fashioniq-dress"
    content["backbones"]["tiny"] |= {"model": L14.model, "pretrained": L14.pretrained}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    Workspace(tmp_path).run("report", "demo", "tiny")
    page = (tmp_path / folder / "index.html").read_text(encoding="utf-8")
    section = json.loads((tmp_path / folder / "published.json").read_text(encoding="utf-8"))
    assert title in page and "SEIZE" in page
    (own,) = [
        own for row in section["rows"] if row["method"] == "LinCIR" for own in row["ours"] if own["split"] == "val"
    ]
    assert own["verdict"] in ("near", "off") and f'<span class="{own["verdict"]}">{own["words"]}</span>' in page
    assert "CVSI&#39;s own figures are not available" in page
