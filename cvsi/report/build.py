"""Index, captions, edits, vectors and scores to `report/index.html` and `report/weightings.json`."""

from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from cvsi import tables
from cvsi.console import count, say
from cvsi.fusion import weightings as named
from cvsi.params import Params
from cvsi.report import weightings
from cvsi.report.thumbnails import thumbnail
from cvsi.scores import Judge, Judged

SAMPLE = 36
SHOWN = 10


def build(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/report`: a page that needs neither server nor network, and the table it shows."""
    dataset = params.dataset(name)
    judge = Judge(name, backbone, dataset)
    judged = weightings.judge_all(judge, dataset.fusion)
    table = weightings.table(judged)
    cards = _cards(name, Path(dataset.root), judge, judged["cvsi"])
    main = judge.protocol.main
    page = _template().render(
        name=name, backbone=backbone, main=main, shown=SHOWN, cards=cards, table=table,
        weights=weightings.describe(dataset.fusion),
        columns=[column for column in _columns(table) if "/" not in column and not column.endswith((" low", " high"))],
        bars={split: weightings.bars(rows, main) for split, rows in table.items()},
        aspects={split: weightings.by_aspect(rows, main) for split, rows in table.items()},
        facts=_facts(name, judge, params), models=_models(name, backbone, params), numbers=_numbers(judge),
    )  # fmt: skip
    recipe = {"weightings": {key: value.model_dump() for key, value in named(dataset.fusion).items()}}
    with tables.output("report", name, backbone, recipe) as out:
        out.json("weightings.json", {"metric": main, "splits": table})
        out.file("index.html").write_text(page, encoding="utf-8")
    say(f"{count(len(cards), 'query')} shown in {tables.folder('report', name, backbone) / 'index.html'}")


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("cvsi.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


def _columns(table: weightings.Table) -> list[str]:
    rows = next(iter(table.values()), {})
    return list(next(iter(rows.values()), {}))


def _numbers(judge: Judge) -> dict[str, int]:
    """How many labelled queries each aspect has, all splits together."""
    asked = judge.queries.filter(pl.col("split").is_in(judge.labelled))
    counts = asked.select("aspects").explode("aspects").drop_nulls().group_by("aspects").len()
    return dict(counts.iter_rows())


def _facts(name: str, judge: Judge, params: Params) -> dict[str, str]:
    """What the page says of the data: how much there is, what was dropped, how many edits fell back."""
    dropped = tables.read("index", name, "dropped.parquet").num_rows
    lost = tables.read("index", name, "dropped_queries.parquet").num_rows
    fallbacks = pl.DataFrame(tables.whole("edits", name)).filter(pl.col("status") != "ok").height
    queries = judge.queries["split"].value_counts(sort=True, name="n")
    return {
        "gallery": count(judge.gallery.height, "image"),
        "queries": ", ".join(f"{number:,} {split}" for split, number in queries.sort("split").iter_rows()),
        "dropped": f"{count(dropped, 'image')}, {count(lost, 'query')}",
        "fallbacks": f"{count(fallbacks, 'edit')} of {judge.queries.height:,} fell back to the captions themselves",
        "format": params.dataset(name).format,
    }


def _models(name: str, backbone: str, params: Params) -> dict[str, str]:
    dataset, tower = params.dataset(name), params.backbone(backbone)
    return {
        "captioner": f"{dataset.captioner.model}, {dataset.captioner.n} captions, top-p {dataset.captioner.top_p}",
        "editor": f"{dataset.editor.model}, prompts {dataset.prompts.edited} and {dataset.prompts.added}",
        "backbone": f"{tower.model} {tower.pretrained or ''}".strip(),
        "phi": tower.phi,
    }


def _cards(name: str, root: Path, judge: Judge, judged: Judged) -> list[dict[str, Any]]:
    """A sample of queries, evenly spaced through the index, with all that the page shows of each."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet")).select("image_id", "path", "digest")
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    edits = pl.DataFrame(tables.whole("edits", name)).select("split", "query_id", "edited", "added", "status")
    step = max(judge.queries.height / SAMPLE, 1)
    rows = sorted({int(number * step) for number in range(min(SAMPLE, judge.queries.height))})
    asked = judge.queries.with_row_index("row")[rows].join(edits, on=["split", "query_id"], maintain_order="left")
    asked = asked.join(
        images.join(captions, on="image_id"), left_on="reference_id", right_on="image_id", maintain_order="left"
    )
    files = {image: (root / path, digest) for image, path, digest in images.iter_rows()}
    values = {
        (split, query): value
        for split, metrics in judged.by_query.items()
        for query, value in zip(judge.split(split)["query_id"], metrics[judge.protocol.main], strict=True)
    }
    ranked = judge.rankings(judged.ranking).filter(pl.col("rank") <= SHOWN)
    lists = ranked.group_by("split", "query_id", maintain_order=True).agg("image_id")
    best = {(split, query): ids for split, query, ids in lists.iter_rows()}
    return [
        row
        | {
            "picture": thumbnail(root / row["path"], row["digest"]),
            "value": values.get((row["split"], row["query_id"])),
            "results": [
                {
                    "id": image,
                    "picture": thumbnail(*files[image]),
                    "hit": image in row["target_ids"],
                    "own": image == row["reference_id"],
                }
                for image in best.get((row["split"], row["query_id"]), [])
            ],
            "targets": [{"id": image, "picture": thumbnail(*files[image])} for image in row["target_ids"][:5]],
        }
        for row in asked.iter_rows(named=True)
    ]
