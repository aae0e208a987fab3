"""Index, captions, edits, vectors and scores to `report/index.html`, `weightings.json` and `methods.parquet`.

`published.json` is written too where the dataset names its benchmark.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from cvsi.core import paths, provenance, tables
from cvsi.core.console import count, info
from cvsi.core.params import Backbone, Dataset, Params
from cvsi.core.provenance import Recipes
from cvsi.core.schema import DROPPED, DROPPED_QUERIES, per_method, roles_in
from cvsi.core.statuses import counts, fallbacks
from cvsi.datasets.files import changes_recorded
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, queries, scores
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.report import gallery_cards, method_table, published_section
from cvsi.evaluation.report.explore import static
from cvsi.evaluation.report.query_cards import SHOWN, query_cards
from cvsi.evaluation.report.templates import template

ENGINES = {"captioner", "editor", "reader"}  # the blocks of models in a dataset
OF_QUERIES = ("edits", "fallbacks", "readings")  # facts that a dataset without queries does not have


def build(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/report`: a page that needs neither server nor network, and its table."""
    dataset, dataset_format = params.dataset(name), format_of(params.dataset(name), name)
    protocol, own_name = dataset_format.protocol, methods.own_name(params, name)
    queried, gallery = queries.read(name)
    own = scores.read_values(name, backbone, protocol)
    compared = method_table.evaluate_all(name, backbone, params, protocol, queried, gallery, own, static.SHOWN)
    evaluations = compared.evaluations
    table, main = method_table.metrics_table(evaluations), protocol.main
    values = own.select("split", "query_id", "target_ranks", value=main)
    with changes_recorded(params):
        cards = query_cards(name, backbone, Path(dataset.root), queried.frame, values)
        pictures = [] if queried.frame.height else gallery_cards.gallery_cards(name, Path(dataset.root))
    left_out = method_table.left_out(name, backbone, params, evaluations)
    published = published_section.section(name, dataset, params.backbone(backbone), queried.splits, table)
    recipes, edits = provenance.recipes(name, backbone), pl.DataFrame(tables.whole("edits", name))
    page = template("page.html").render(
        name=name, backbone=backbone, main=main, shown=SHOWN, cards=cards, table=table, own=own_name, left_out=left_out,
        gallery=pictures, size=gallery.size, query_file=dataset_format.query_file,
        example=gallery_cards.example(pictures) if pictures else [],
        weights=methods.fusion_of(params, name).describe(),
        columns=[column for column in _columns(table) if "/" not in column and not column.endswith((" low", " high"))],
        bars={split: method_table.bars(rows, main) for split, rows in table.items()},
        axes={split: method_table.axis(rows, main) for split, rows in table.items()},
        differences=method_table.differences(evaluations, own_name, main),
        sentences=method_table.sentences(params, name, evaluations),
        drawn=Path(dataset.root) == paths.WORLD, settings=_settings(dataset, params.backbone(backbone), recipes),
        fallen=fallbacks(edits).number,
        aspects={split: method_table.by_aspect(rows, main) for split, rows in table.items()},
        facts=_facts(name, queried, gallery, recipes, dataset.format, edits),
        models=_models(name, backbone, params, recipes, edited=queried.frame.height > 0),
        numbers=_aspect_sizes(queried), published=published,
        warning=fallbacks(edits).warning(dataset.fallback_limit),
        recipes={stage: provenance.flat(recipe) for stage, recipe in recipes.items()},
    )  # fmt: skip
    fusions = {key: fusion.recipe() for key, fusion in methods.table(params, name).items()}
    with tables.output("report", name, backbone, {"methods": fusions}) as out:
        content = {"metric": main, "own": own_name, "splits": table}
        out.json("weightings.json", content | ({"left_out": left_out} if left_out else {}))
        rows = method_table.values_table(evaluations)
        out.table("methods.parquet", rows.to_arrow(), per_method(protocol.names(), rows.columns))
        if compared.rankings:
            with changes_recorded(params):
                static.write(static.Run(name, backbone, params, queried, gallery, rows, table, compared.rankings), out)
        if published is not None:
            out.json("published.json", published)
        out.file("index.html").write_text(page, encoding="utf-8")
    shown = count(len(cards), "query") if cards else count(len(pictures), "image")
    info(f"{shown} shown in {paths.folder('report', name, backbone) / 'index.html'}")


def _settings(dataset: Dataset, backbone: Backbone, recipes: Recipes) -> str:
    """What params.yaml sets for the run, as YAML: defaults and places on this machine are left out.

    Of a model's block, the keys that a recipe has: the same recipes give the same page, whatever a server's address is.
    """
    known = set(_keys(recipes))
    blocks = {
        "dataset": dataset.model_dump(mode="json", exclude_defaults=True, exclude={"root", "roots"}),
        "backbone": backbone.model_dump(mode="json", exclude_defaults=True),
    }
    for block in blocks.values():
        for name in ENGINES & block.keys():
            block[name] = {key: value for key, value in block[name].items() if key in known}
    return yaml.safe_dump(blocks, sort_keys=False, allow_unicode=True, width=100)


def _keys(content: Any) -> Iterator[str]:
    """Every key of nested mappings and lists."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _keys(value)


def _columns(table: method_table.Table) -> list[str]:
    rows = next(iter(table.values()), {})
    return list(next(iter(rows.values()), {}))


def _aspect_sizes(table: QueryTable) -> dict[str, int]:
    """How many labelled queries each aspect has, all splits together."""
    labelled = table.frame.filter(pl.col("split").is_in(list(table.labelled)))
    counts = labelled.select("aspects").explode("aspects").drop_nulls().group_by("aspects").len()
    return dict(counts.iter_rows())


def _facts(
    name: str, table: QueryTable, gallery: Gallery, recipes: Recipes, dataset_format: str, edits: pl.DataFrame
) -> dict[str, str]:
    """The page's facts of the data: its size, what was dropped, how many edits fell back."""
    images = tables.optional("index", name, "dropped.parquet", DROPPED).num_rows
    dropped = tables.optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES).num_rows
    fallen = fallbacks(edits)
    queries = table.frame["split"].value_counts(sort=True, name="n").sort("split")
    height = table.frame.height
    facts = {
        "gallery": count(gallery.size, "image"),
        "queries": ", ".join(f"{number:,} {split}" for split, number in queries.iter_rows()) or "none",
        "dropped": f"{count(images, 'image')}, {count(dropped, 'query')}",
        "captions": _captions_fact(pl.DataFrame(tables.whole("captions", name)), recipes["captions"].get("n")),
        "edits": ", ".join(f"{number:,} {status}" for status, number in counts(edits["status"]).items()) or "none",
        "fallbacks": f"{count(fallen.number, 'edit')} of {height:,} ({100 * fallen.share:.1f} %) "
        f"fell back to the captions themselves{f'; most frequent: {fallen.reason}' if fallen.number else ''}",
        **_readings_fact(edits, roles_in(tables.schema_of("edits", name))),
        "format": dataset_format,
    }
    return facts if height else {key: text for key, text in facts.items() if key not in OF_QUERIES}


def _readings_fact(edits: pl.DataFrame, roles: list[str]) -> dict[str, str]:
    """How the readings ended, and how many queries have texts of each role; nothing without a reader."""
    if not roles:
        return {}
    statuses = ", ".join(f"{number:,} {status}" for status, number in counts(edits["reader_status"]).items())
    texts = ", ".join(f"{role} {(edits[role].list.len() > 0).sum():,}" for role in roles)
    return {"readings": f"{statuses or 'none'}; queries with texts: {texts}"}


def _captions_fact(captions: pl.DataFrame, wanted: Any) -> str:
    """How many captions there are, how many of the `wanted` per image are missing, and images without any."""
    lengths = captions["captions"].list.len()
    number, without = int(lengths.sum()), int((lengths == 0).sum())
    missing = captions.height * wanted - number if isinstance(wanted, int) else 0
    if "status" in captions.columns:
        kinds = ", ".join(f"{images:,} {kind}" for kind, images in counts(captions["status"]).items())
        text = f"{number:,}; images: {kinds}"
    else:
        text = f"{number:,}{f', and {missing:,} empty ones left out' if missing else ''}"
    return text + (f"; {count(without, 'image')} without a caption" if without else "")


def _models(name: str, backbone: str, params: Params, recipes: Recipes, edited: bool) -> dict[str, str]:
    """The page's names of the models; names are those of params.yaml, numbers those of the recipes.

    The editor is left out where nothing was `edited`.
    """
    dataset, tower = params.dataset(name), params.backbone(backbone)
    captions = recipes["captions"]
    how = [f"{captions['n']} captions" if "n" in captions else "", _text(captions, "decoding")]
    editor = f"{_text(dataset.editor, 'model')}, prompts {dataset.prompts.edited} and {dataset.prompts.added}"
    return {
        "captioner": ", ".join(filter(None, [_text(dataset.captioner, "model"), *how])),
        **({"editor": editor} if edited else {}),
        **({"reader": _text(dataset.reader, "model")} if edited and dataset.reader is not None else {}),
        "backbone": f"{tower.model} {tower.pretrained or ''}".strip(),
        "phi": tower.phi or "none: no pseudo tokens",
    }


def _text(block: Any, key: str) -> str:
    return str(block.get(key, ""))
