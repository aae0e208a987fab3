"""Index, captions, edits, vectors and scores to `report/index.html` and `report/weightings.json`.

`published.json` comes with them where the dataset names its benchmark.
"""

from pathlib import Path

import jinja2
import polars as pl

from cvsi.core import paths, provenance, tables
from cvsi.core.console import count, say
from cvsi.core.params import Params
from cvsi.core.schema import DROPPED, DROPPED_QUERIES
from cvsi.evaluation.fusion import describe
from cvsi.evaluation.fusion import weightings as named
from cvsi.evaluation.report import published_section, weightings
from cvsi.evaluation.report.query_cards import SHOWN, cards
from cvsi.evaluation.scores import Judge


def build(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/report`: a page that needs neither server nor network, and the table it shows."""
    dataset = params.dataset(name)
    judge = Judge(name, backbone, params)
    judged = weightings.judge_all(judge, dataset.fusion)
    table = weightings.table(judged)
    shown = cards(name, Path(dataset.root), judge, judged["cvsi"])
    main = judge.protocol.main
    splits = judge.queries["split"].unique(maintain_order=True).to_list()
    published = published_section.section(dataset, params.backbone(backbone), splits, table)
    page = _template().render(
        name=name, backbone=backbone, main=main, shown=SHOWN, cards=shown, table=table,
        weights=describe(dataset.fusion),
        columns=[column for column in _columns(table) if "/" not in column and not column.endswith((" low", " high"))],
        bars={split: weightings.bars(rows, main) for split, rows in table.items()},
        aspects={split: weightings.by_aspect(rows, main) for split, rows in table.items()},
        facts=_facts(name, judge, params), models=_models(name, backbone, params), numbers=_numbers(judge),
        published=published, recipes=_recipes(name, backbone),
    )  # fmt: skip
    recipe = {"weightings": {key: value.model_dump() for key, value in named(dataset.fusion).items()}}
    with tables.output("report", name, backbone, recipe) as out:
        out.json("weightings.json", {"metric": main, "splits": table})
        if published is not None:
            out.json("published.json", published)
        out.file("index.html").write_text(page, encoding="utf-8")
    say(f"{count(len(shown), 'query')} shown in {paths.folder('report', name, backbone) / 'index.html'}")


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("cvsi.evaluation.report", "")
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
    dropped = tables.optional("index", name, "dropped.parquet", DROPPED).num_rows
    lost = tables.optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES).num_rows
    fallbacks = pl.DataFrame(tables.whole("edits", name)).filter(pl.col("status") != "ok").height
    captions = pl.Series(tables.whole("captions", name)["captions"]).list.len()
    empty = captions.len() * params.dataset(name).captioner.n - int(captions.sum())
    queries = judge.queries["split"].value_counts(sort=True, name="n")
    return {
        "gallery": count(judge.gallery.size, "image"),
        "queries": ", ".join(f"{number:,} {split}" for split, number in queries.sort("split").iter_rows()),
        "dropped": f"{count(dropped, 'image')}, {count(lost, 'query')}",
        "captions": f"{int(captions.sum()):,}{f', {empty:,} stayed empty' if empty else ''}",
        "fallbacks": f"{count(fallbacks, 'edit')} of {judge.queries.height:,} "
        f"({100 * fallbacks / judge.queries.height:.1f} %) fell back to the captions themselves",
        "format": params.dataset(name).format,
    }


def _recipes(name: str, backbone: str) -> dict[str, dict[str, str]]:
    """What decided each stage's output, as dotted names and values; nothing of one that another program wrote."""
    return {stage: provenance.flat(recipe) for stage, recipe in provenance.recipes(name, backbone).items()}


def _models(name: str, backbone: str, params: Params) -> dict[str, str]:
    dataset, tower = params.dataset(name), params.backbone(backbone)
    return {
        "captioner": f"{dataset.captioner.model}, {dataset.captioner.n} captions, "
        f"{dataset.captioner.decoding} by {dataset.captioner.engine}",
        "editor": f"{dataset.editor.model}, prompts {dataset.prompts.edited} and {dataset.prompts.added}",
        "backbone": f"{tower.model} {tower.pretrained or ''}".strip(),
        "phi": tower.phi,
    }
