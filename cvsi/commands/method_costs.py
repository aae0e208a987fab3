"""A run's methods to what each would cost: rows of models that it uses and the store does not have, and their time.

A method uses columns of the vectors, and a column is made from rows of several kinds: captions, edits, readings and
vectors. Methods share rows. Counts are exact where the tables that name the rows are there, else the most there can be.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import polars as pl

from cvsi.commands.forecast import COUNTED, image_number, known_rate, query_number
from cvsi.commands.layout import Table
from cvsi.commands.requirements import Inventory
from cvsi.commands.times import rate_of
from cvsi.core import paths, tables
from cvsi.core.console import count, seconds
from cvsi.core.devices import device_kind
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import Fusion
from cvsi.models import catalogue
from cvsi.models.encoder import composes
from cvsi.models.engines import reader_of, reader_settings
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.components import GALLERY_COMPONENTS, QUERY_COMPONENTS, Component, Role
from cvsi.pipeline.edits import edit_job
from cvsi.pipeline.embeddings import text_keys
from cvsi.pipeline.readings import reading_job
from cvsi.pipeline.second_reference import SECOND
from cvsi.pipeline.vectors import gallery_rows, query_jobs, query_rows, query_sentences
from cvsi.pipeline.verdicts import verdict_job
from cvsi.store.jobs import RowJob
from cvsi.store.rows import RowStore

CAPTIONS, EDITS, READINGS, VERDICTS = "captions", "edits", "readings", "verdicts"
NEW_READINGS = "readings of a reader that the dataset does not have"
IMAGES, TEXTS, PSEUDO, COMPOSED = "image_vectors", "text_vectors", "pseudo_vectors", "composed_vectors"
# The columns of the table, each with the kinds of rows that it counts.
COLUMNS = {
    "images\ncaptioned": (CAPTIONS,), "LLM\nanswers": (EDITS,), "reader\nanswers": (READINGS, NEW_READINGS),
    "images, texts\nembedded": (IMAGES, TEXTS, PSEUDO, COMPOSED), "pairs\njudged": (VERDICTS,),
}  # fmt: skip
ALL = "all of them"
ADDED_UP = (TEXTS, PSEUDO)  # different columns are made from different rows; of the other kinds, from the same


class Used(NamedTuple):
    """Rows of one kind that a column is made from: their keys, or (None where these are not known) the most there are.

    `most` is None where not even that is known.
    """

    kind: str
    keys: pl.Series | None
    most: int | None


@dataclass(frozen=True)
class Number:
    """How many rows of a kind are used, and how many of them are not stored; `exact`, or the most there can be."""

    total: int
    todo: int
    exact: bool


@dataclass(frozen=True)
class Cost:
    """What a method uses, by kind of row (None: unknown), the time of what is not stored, and what the run lacks.

    `seconds` is the part of the time that is known, and `complete` says whether that is all of it.
    """

    method: str
    numbers: Mapping[str, Number | None]
    seconds: float
    complete: bool
    lacks: str


class RunCosts:
    """The costs of one run's methods; raises CvsiError where nothing says how many images there are."""

    def __init__(self, name: str, params: Params, inventory: Inventory) -> None:
        """Look up the sizes; of an index that is older than the folder, the numbers are those of the index."""
        self.run, self.params = params.run(name), params
        self.name = self.run.dataset
        self.images, self.queries = (number(self.name, params, inventory) for number in (image_number, query_number))
        self.captions = caption_job(self.name, params).settings.n
        self.reader = reader_of(params.dataset(self.name), self.name)
        self.indexed = tables.exists("index", self.name)
        self.captioned = self.indexed and tables.exists("captions", self.name)
        self.edited = self.captioned and tables.exists("edits", self.name)
        self.components = _queries(), dict(GALLERY_COMPONENTS)
        self._used_by: dict[tuple[str, str], list[Used]] = {}

    def costs(self) -> Iterator[Cost]:
        """One per method in the order of the table, one for all of them together, and one per rerank of the run."""
        fusions, lacks = methods.table(self.params, self.name), lacking(self.run, self.params)
        for method, fusion in fusions.items():
            yield self._cost(method, self._used([fusion]), lacks[method])
        yield self._cost(ALL, self._used(fusions.values()), "")
        own = self._used([next(iter(fusions.values()))])
        for name in self._reranks:
            yield self._cost(f"rerank {name}", [*own, self._pairs(name)], "")

    @property
    def answers_per_edit(self) -> int:
        """How many answers an edit has at most: one per edited description and one for the objects, or one for both."""
        settings = edit_job(self.name, self.params).settings
        if settings.output == "json":
            return 1
        shown = settings.captions if isinstance(settings.captions, int) else self.captions
        return 2 if settings.mode == "joint" else 1 + min(shown, self.captions)

    def _used(self, fusions: Collection[Fusion]) -> list[Used]:
        """The rows that the columns of fusions are made from, column by column."""
        columns = [("query", column) for fusion in fusions for column in fusion.query_columns]
        columns += [("gallery", column) for fusion in fusions for column in fusion.gallery_columns]
        for side, column in columns:
            if (side, column) not in self._used_by:
                rows = self._query_column(column) if side == "query" else self._gallery_column(column)
                self._used_by[side, column] = list(rows)
        return [rows for key in dict.fromkeys(columns) for rows in self._used_by[key]]

    def _query_column(self, column: str) -> Iterator[Used]:
        component = self.components[0].get(column)
        if component is None:
            yield from self._role(column)
            return
        if component.reads:
            yield self._reference_captions
        if component.reads - {CAPTIONS}:
            yield Used(EDITS, self._keys(EDITS, self.captioned), self.queries)
        if component.uses_phi:
            yield Used(PSEUDO, query_sentences(self.name)["key"] if self.edited else None, self.queries)
        if component.composes:
            yield Used(COMPOSED, self._keys(COMPOSED, self.edited), self.queries)
            return
        if _of_images(component):
            yield Used(IMAGES, self._references, min(2 * self.queries, self.images))
            return
        each = self.captions if component.reads else 1  # an edit that is not usable becomes the captions
        yield Used(TEXTS, _keys_of(component, self._rows), self.queries * each)

    def _role(self, role: str) -> Iterator[Used]:
        """The readings, and their texts of the role; nothing where another program wrote the column."""
        reader = self.reader if self.reader is not None and role in self.reader.roles else None
        if reader is None and role in written_columns(self.run):
            return
        if reader is None:
            blocks = {f"readers.{name}": block for name, block in self.params.readers.items()}
            most = [reader_settings(block, where).roles.get(role, 0) for where, block in blocks.items()]
            yield Used(NEW_READINGS, None, self.queries)
            yield Used(TEXTS, None, self.queries * max(most) if any(most) else None)
            return
        if reader.sees == CAPTIONS:
            yield self._reference_captions
        countable = self.captioned or (self.indexed and reader.sees == "image")
        yield Used(READINGS, self._keys(READINGS, countable), self.queries)
        rows = self._rows if self._rows is not None and role in self._rows.columns else None
        yield Used(TEXTS, _keys_of(Role(role), rows), self.queries * reader.roles[role])

    def _gallery_column(self, column: str) -> Iterator[Used]:
        component, gallery = self.components[1][column], self._digests("in_gallery")
        if component.reads:
            yield Used(CAPTIONS, gallery, self.images)
        if _of_images(component):
            yield Used(IMAGES, gallery, self.images)
            return
        most = self.images * (self.captions if component.reads else 1)
        rows = gallery_rows(self.name) if self.captioned and most <= COUNTED else None
        yield Used(TEXTS, _keys_of(component, rows), most)

    def _pairs(self, name: str) -> Used:
        """The pairs that a rerank's judge is shown."""
        job = verdict_job(name, self.params)
        ranked = tables.exists("scores", self.name, self.run.backbone)
        groups = sum(map(len, self._query_table["group_ids"])) if self.indexed else 0
        return Used(f"{VERDICTS} {name}", job.wanted()["key"] if ranked else None, self.queries * job.top + groups)

    @cached_property
    def _rows(self) -> pl.DataFrame | None:
        return query_rows(self.name) if self.edited and self.queries * self.captions <= COUNTED else None

    @property
    def _reference_captions(self) -> Used:
        return Used(CAPTIONS, self._references, min(2 * self.queries, self.images))

    @cached_property
    def _query_table(self) -> pl.DataFrame:
        return pl.DataFrame(tables.read("index", self.name, "queries.parquet"))

    @cached_property
    def _image_table(self) -> pl.DataFrame:
        return pl.DataFrame(tables.read("index", self.name, "images.parquet"))

    @cached_property
    def _references(self) -> pl.Series | None:
        """The digests of the queries' reference images; of some queries there are two."""
        if not self.indexed:
            return None
        queries = self._query_table
        ids = pl.concat([queries[name] for name in ("reference_id", SECOND) if name in queries.columns])
        return self._digests(pl.col("image_id").is_in(ids.drop_nulls().unique().implode()))

    def _digests(self, which: str | pl.Expr) -> pl.Series | None:
        return self._image_table.filter(which)["digest"] if self.indexed else None

    def _keys(self, kind: str, countable: bool) -> pl.Series | None:
        job = self._jobs.get(kind) if countable else None
        return None if job is None else job.wanted()["key"]

    @property
    def _reranks(self) -> list[str]:
        return [name for name, rerank in self.params.reranks.items() if rerank.run == self.run]

    @cached_property
    def _jobs(self) -> dict[str, RowJob]:
        """The jobs by kind, as far as the run has them."""
        jobs: dict[str, RowJob] = {CAPTIONS: caption_job(self.name, self.params)}
        jobs[EDITS] = edit_job(self.name, self.params)
        if (reading := reading_job(self.name, self.params)) is not None:
            jobs[READINGS] = reading
        jobs |= {job.kind: job for job in query_jobs(self.name, self.run.backbone, self.params)}
        return jobs | {f"{VERDICTS} {name}": verdict_job(name, self.params) for name in self._reranks}

    @cached_property
    def _stored(self) -> dict[str, RowStore]:
        """The stored rows by kind; without those of a model that cannot be identified, since it is not here."""
        stored = {}
        for kind, job in self._jobs.items():
            try:
                stored[kind] = job.rows()
            except CvsiError:  # the inventory names what is missing
                continue
        return stored

    def _cost(self, method: str, used: Iterable[Used], lacks: str) -> Cost:
        by_kind: dict[str, list[Used]] = {}
        for rows in used:
            by_kind.setdefault(rows.kind, []).append(rows)
        numbers = {kind: self._number(kind, rows) for kind, rows in by_kind.items()}
        times = [
            None if number is None else self._seconds(kind, number.todo)
            for kind, number in numbers.items()
            if number is None or number.todo
        ]
        known = [time for time in times if time is not None]
        return Cost(method, numbers, sum(known), len(known) == len(times), lacks)

    def _number(self, kind: str, used: Sequence[Used]) -> Number | None:
        """The rows of one kind that several columns are made from, each counted once."""
        bounds = [rows.most for rows in used if rows.keys is None]
        if None in bounds:
            return None
        keys = [rows.keys for rows in used if rows.keys is not None]
        distinct = pl.concat(keys).unique() if keys else pl.Series([], dtype=pl.String)
        stored = self._stored.get(kind)
        missing = distinct.len() if stored is None else stored.missing(distinct).len()
        together = sum if kind in ADDED_UP else max
        total, todo = (together([counted, *map(int, filter(None, bounds))]) for counted in (distinct.len(), missing))
        return Number(total, todo, not bounds and (stored is not None or not todo))

    def _seconds(self, kind: str, todo: int) -> float | None:
        """The time of rows by a rate that this folder measured, else by one of the catalogue; None without both."""
        if kind not in self._stored:
            return None
        job = self._jobs[kind]
        rate = rate_of(job.kind, digest(job.recipe()), todo)
        if rate is None:
            model = getattr(getattr(job, "settings", None), "model", None)
            backbone = self.params.backbone(self.run.backbone)
            entry = catalogue.of_backbone(backbone) if model is None else catalogue.of_model(model)
            texts = self.captions if kind == CAPTIONS else 1
            rate = known_rate(entry, job.kind, device_kind(self.params.compute), texts).per_second
        return todo / rate if rate else None


def lacking(run: Run, params: Params) -> dict[str, str]:
    """What a run lacks, by method of its table: a phi, or a reader with roles; empty where it lacks nothing."""
    written, reader, backbone = written_columns(run), reader_of(params.dataset(run.dataset), run.dataset), run.backbone
    components = _queries()
    given = {*components, *written, *(reader.roles if reader is not None else ())}
    of_phi = {name for name, component in components.items() if component.uses_phi and name not in written}
    without = dict.fromkeys(of_phi if params.backbone(backbone).phi is None else (), "a phi of the backbone")
    if not composes(params.backbone(backbone)):
        composing = [name for name, component in components.items() if component.composes and name not in written]
        without |= dict.fromkeys(composing, "a backbone that makes composed vectors")
    return {method: _lacks(fusion, given, without) for method, fusion in methods.table(params, run.dataset).items()}


def _lacks(fusion: Fusion, given: Collection[str], without: Mapping[str, str]) -> str:
    """What a fusion lacks: `given` are the columns that there may be, `without` those that the backbone has not."""
    roles = [column for column in fusion.query_columns if column not in given]
    lacks = [f"a reader with {'the role' if len(roles) == 1 else 'the roles'} {', '.join(roles)}"] if roles else []
    return " and ".join(dict.fromkeys([*lacks, *(without[name] for name in fusion.query_columns if name in without)]))


def _queries() -> dict[str, Component]:
    """The query components by name; looking them up once saves a search for entry points per name."""
    return dict(QUERY_COMPONENTS)


def written_columns(run: Run) -> list[str]:
    """The columns of a run's query vectors, which another program may have written; none before they are there."""
    if not any(paths.folder("query_vectors", run.dataset, run.backbone).glob("*.parquet")):
        return []
    return list(tables.schema_of("query_vectors", run.dataset, run.backbone).names)


def short(name: str, params: Params) -> str:
    """A line about a run's methods: how many lack nothing, and which command shows the costs."""
    lacks = list(lacking(params.run(name), params).values())
    others = "; what each costs" if not any(lacks) else "; what each costs and what the others lack"
    return f"{name}: {lacks.count('')} of {count(len(lacks), 'method')} possible{others}: cvsi check --methods"


def table(name: str, costs: Sequence[Cost], answers_per_edit: int) -> Table:
    """A run's methods with the calls of models that each uses, and how many of them are not stored yet."""
    judged = any(kind.startswith(VERDICTS) for cost in costs for kind in cost.numbers)
    columns = [column for column in COLUMNS if judged or VERDICTS not in COLUMNS[column]]
    title = f"{name}: model calls that each method uses, those not in the store yet first"
    shown = Table(title).texts("method", key=True).figures(*columns, "time")
    for cost in costs:
        cells = [_cell(cost, COLUMNS[column], answers_per_edit) for column in columns]
        if cost.method == ALL:
            shown.add_section()
        shown.add_row(cost.method, *cells, _time(cost))
    return shown


def lines(costs: Iterable[Cost]) -> Iterator[str]:
    """What the run lacks for its methods, below the table."""
    missing: dict[str, list[str]] = {}
    for cost in costs:
        if cost.lacks:
            missing.setdefault(cost.lacks, []).append(cost.method)
    for what, names in missing.items():
        yield f"{', '.join(names)}: {'need' if len(names) > 1 else 'needs'} {what}."


def _cell(cost: Cost, kinds: Sequence[str], answers_per_edit: int) -> str:
    """Calls that are still to be made, of how many; `-` where the method uses none of them."""
    numbers = [number for kind, number in cost.numbers.items() if kind.partition(" ")[0] in kinds or kind in kinds]
    if not numbers:
        return "-"
    if None in numbers:
        return "unknown"
    known = [number for number in numbers if number is not None]
    each = answers_per_edit if EDITS in kinds else 1
    todo, total = (each * sum(numbers) for numbers in zip(*((one.todo, one.total) for one in known), strict=True))
    return f"{'' if all(one.exact for one in known) else '<= '}{todo:,}{f' of {total:,}' if todo < total else ''}"


def _time(cost: Cost) -> str:
    if all(number is not None and not number.todo for number in cost.numbers.values()):
        return "nothing"
    if cost.complete:
        return seconds(cost.seconds)
    return f"over {seconds(cost.seconds)}" if cost.seconds else "unknown"


def _of_images(component: Component) -> bool:
    """Whether a component is made from image embeddings: it has no texts of its own."""
    return type(component).texts is Component.texts


def _keys_of(component: Component, rows: pl.DataFrame | None) -> pl.Series | None:
    return None if rows is None else text_keys(component.texts(rows).drop_nulls())
