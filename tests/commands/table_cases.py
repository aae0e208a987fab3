"""Every table of the command line from fixed inputs, as text of a given width; the golden test's files are made by it.

    python -m tests.commands.table_cases    (in the repository's root: writes tests/commands/expected_tables/*.txt)

The inputs are invented. None is a time or a fact of a machine; ages are relative to now.
"""

import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from cvsi.commands import check, forecast, method_costs, search, show, store, summary, sweep_plots, times
from cvsi.commands.comparison import Comparison, Row
from cvsi.commands.comparison import tables as compared
from cvsi.commands.layout import Prose, Table, print_all, terminal
from cvsi.commands.moved import Changes, Moved
from cvsi.commands.show_figures import Figures, Label, Shown
from cvsi.commands.sweep_findings import findings
from cvsi.commands.sweep_grid import Components, Split, Sweep
from cvsi.commands.sweep_noise import Half, Halves, Mean
from cvsi.core import schema
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation.paired import Difference
from cvsi.explorer.requests import Answer, Result

EXPECTED = Path(__file__).parent / "expected_tables"
WIDTHS = (80, 160)
METHODS = ("cvsi", "edited", "pseudo", "image", "text", "image+text", "pdv", "soft-gate", "slope-of-two", "product")
ASPECTS = ("addition", "direct_addressing", "spatial_relations_background", "statement_with_conjunction")
LONG_RUN = "fashioniq-dress-vit-bigg-14-laion2b"


def metrics(start: float, names: Iterable[str], main: str) -> dict[str, float]:
    values = {name: start + 2.5 * place for place, name in enumerate(names)}
    return values | {f"{main} low": start - 4.25, f"{main} high": start + 4.25}


def shown() -> Iterable[Table]:
    names = [f"mAP@{k}" for k in (5, 10, 25, 50)] + [f"mAP@10/{aspect}" for aspect in ASPECTS]
    rows = {method: metrics(9.5 + 7 * place, names, "mAP@10") for place, method in enumerate(METHODS)}
    aspects = [
        Label(name=aspect, queries=1_234 // (place + 1), values={m: row[f"mAP@10/{aspect}"] for m, row in rows.items()})
        for place, aspect in enumerate(ASPECTS)
    ]
    differences = [
        Difference(method=method, difference=-1.5 - place, low=-12.25, high=3 - place, better=10, worse=1_200, same=24)
        for place, method in enumerate(METHODS[1:])
    ]
    figures = Figures(methods=rows, differences=differences, aspects=aspects, tags=[])
    return show.tables(
        Shown(
            run="demo-tiny", dataset="demo", backbone="tiny", metric="mAP@10", own="cvsi", splits={"val": figures},
            edits=None, left_out={}, report="", notes=[],
        )
    )  # fmt: skip


def run_record(stage: str, arguments: tuple[str, ...], took: float, outcome: str = "done") -> times.RunRecord:
    step = {"kind": "pseudo_vectors", "rows": 1_234_030, "distinct": 1_200_000, "found": 3, "computed": 1_199_997}
    steps = [step | {"load_seconds": 0.25 * took, "seconds": 0.75 * took}, {"kind": "files", "rows": 7, "distinct": 7}]
    parts = {"load": 0.25 * took, "read": 0.1 * took, "compute": 0.5 * took, "write": 0.01 * took}
    return times.RunRecord.model_validate(
        {"stage": stage, "arguments": arguments, "began": "2026-01-02T03:04:05.678+00:00", "seconds": took,
         "outcome": outcome, "times": parts if arguments else {}, "steps": steps if arguments else []}
    )  # fmt: skip


def timed() -> Iterable[Table]:
    return times.tables(
        [
            run_record("world", (), 1.6),
            run_record("index", ("demo",), 0.9),
            run_record("query_vectors", ("demo", "tiny"), 125),
            run_record("gallery_vectors", ("fashioniq-toptee", "vit-bigg-14"), 45_296),
        ]
    )


def timed_all() -> Iterable[Table]:
    return times.tables([run_record("captions", ("circo",), 70.5, "stopped by SIGTERM"), run_record("world", (), 2.0)])


def summed(form: str, category: str | None = None) -> Iterable[Table]:
    protocol = FORMATS.get(form, "test").protocol
    counts = {"queries": 4181.0, "dropped": 12.0, "fallbacks": 103.0}
    lines = [
        summary.Line(
            run=run, backbone=backbone, format=form, split="val", category=category,
            metrics=metrics(start, protocol.names(), protocol.main) | counts,
        )
        for run, backbone, start in (("cirr-l", "vit-l-14", 21.5), (LONG_RUN, "vit-bigg-14", 34.125))
    ]  # fmt: skip
    average = lines[0].model_copy(update={"run": "average of dress, shirt, toptee", "category": None})
    averages = [average] if category else []
    return summary.tables(
        summary.Summary(runs=lines, averages=averages, without=[], submissions={}, doubts=[], fallbacks=[])
    )


def stored() -> Iterable[Table]:
    by = (
        "demo/index",
        "demo/tiny/gallery_vectors",
        "demo/tiny/query_vectors",
        "fashioniq-dress/vit-bigg-14/query_vectors",
    )
    made = "model Salesforce/blip2-opt-6.7b-coco, revision 0123abcd, precision bf16, n 15, seed 0, code 2"
    now = time.time()
    parts = [
        store.Part("captions", Path("cache/store/captions/0123456789abcdef"), 1234, 98_765_432, now, by, made, 0),
        store.Part("pseudo_vectors", Path("b" * 64), 7, 1_234, now - 40.5 * store.DAY, (), "code 3", 2),
    ]
    return [store.table(parts, "cache/store")]


def comparison(first: str, second: str) -> Iterable[Table | Prose]:
    names = ["mAP@5", "mAP@10", "Recall_subset@10", *(f"mAP@10/{aspect}" for aspect in ASPECTS)]
    rows = [
        Row(name=name, first=50.0 + place, second=52.5, difference=2.5 - place, low=-12.25 + place, high=8.5)
        for place, name in enumerate(names)
    ]
    rows.append(Row(name="queries", first=4181, second=4181, difference=0))
    text = "has two of them on a beach at night and the sky behind them is full of stars"
    moved = [
        Moved(query_id="17", instruction=text, before=0, after=100, rank_before=None, rank_after=1),
        Moved(
            query_id="B00123-a-long-name",
            instruction="is red",
            before=33.3,
            after=0,
            rank_before=3,
            rank_after=999,
        ),
    ]
    changes = Changes(metric="mAP@10", better=20, worse=1, same=4160, moved=moved)
    prompt = "Describe the image after the change. " * 5
    recipes = {"edits": {"prompts.edited": (prompt + "Be short.", prompt + "Be long."), "n": ("1", "-")}}
    return compared(
        Comparison(
            first=first, second=second, splits={"val": rows}, changes={"val": changes}, differences=recipes, doubts=[]
        )
    )


def checked() -> Iterable[Table]:
    tasks = [
        forecast.Task("demo", "images to 5 captions", 2140, 0, True),
        forecast.Task("fashioniq-toptee, vit-bigg-14", "caption vectors", 1_851_045, 1_850_000, False, 9_876.0),
        forecast.Task("circo", "cannot be counted: something is missing", 0, 0, False),
    ]
    terms = {
        "circo, fashioniq-dress, fashioniq-shirt": "images of COCO 2017 (unlabeled): https://cocodataset.org/#termsofuse"
    }
    missing = {
        "folder data/CIRCO/COCO2017_unlabeled/unlabeled2017": "123,403 images (19 GB): download unlabeled2017.zip from "
        "http://images.cocodataset.org/zips/unlabeled2017.zip and unpack it there",
        "phi of vit-b-32": "models/phi_best_base_openai.pt; see docs/phi.md",
    }
    return [check.todo(tasks), check.listed("terms of use", terms), check.listed("missing: 2 things", missing)]


def costs() -> Iterable[Table]:
    """A run of CIRCO before anything is computed, and one in which most is stored."""
    number = method_costs.Number
    before = {
        "captions": number(123_403, 123_403, False), "edits": number(1_020, 1_020, False),
        "image_vectors": number(123_403, 123_403, True), "text_vectors": number(1_866_345, 1_866_345, False),
    }  # fmt: skip
    after = {"edits": number(340, 12, True), "readings": number(340, 340, True), "text_vectors": number(9, 0, True)}
    listed = [
        method_costs.Cost("cvsi", before, 45_296.0, True, ""),
        method_costs.Cost("near-the-reference-and-far", after, 1.5, False, ""),
        method_costs.Cost("moody", {"text_vectors": None}, 0.0, False, "a reader with the role mood"),
        method_costs.Cost("text", {"text_vectors": number(9, 0, True)}, 0.0, True, ""),
        method_costs.Cost(method_costs.ALL, before | after, 45_297.5, False, ""),
        method_costs.Cost("rerank second", before | {"verdicts second": number(51_000, 51_000, False)}, 9.0, False, ""),
    ]
    return [method_costs.table("circo-vit-l-14", listed, 2)]


def swept() -> Iterable[Table]:
    components = Components(schema.QUERY_PARTS, schema.GALLERY_PARTS)
    protocol = FORMATS.get("cirr", "test").protocol
    named = {0: "", 1: "", 2: "cvsi", 3: "image+text, a-method-of-a-long-name"}
    rows = [
        {"split": "val", "name": name}
        | dict.fromkeys(components.names, 0.0)
        | {"edited": 0.6, "pseudo": 0.4, "reference": -0.65 if place else 0.25, "instruction": 0.5, "image": 0.8}
        | {metric: 61.21 - 3 * place for metric in protocol.names()}
        for place, name in named.items()
    ]
    return sweep_plots.tables(Sweep(pl.DataFrame(rows), components, protocol, 4, 1.0), 2)


def found() -> Iterable[Table]:
    components = Components(schema.QUERY_PARTS, schema.GALLERY_PARTS)
    row = {
        "edited": 0.6,
        "pseudo": 0.4,
        "reference": -0.65,
        "source": 0.1,
        "instruction": 0.05,
        "image": 0.8,
        "caption": 0.2,
    }
    weights = np.array([list(row.values())])
    half, mean = Half(2_091, 0, 61.21, 58.875), Mean(58.5, 55.25, 61.75)
    split = Split(weights, 4_181, 0, None, Halves(half, half, mean, mean, mean), "")
    frame = pl.DataFrame([{"split": "val", "name": "cvsi"} | row | {"Recall@5": 61.21}])
    sweep = Sweep(frame, components, FORMATS.get("cirr", "test").protocol, 1, 1.0, {"val": split})
    return [finding for finding in findings(sweep, "demo") if not isinstance(finding, str)]


def searched() -> Iterable[Table]:
    paths = (
        "beach/dog.jpg",
        "a-long-folder/with-another-one/of-photographs/IMG_20260102_030405_edited.heic",
        "日本.png",
    )
    results = [Result(rank=rank, image_id=path, path=path, score=1 / rank) for rank, path in enumerate(paths, 99)]
    return [search.table(Answer(results=tuple(results)))]


CASES: dict[str, Callable[[], Iterable[Table | Prose]]] = {
    "show": shown,
    "times": timed,
    "times-all": timed_all,
    "summary-circo": lambda: summed("circo"),
    "summary-cirr": lambda: summed("cirr"),
    "summary-fashioniq": lambda: summed("fashioniq", "dress"),
    "store": stored,
    "compare": lambda: comparison("demo-tiny", "demo-other"),
    "compare-rev": lambda: comparison("demo-tiny at HEAD~1 (0123abc)", "demo-tiny"),
    "compare-other": lambda: comparison("demo-tiny", "demo-tiny in /home/team/of/people/another-workspace/cache"),
    "check": checked,
    "check-methods": costs,
    "sweep": swept,
    "sweep-halves": found,
    "search": searched,
}


def printed(name: str, width: int) -> str:
    """A case as `cvsi` prints it with this value of COLUMNS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        console = Console(file=io.StringIO(), width=terminal().width)
    print_all(console, CASES[name]())
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def main() -> None:
    """Write the expected texts anew."""
    EXPECTED.mkdir(exist_ok=True)
    for old in EXPECTED.glob("*.txt"):
        old.unlink()
    for name in CASES:
        for width in WIDTHS:
            (EXPECTED / f"{name}-{width}.txt").write_text(printed(name, width), encoding="utf-8")


if __name__ == "__main__":
    main()
