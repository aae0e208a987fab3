"""`cvsi show`: paired differences and counts against plain numpy, edits by status, and what is missing as one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cvsi.commands import show
from cvsi.commands.main import app
from cvsi.commands.moved import tally
from cvsi.commands.show_figures import Shown, collect
from cvsi.core import params, parquet, paths, provenance, schema, tables
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation.metrics import summarise
from tests.conftest import Workspace

CIRCO = FORMATS.get("circo", "test").protocol
SPLITS = {"val": 30, "dev": 12, "hidden": 4}
ASPECTS = ("colour", "direct_addressing", "place")
METHODS = ("cvsi", "edited", "image+text", "same")
Rows = list[dict[str, Any]]


def queries() -> Rows:
    """Queries of which each third has the second aspect too, and the first ten none but that."""
    rows = []
    for split, number in SPLITS.items():
        for query in range(number):
            aspects = [aspect for place, aspect in enumerate(ASPECTS, 1) if query % place == 0 and query >= 4]
            rows.append(
                {
                    "query_id": str(query), "split": split, "reference_id": "0", "instruction": "is red",
                    "target_ids": [] if split == "hidden" else ["1"], "exclude_ids": [], "group_ids": [],
                    "aspects": aspects,
                }
            )  # fmt: skip
    return rows


def values(methods: tuple[str, ...] = METHODS) -> pl.DataFrame:
    """Random values per method and labelled query; query 7 counts under no method, query 8 under all but `edited`."""
    labelled = pl.DataFrame(queries(), schema=pl.DataFrame(schema.QUERIES.empty_table()).schema).filter(
        pl.col("split") != "hidden"
    )
    frames = []
    for number, method in enumerate(methods):
        random = np.random.default_rng(0 if method == "same" else number)
        columns = {name: 20 * random.integers(0, 6, labelled.height).astype(float) for name in CIRCO.names()}
        frame = labelled.select(pl.lit(method).alias("method"), "query_id", "split").with_columns(
            target_ranks=pl.lit([1], pl.List(pl.Int32)), group_rank=pl.lit(None, pl.Int32), **columns_of(columns)
        )
        gone = pl.col("query_id").is_in(["7", "8"] if method == "edited" else ["7"])
        frames.append(frame.with_columns(pl.when(~gone).then(pl.col(name)).alias(name) for name in CIRCO.names()))
    return pl.concat(frames)


def columns_of(columns: dict[str, np.ndarray]) -> dict[str, pl.Series]:
    return {name: pl.Series(name, column) for name, column in columns.items()}


def write(rows: Rows | None = None, table: pl.DataFrame | None = None, **more: Any) -> None:
    """Index, edits, scores' recipe and report of the toy run; `more` is added to weightings.json."""
    rows, table = queries() if rows is None else rows, values() if table is None else table
    index = pl.DataFrame(rows, schema=pl.DataFrame(schema.QUERIES.empty_table()).schema)
    with tables.output("index", "toy") as out:
        out.table("queries.parquet", index.to_arrow(), schema.QUERIES)
    write_edits(["ok"] * 40 + ["repaired"] * 2 + ["cut: too long", "refused", "cut", "no answer"])
    with tables.output("scores", "toy", "tiny", {"from": {"queries": provenance.queries_digest("toy")}}):
        pass
    splits: dict[str, Any] = {}
    for (split, method), mine in table.group_by("split", "method", maintain_order=True):
        joined = mine.join(index, on=["split", "query_id"], maintain_order="left")
        splits.setdefault(str(split), {})[method] = summarise(CIRCO, joined, joined["aspects"])
    with tables.output("report", "toy", "tiny") as out:
        out.json("weightings.json", {"metric": "mAP@10", "splits": splits} | more)
        out.table("methods.parquet", table.to_arrow(), schema.per_method(CIRCO.names()))


def write_edits(statuses: list[str]) -> None:
    rows = [
        {"query_id": str(n), "split": "val", "edited": ["a"], "added": "", "status": status, "answer_status": [status],
         "answers": ["a"], "finish": ["stop"]}
        for n, status in enumerate(statuses)
    ]  # fmt: skip
    with tables.output("edits", "toy") as out:
        out.shards(pl.DataFrame(rows, schema=pl.DataFrame(schema.EDITS.empty_table()).schema).to_arrow(), schema.EDITS)


def shown(*more: str) -> Result:
    """The command's result, which must have ended without a traceback."""
    result = CliRunner().invoke(app, ["show", "toy-tiny", *more], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def notes(result: Result) -> list[str]:
    return [line.removeprefix("cvsi: ") for line in result.stderr.splitlines() if not line.startswith("next: ")]


def text_of(result: Result) -> str:
    """What was printed, with every run of blanks and line breaks as one blank."""
    return " ".join(result.stdout.split())


def figures() -> Shown:
    return collect("toy-tiny", params.load())


def file(stage: str, name: str) -> Path:
    return paths.folder(stage, "toy", None if stage in ("index", "edits") else "tiny") / name


def reference(differences: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean: a plain loop over the resamples."""
    draws = np.random.default_rng(0).integers(len(differences), size=(1000, len(differences)))
    low, high = np.percentile([sum(differences[draw]) / len(draw) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("split", ["val", "dev"])
def test_differences_are_paired_over_the_queries_that_count_in_both(toy: Workspace, split: str) -> None:
    write()
    table, rows = values(), figures().splits[split].differences
    assert [row.method for row in rows] == ["edited", "image+text", "same"]
    own = {row["query_id"]: row["mAP@10"] for row in table.filter(method="cvsi", split=split).to_dicts()}
    for row in rows:
        mine = {one["query_id"]: one["mAP@10"] for one in table.filter(method=row.method, split=split).to_dicts()}
        pairs = [(mine[query], own[query]) for query in own if mine[query] is not None and own[query] is not None]
        assert len(pairs) == SPLITS[split] - (2 if row.method == "edited" else 1)
        differences = np.array([after - before for after, before in pairs])
        assert row.difference == pytest.approx(differences.mean())
        assert (row.low, row.high) == pytest.approx(reference(differences))
        counts = sum(differences > 0), sum(differences < 0), sum(differences == 0)
        assert (row.better, row.worse, row.same) == counts
    assert (rows[2].difference, rows[2].low, rows[2].high, rows[2].better, rows[2].worse) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("differences", "wanted"),
    [([], (0, 0, 0)), ([1e-12, -1e-12, 0], (0, 0, 3)), ([5, -3, 0, 2], (2, 1, 1)), ([-0.1], (0, 1, 0))],
)
def test_better_worse_and_same(differences: list[float], wanted: tuple[int, int, int]) -> None:
    assert tally(np.array(differences)) == wanted


def test_one_query_has_no_interval(toy: Workspace) -> None:
    one = pl.col("query_id") == "2"
    write(table=values().filter(one & (pl.col("split") == "val")))
    rows = figures().splits["val"].differences
    assert [(row.low, row.high, row.better + row.worse + row.same) for row in rows] == [(None, None, 1)] * 3
    assert sum(line.split()[2:3] == ["-"] for line in shown().stdout.splitlines()) == 3


@pytest.mark.parametrize("gone", ["all of edited", "all of cvsi"])
def test_methods_without_a_common_query_have_no_difference(toy: Workspace, gone: str) -> None:
    name = gone.split()[-1]
    table = values().with_columns(pl.when(pl.col("method") != name).then(pl.col("mAP@10")).alias("mAP@10"))
    write(table=table)
    rows = figures().splits["val"].differences
    assert [row.method for row in rows] == ([] if name == "cvsi" else ["image+text", "same"])
    lines = [line.split() for line in shown().stdout.splitlines()]
    assert any(line[:1] == [name] and line[-1] == "-" for line in lines), "no interval in the table of methods"


@pytest.mark.parametrize("split", ["val", "dev"])
def test_aspects_have_their_number_of_queries_and_the_most_come_first(toy: Workspace, split: str) -> None:
    write()
    aspects = figures().splits[split].aspects
    counted = [row for row in queries() if row["split"] == split and row["query_id"] != "7"]
    sizes = {aspect: sum(aspect in row["aspects"] for row in counted) for aspect in ASPECTS}
    assert [(label.name, label.queries) for label in aspects] == list(sizes.items())
    assert sorted(sizes.values(), reverse=True) == list(sizes.values()) and len(set(sizes.values())) == 3
    content = json.loads(file("report", "weightings.json").read_text())["splits"][split]
    for label in aspects:
        assert label.values == {method: row[f"mAP@10/{label.name}"] for method, row in content.items()}
    lines = shown().stdout.splitlines()
    assert f"{split}, mAP@10 by aspect, the most queries first" in [line.strip() for line in lines]
    assert any(line.split()[:2] == ["colour", str(sizes["colour"])] for line in lines)


def add_tags(column: pl.Series) -> None:
    """Put a column `tags` into the index, as another program may have done; the scores were made from it."""
    table = pl.read_parquet(file("index", "queries.parquet")).with_columns(column.alias("tags"))
    parquet.write_parquet(table.to_arrow(), file("index", "queries.parquet"))
    with tables.output("scores", "toy", "tiny", {"from": {"queries": provenance.queries_digest("toy")}}):
        pass


@pytest.mark.parametrize("kind", ["lists", "texts", "repeated"])
def test_tags_are_shown_where_the_index_has_them(toy: Workspace, kind: str) -> None:
    write()
    names = ["hard" if int(row["query_id"]) % 3 else "[b]easy" for row in queries()]
    number = {"lists": 1, "repeated": 2}
    lists = pl.Series([[name] * number.get(kind, 0) for name in names])
    add_tags(pl.Series(names) if kind == "texts" else lists)
    tags = figures().splits["val"].tags
    own = values().filter(method="cvsi", split="val")
    assert [label.name for label in tags] == ["hard", "[b]easy"]
    for label in tags:
        mine = [v for v, q in own.select("mAP@10", "query_id").iter_rows() if v is not None and
                ("hard" if int(q) % 3 else "[b]easy") == label.name]  # fmt: skip
        assert label.queries == len(mine) and label.values["cvsi"] == pytest.approx(np.mean(mine))
        assert list(label.values) == list(METHODS)
    assert "val, mAP@10 by tag" in shown().stdout and "[b]easy" in shown().stdout


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (pl.Series([None] * 46), ""),
        (pl.Series([None] * 46, dtype=pl.List(pl.String)), ""),
        (pl.Series([[]] * 46, dtype=pl.List(pl.String)), ""),
        (pl.Series(range(46)), "column 'tags' is no text and no list of texts"),
        (pl.Series([[1.5]] * 46), "column 'tags' is no text and no list of texts"),
    ],
    ids=["null", "null lists", "empty lists", "numbers", "lists of numbers"],
)
def test_tags_that_are_none(toy: Workspace, tags: pl.Series, wanted: str) -> None:
    write()
    add_tags(tags)
    result = shown()
    assert "by tag" not in result.stdout and "by aspect" in result.stdout
    assert [wanted in note for note in notes(result)] == ([True] if wanted else [])


def test_of_thousands_of_tags_the_largest_are_shown(toy: Workspace) -> None:
    write()
    add_tags(pl.Series([[f"t{n}" for n in range(int(row["query_id"]) * 10 + 1)] for row in queries()]))
    result = shown()
    assert "by tag, the most queries first; 251 more in --json" in " ".join(result.stdout.split())
    assert sum(line.startswith((" t", "t")) for line in result.stdout.splitlines() if "tag" not in line) < 120
    assert len(figures().splits["val"].tags) == 291


def test_edits_by_status_with_the_limit(toy: Workspace) -> None:
    write()
    line = "Edits: 40 ok (87.0%), 2 repaired (4.3%), 2 cut (4.3%), 1 no answer (2.2%), 1 refused (2.2%). "
    assert line + "Fallbacks: 4 of 46 (8.7%), limit 20%." in text_of(shown())
    assert "above" not in shown().stdout
    toy.params(datasets__toy__fallback_limit=0.05)
    assert "limit 5%." in shown().stdout and "above 5%; most frequent: cut" in shown().stdout.replace(
        "\n  ", " "
    ).replace("\n", " ")


def write_readings(statuses: list[str], roles: tuple[str, ...] = ("target", "forbidden")) -> None:
    """Edits with a reader's columns: a text of the first role if a reading is usable, of the others in every second."""
    usable = [status.partition(":")[0] in ("ok", "repaired") for status in statuses]
    columns = {
        role: [["a text"] if use and not (number and place % 2) else [] for place, use in enumerate(usable)]
        for number, role in enumerate(roles)
    }
    write_edits(["ok"] * len(statuses))
    table = tables.whole("edits", "toy")
    added = pl.DataFrame(columns, schema=dict.fromkeys(roles, pl.List(pl.String))).with_columns(
        reader_status=pl.Series(statuses, dtype=pl.String), reader_answer=pl.lit(""), reader_finish=pl.lit("stop")
    )
    whole = pl.concat([pl.DataFrame(table), added], how="horizontal").to_arrow()
    with tables.output("edits", "toy") as out:
        out.shards(whole, pa.schema([*schema.EDITS, *schema.reading_columns(roles)]))


def test_readings_by_status_and_role(toy: Workspace) -> None:
    write()
    assert "Readings:" not in shown().stdout and json.loads(shown("--json").stdout)["readings"] is None
    write_readings(["ok"] * 40 + ["repaired: fence"] * 2 + ["cut: max_tokens reached", "refused: no JSON", "cut", "x"])
    result = shown()
    line = (
        "Readings: 40 ok (87.0%), 2 repaired (4.3%), 2 cut (4.3%), 1 refused (2.2%), 1 x (2.2%). Without a usable "
        "text: 4 of 46 (8.7%). Queries with texts: target 42, forbidden 21."
    )
    assert line in text_of(result) and max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads(shown("--json").stdout)["readings"] == {
        "queries": 46, "statuses": {"ok": 40, "repaired": 2, "cut": 2, "refused": 1, "x": 1}, "unusable": 4,
        "roles": {"target": 42, "forbidden": 21},
    }  # fmt: skip
    write_readings([])
    assert "Readings:" not in shown().stdout


def test_methods_left_out_are_grouped_by_reason(toy: Workspace) -> None:
    why = "needs a reader with the role target"
    write(left_out={"osrcir": why, "sdr": why, "pseudo": "no column pseudo; the backbone has no phi"})
    result = shown()
    assert f"Left out: osrcir, sdr ({why}), pseudo (no column pseudo; the backbone has no phi)." in text_of(result)
    assert max(map(len, result.stdout.splitlines())) <= 80


def no_edits() -> None:
    for shard in file("edits", "").glob("*.parquet"):
        shard.unlink()


def write_column(stage: str, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    parquet.write_parquet(change(pl.read_parquet(file(stage, name))).to_arrow(), file(stage, name))


PART = "part-00000.parquet"


def without_texts(table: pl.DataFrame) -> pl.DataFrame:
    """The column of a reader's statuses as lists."""
    return table.with_columns(reader_status=pl.concat_list("reader_status"))


def test_readings_that_cannot_be_read_are_one_line(toy: Workspace) -> None:
    write()
    write_readings(["ok"] * 46)
    write_column("edits", PART, without_texts)
    (line,) = notes(shown())
    assert line.startswith("cache/toy/edits: columns of other types")


UNREADABLE: dict[str, tuple[Callable[[], object], str]] = {
    "no edits": (no_edits, "cache/toy/edits: no edits, so it is not known how many fell back"),
    "edits without status": (lambda: write_column("edits", PART, lambda t: t.drop("status")), "no column 'status'"),
    "damaged edits": (lambda: file("edits", PART).write_bytes(b"PAR1"), "not a readable Parquet file"),
    "no methods.parquet": (lambda: file("report", "methods.parquet").unlink(), "no such file, so no paired"),
    "damaged methods": (lambda: file("report", "methods.parquet").write_bytes(b"x"), "not a readable Parquet file"),
    "older methods": (lambda: methods_as(lambda t: t.drop("mAP@10")), "no column 'mAP@10', so no paired differences"),
    "methods without keys": (lambda: methods_as(lambda t: t.drop("split")), "no column 'split'"),
    "methods with null keys": (
        lambda: methods_as(lambda t: t.with_columns(split=pl.lit(None, pl.String))), "column 'split' has 168 nulls",
    ),
    "texts as values": (
        lambda: methods_as(lambda t: t.with_columns(pl.lit("much").alias("mAP@10"))), "'mAP@10' has no numbers",
    ),
    "lists as values": (
        lambda: methods_as(lambda t: t.with_columns(pl.col("target_ranks").alias("mAP@10"))), "'mAP@10' has no numbers",
    ),
    "values twice": (lambda: methods_as(lambda t: pl.concat([t, t])), "a method has two values of one query"),
    "no own values": (lambda: methods_as(lambda t: t.filter(pl.col("method") != "cvsi")), "no values of 'cvsi'"),
    "no values": (lambda: methods_as(lambda t: t.head(0)), "no values of 'cvsi'"),
    "no index": (lambda: file("index", "queries.parquet").unlink(), "queries.parquet: no such file"),
    "other queries": (
        lambda: write_column("index", "queries.parquet", lambda t: t.tail(30)), "other queries than those",
    ),
    "one query more": (
        lambda: write_column("index", "queries.parquet", lambda t: pl.concat([t, t.head(1)])), "other queries than",
    ),
    "queries without keys": (
        lambda: write_column("index", "queries.parquet", lambda t: t.drop("query_id")), "no column 'query_id'",
    ),
    "damaged recipe": (lambda: file("scores", "provenance.json").write_text("{"), "not readable JSON"),
}  # fmt: skip


def methods_as(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    write_column("report", "methods.parquet", change)


@pytest.mark.parametrize(("damage", "note"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_one_line_and_the_rest_is_shown(
    toy: Workspace, damage: Callable[[], object], note: str
) -> None:
    write()
    damage()
    result = shown()
    (line,) = notes(result)
    assert note in line and "cache/toy" in line
    assert "toy-tiny, val, percent" in result.stdout and "val, mAP@10 by aspect" in result.stdout
    without = "less cvsi" not in result.stdout
    assert without == ("methods.parquet" in line)
    assert ("Edits: " in result.stdout) == ("edits" not in line)
    content = json.loads(shown("--json").stdout)
    assert content["notes"] == [line] and content["splits"]["val"]["methods"]["cvsi"]["mAP@10"] > 0
    known = {label["queries"] is not None for label in content["splits"]["val"]["aspects"]}
    assert known == {"edits" in line}


WRONG = {
    "not json": "{", "a list": "[]", "a number": "3", "empty": "", "no metric": '{"splits": {}}',
    "no splits": '{"metric": "mAP@10"}', "a text": '{"metric": "mAP@10", "splits": {"val": {"cvsi": {"mAP@10": "x"}}}}',
    "no methods": '{"metric": "mAP@10", "splits": {"val": [1]}}',
    "other left out": '{"metric": "a", "splits": {}, "left_out": 3}',
    "not text": b"\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_table_of_methods_that_is_none(toy: Workspace, content: str | bytes, more: list[str]) -> None:
    write()
    file("report", "weightings.json").write_bytes(content.encode() if isinstance(content, str) else content)
    result = CliRunner().invoke(app, ["show", "toy-tiny", *more])
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = str(result.exception).splitlines()
    assert line.startswith("cache/toy/tiny/report/weightings.json: ") and "run the stage report again" in line


def test_no_report_and_no_such_run(toy: Workspace) -> None:
    for run, wanted in (("toy-tiny", "no table of methods; run dvc repro first"), ("nobody", "no run 'nobody'")):
        result = CliRunner().invoke(app, ["show", run, "--json"])
        assert result.exit_code == 1 and wanted in str(result.exception) and result.stdout == ""


@pytest.mark.parametrize("splits", [{}, {"val": {}}])
def test_hidden_splits_only(toy: Workspace, splits: dict[str, Any]) -> None:
    write(table=values().head(0), splits=splits)
    result = shown()
    assert "No split has labels, so there are no metrics." in result.stdout and "Edits: 40 ok" in result.stdout
    assert not notes(result) and json.loads(shown("--json").stdout)["splits"] == {}


def test_a_dataset_without_queries(toy: Workspace) -> None:
    write(rows=[], table=values().head(0), splits={})
    write_edits([])
    result = shown()
    assert "toy has no queries: no rankings, no metrics" in result.stdout
    assert "Edits:" not in result.stdout and not notes(result)
    assert json.loads(shown("--json").stdout)["edits"] is None


def test_methods_left_out_and_the_json_of_all(toy: Workspace) -> None:
    write(left_out={"pseudo": "no column pseudo; the backbone has no phi"})
    result = shown("--json")
    content = json.loads(result.stdout)
    assert result.stderr == "" and shown("--json").stdout == result.stdout
    assert content["left_out"] == {"pseudo": "no column pseudo; the backbone has no phi"} and content["own"] == "cvsi"
    assert content["edits"] == {
        "queries": 46, "statuses": {"ok": 40, "repaired": 2, "cut": 2, "no answer": 1, "refused": 1}, "fallbacks": 4,
        "percent": pytest.approx(100 * 4 / 46), "limit": 20.0,
    }  # fmt: skip
    assert content["report"] == "cache/toy/tiny/report/index.html" and content["notes"] == []
    assert Shown.model_validate(content) == figures()
    assert "Left out: pseudo (no column pseudo; the backbone has no phi)." in shown().stdout.replace(
        "\n  ", " "
    ).replace("\n", " ")


def test_a_metric_without_cut_offs(toy: Workspace) -> None:
    """The main metric of an own format, as in docs/extending.md."""
    rows = {"MRR": 40.0, "Recall@1": 30.0, "MRR low": 35.0, "MRR high": 45.0, "MRR/colour": 50.0}
    write(metric="MRR", splits={"val": {"cvsi": rows, "edited": rows}})
    result = shown()
    assert [line.split() for line in result.stdout.splitlines()].count(["cvsi", "40.0", "35.0", "to", "45.0"]) == 1
    assert "methods.parquet: no column 'MRR'" in notes(result)[0]


@pytest.mark.parametrize("number", [1, 7, 25])
@pytest.mark.parametrize("name", ["m", "image+text", "fine-grained_zero-shot_composed", "x" * 40])
def test_tables_by_aspect_are_at_most_80_columns_and_name_every_method(toy: Workspace, number: int, name: str) -> None:
    methods = ("cvsi", *(f"{name}{n}" for n in range(number)))
    write(table=values(methods))
    console = Console(width=80)
    text = ""
    for table in list(show.tables(figures()))[1:]:
        with console.capture() as capture:
            console.print(table)
        text += capture.get()
        if "by aspect" in capture.get():
            assert "…" not in capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("val, mAP@10 by aspect") >= 1
    heads = "".join(text.split())
    assert number > 7 or len(name) > 10 or all(f"{name}{n}" in heads for n in range(number))
