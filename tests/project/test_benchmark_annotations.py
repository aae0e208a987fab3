"""The benchmarks' real annotations, cut, with drawn images in place of their photographs, through all stages.

By default, the captioner and the editor are toy engines of another package, and all stages run in one process; the slow
variant runs each stage's script with the demo's models.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
import yaml

from cvsi.core.statuses import fell_back
from demo.world.drawing import picture
from demo.world.scenes import draw_scene
from tests.conftest import Workspace, environment, project_params
from tests.imports import ROOT
from tests.toy_engines import install_toy_engines

QUERIES, IMAGES = 40, 150
# The tiny editor takes 512 tokens, fewer than the benchmarks' prompts have; with the demo's it answers.
SHORT = {"edited": "demo_edited", "added": "demo_added"}
Json = Any


def load(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8"))


def save(file: Path, content: Json) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def cut(queries: list[Json], names: Callable[[Json], list[str]], most: int, images: int) -> tuple[list[Json], set[str]]:
    """The first queries, while the images they name are not too many; second, these images."""
    kept: list[Json] = []
    named: set[str] = set()
    for query in queries:
        if len(kept) < most and len(named | set(names(query))) <= images:
            kept.append(query)
            named |= set(names(query))
    return kept, named


def with_others(named: set[str], everything: list[str], images: int) -> list[str]:
    """This many images in the order of the benchmark's list, the named ones among them."""
    others = [name for name in everything if name not in named][: images - len(named)]
    wanted = named | set(others)
    return [name for name in everything if name in wanted]


def circo(source: Path, root: Path, queries: int, images: int) -> dict[str, str]:
    """CIRCO val and ten queries of test; COCO's image list with the keys that the real one has."""
    val, named = cut(
        load(source / "CIRCO/annotations/val.json"),
        lambda q: [str(q["reference_img_id"]), *map(str, q["gt_img_ids"])],
        queries,
        images - 10,
    )
    test = load(source / "CIRCO/annotations/test.json")[:10]
    named |= {str(query["reference_img_id"]) for query in test}
    numbers = sorted(map(int, with_others(named, [*sorted(named), *map(str, range(600_001, 700_000))], images)))
    save(root / "annotations/val.json", val)
    save(root / "annotations/test.json", test)
    listed = [
        {
            "license": 1,
            "file_name": f"{number:012d}.jpg",
            "coco_url": "http://x",
            "height": 64,
            "width": 64,
            "id": number,
        }
        for number in numbers
    ]
    save(
        root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
        {"info": {"year": 2017}, "licenses": [], "images": listed, "categories": []},
    )
    return {str(number): f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg" for number in numbers}


def cirr(source: Path, root: Path, queries: int, images: int) -> dict[str, str]:
    """CIRR test1, beginning with the query whose instruction is a blank."""
    captions, splits = Path("cirr/captions/cap.rc2.test1.json"), Path("cirr/image_splits/split.rc2.test1.json")
    everything = sorted(load(source / "CIRR" / captions), key=lambda q: bool(q["caption"].strip()))
    assert not everything[0]["caption"].strip()
    kept, named = cut(everything, lambda q: [q["reference"], *q["img_set"]["members"]], queries, images)
    paths = load(source / "CIRR" / splits)
    chosen = {name: paths[name] for name in with_others(named, list(paths), images)}
    save(root / captions, kept)
    save(root / splits, chosen)
    return chosen


def fashioniq(source: Path, root: Path, queries: int, images: int) -> dict[str, str]:
    """FashionIQ dress, every other image a `.jpg`."""
    captions, splits = Path("captions/cap.dress.val.json"), Path("image_splits/split.dress.val.json")
    everything = load(source / "FASHIONIQ" / captions)
    kept, named = cut(everything, lambda q: [q["candidate"], q["target"]], queries, images)
    names = with_others(named, load(source / "FASHIONIQ" / splits), images)
    save(root / captions, kept)
    save(root / splits, names)
    return {name: f"images/{name}.{('png', 'jpg')[place % 2]}" for place, name in enumerate(names)}


CUTS = {"circo": circo, "cirr-test1": cirr, "fashioniq-dress": fashioniq}


def prepare(
    folder: Path, name: str, source: Path, queries: int, images: int, **engines: Json
) -> tuple[Workspace, dict[str, str]]:
    """A workspace with one benchmark's own definition, but other engines; second, its images' paths by id.

    `engines` may name other prompts too: those of the benchmarks are too long for the demo's editor.
    """
    content = project_params()
    dataset = content["datasets"][name]
    dataset |= {"captioner": content["captioners"]["tiny"], "editor": content["editors"]["tiny"]} | engines
    content |= {"active": [name], "runs": {"run": {"dataset": name, "backbone": "tiny"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    paths = CUTS[name](source, folder / dataset["root"], queries, images)
    random = Random(1)
    for path in paths.values():
        file = folder / dataset["root"] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(draw_scene(random)).save(file, quality=90)
    return Workspace(folder), paths


STAGES: dict[str, tuple[str, ...]] = {name: () for name in ("index", "captions", "edits")}
STAGES |= {name: ("tiny",) for name in ("gallery_vectors", "query_vectors", "scores", "report")}
ALL_STAGES = """
import runpy, sys
script, name = sys.argv[1:]
for stage, more in STAGES:
    sys.argv = [script.replace("STAGE", stage), name, *more]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (stage, end.code)
"""


def run_in_one_process(workspace: Workspace, name: str) -> str:
    """Run every stage's script in turn in a single process; what it printed."""
    code = ALL_STAGES.replace("STAGES", repr(list(STAGES.items())))
    command = [sys.executable, "-c", code, str(ROOT / "stages" / "STAGE.py"), name]
    done = subprocess.run(command, cwd=workspace.path, env=environment(workspace.path), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CUTS)
def test_a_benchmarks_annotations_go_through_all_stages(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_toy_engines(tmp_path / "package", monkeypatch)
    engines = {"captioner": {"engine": "colour", "n": 2}, "editor": {"engine": "rule", "ending": "now"}}
    workspace, paths = prepare(tmp_path, name, shared / "annotations", QUERIES, IMAGES, **engines)
    printed = run_in_one_process(workspace, name)
    assert f"the annotations of {name} list 150 images, expected" in printed
    check(workspace.path, name, shared, paths)
    edits = pl.read_parquet(workspace.path / "cache" / name / "edits/*.parquet")
    assert set(edits["status"]) == {"ok"}


@pytest.mark.slow  # minutes: every stage in a process of its own, with the demo's captioner and editor
@pytest.mark.parametrize("name", CUTS)
def test_a_benchmark_goes_through_all_stages_with_the_demos_models(name: str, shared: Path, tmp_path: Path) -> None:
    workspace, paths = prepare(tmp_path, name, shared / "annotations", QUERIES, IMAGES, prompts=SHORT)
    printed = {stage: workspace.run(stage, name, *more) for stage, more in STAGES.items()}
    assert f"the annotations of {name} list 150 images, expected" in printed["index"]
    check(workspace.path, name, shared, paths)
    edits = pl.read_parquet(workspace.path / "cache" / name / "edits/*.parquet")
    assert edits.filter(~fell_back()).height >= 0.5 * edits.height, edits["status"].value_counts()


def check(folder: Path, name: str, shared: Path, paths: dict[str, str]) -> None:
    """The contract, the metrics or submissions, and the report of a benchmark that went through all stages."""
    tool = [sys.executable, str(shared / "tools" / "check_contract.py"), "cache", name, "tiny"]
    done = subprocess.run(tool, cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith("0 findings"), done.stdout
    cache = folder / "cache" / name
    images, queries = (pl.read_parquet(cache / "index" / f"{table}.parquet") for table in ("images", "queries"))
    assert dict(images.select("image_id", "path").iter_rows()) == {i: p.removeprefix("./") for i, p in paths.items()}
    rankings = pl.read_parquet(cache / "tiny/scores/rankings.parquet")
    assert rankings.height == 100 * queries.height and rankings["score"].is_finite().all()
    metrics = load(cache / "tiny/scores/metrics.json")
    assert list(metrics) == ([] if name == "cirr-test1" else ["val"])
    for split, values in metrics.items():
        number = queries.filter(pl.col("split") == split).height
        edits = pl.read_parquet(cache / "edits/*.parquet").filter(pl.col("split") == split)
        fallbacks = edits.filter(fell_back()).height
        assert (values["queries"], values["dropped"], values["fallbacks"]) == (number, 0, fallbacks)
        assert values["fallback share"] == pytest.approx(100 * fallbacks / number)
    files = sorted(file.name for file in (cache / "tiny/scores/submissions").glob("*"))
    expected = {"circo": ["test.map.json"], "cirr-test1": ["test1.recall.json", "test1.recall_subset.json"]}
    assert files == expected.get(name, [])
    for file in files:
        command = ["cvsi", "check-submission", str(cache / "tiny/scores/submissions" / file), "--queries", name]
        done = subprocess.run(command, cwd=folder, env=environment(folder), text=True, capture_output=True)
        assert done.returncode == 0 and "no fault" in done.stdout, done.stderr
    page = (cache / "tiny/report/index.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 50
