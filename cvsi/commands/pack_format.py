"""The format of a pack, a folder of published captions, edits, readings and verdicts, and its verified rows.

The manifest names every file with size and SHA-256, and nothing else is opened. A pack is untrusted: names, sizes,
types and keys are checked against narrow bounds, links are not followed, and the bytes that are parsed are those whose
checksum was verified.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, StringConstraints

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import PATH, Name, Params, Settings
from cvsi.core.parquet import SHARD_ROWS, check_version
from cvsi.core.schema import (
    LATER_COLUMNS,
    STORED_CAPTIONS,
    STORED_EDITS,
    STORED_READINGS,
    STORED_VERDICTS,
    with_later_columns,
)
from cvsi.core.strict_json import parse_json
from cvsi.models.judge import ROUNDING
from cvsi.pipeline.captions import CaptionJob, caption_job
from cvsi.pipeline.edits import EditJob, edit_job
from cvsi.pipeline.readings import ReadingJob, reading_job
from cvsi.pipeline.verdicts import VerdictJob, verdict_job

VERSION = 1  # of packs; raised when an earlier reader would misread one
MANIFEST, CARD, RECIPE = "manifest.json", "README.md", "recipe.json"
SCHEMAS = {"captions": STORED_CAPTIONS, "edits": STORED_EDITS, "readings": STORED_READINGS, "verdicts": STORED_VERDICTS}
# What is compared with stored rows: of edits the model's answers; the texts may have been parsed at another time.
RAW = {
    "captions": ["captions"],
    "edits": ["answers", "finish"],
    "readings": ["answers", "finish"],
    "verdicts": ["tokens", "logprobs", "finish"],
}
NOUNS = {"captions": "captioner", "edits": "editor", "readings": "reader", "verdicts": "judge"}
MAX_MANIFEST, MAX_JSON, MAX_PART = 8 << 20, 1 << 20, 256 << 20
MAX_TEXT, MAX_DECODED, MAX_VALUES = 1 << 20, 512 << 20, 1 << 22  # of a part: bytes of one text, of all, and how many
KEY = "^[0-9a-f]{64}$"

Kind = Literal["captions", "edits", "readings", "verdicts"]
Job = CaptionJob | EditJob | ReadingJob | VerdictJob
Fact = str | bool | int | float | None
Recipe = dict[str, Fact | dict[str, str]]  # flat facts, and texts by task
Checksum = Annotated[str, StringConstraints(pattern=KEY)]
Text = Annotated[str, StringConstraints(max_length=1000)]
FileName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(README\.md|(captions|edits|readings|verdicts)/(recipe\.json|part-[0-9]{5}\.parquet))$"
    ),
]


class File(Settings):
    """One file of a pack."""

    bytes: Annotated[int, Field(ge=0, le=MAX_PART)]
    sha256: Checksum


class Part(Settings):
    """One kind of rows: how many, the digest of their recipe, and the model as the packer's params.yaml names it."""

    rows: Annotated[int, Field(ge=0, le=10**9)]
    recipe: Checksum
    model: Text | None


class Manifest(Settings):
    """The whole of `manifest.json`; `version` is its key `schema`."""

    version: Annotated[int, Field(alias="schema", ge=1)]
    dataset: Name
    kinds: Annotated[dict[Kind, Part], Field(min_length=1)]
    terms: Annotated[dict[Text, Text], Field(max_length=100)]
    files: Annotated[dict[FileName, File], Field(max_length=100_000)]


def job_of(kind: Kind, name: str, params: Params) -> Job:
    """The job that computes the rows of a kind for one of its `users`; raises CvsiError where there is no reader."""
    return JOBS[kind](name, params)


def users(kind: Kind, dataset: str, params: Params) -> list[str]:
    """The names in params.yaml of what uses a dataset's rows of a kind: its reranks for verdicts, else the dataset."""
    return params.reranks_of(dataset) if kind == "verdicts" else [dataset]


def _reading_job(dataset: str, params: Params) -> ReadingJob:
    if (job := reading_job(dataset, params)) is None:
        raise CvsiError(f"datasets.{dataset}: no reader; name one in {PATH} to use readings")
    return job


JOBS: dict[str, Callable[[str, Params], Job]] = {
    "captions": caption_job,
    "edits": edit_job,
    "readings": _reading_job,
    "verdicts": verdict_job,
}


@dataclass(frozen=True)
class Pack:
    """A pack whose manifest, with the SHA-256 `sum`, was read; `check` reads the rest once."""

    folder: Path
    manifest: Manifest
    sum: str

    def recipe(self, kind: Kind) -> Recipe:
        """What decided the rows of a kind; raises CvsiError where it is not that of the manifest."""
        name = f"{kind}/{RECIPE}"
        text = _text(self._content(name), self.folder / name)
        recipe = parse_json(text, Recipe, str(self.folder / name))
        try:
            same = digest(recipe) == self.manifest.kinds[kind].recipe
        except (ValueError, RecursionError):  # a number too large for JSON
            same = False
        if not same:
            raise CvsiError(f"{self.folder / name}: not the recipe whose digest the manifest gives; get the pack again")
        return recipe

    def parts(self, kind: Kind) -> Iterator[pa.Table]:
        """The rows of a kind, 4,096 at most at a time; raises CvsiError at the first that is not as it should be."""
        for name in sorted(name for name in self.manifest.files if name.startswith(f"{kind}/part-")):
            yield _rows(self._content(name), SCHEMAS[kind], self.folder / name)

    def check(self) -> None:
        """Read everything once: checksums, recipes, types, numbers of rows, and that keys are distinct digests."""
        for name in self.manifest.files:
            if name == CARD or name.split("/")[0] not in self.manifest.kinds:
                self._content(name)
        for kind, part in self.manifest.kinds.items():
            self.recipe(kind)
            parts = [pl.Series("key", table["key"]) for table in self.parts(kind)]
            keys = pl.concat([pl.Series("key", [], pl.String), *parts])
            if keys.len() != part.rows:
                raise CvsiError(f"{self.folder}: {keys.len():,} rows of {kind}, the manifest says {part.rows:,}")
            if keys.n_unique() != keys.len():
                duplicate = keys.filter(keys.is_duplicated())[0]
                raise CvsiError(f"{self.folder}: duplicate {kind} of key {duplicate}; get the pack again")

    def unlisted_files(self) -> int:
        """How many files the manifest does not name; they are not opened."""
        named = {*self.manifest.files, MANIFEST}
        return sum(path.relative_to(self.folder).as_posix() not in named for path in _files(self.folder))

    def _content(self, name: str) -> bytes:
        """A file's bytes, verified against the size and checksum in the manifest."""
        if name not in self.manifest.files:
            raise CvsiError(f"{self.folder / MANIFEST}: names no {name}; get the pack again")
        file = self.manifest.files[name]
        content = read(self.folder, name, file.bytes)
        if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
            raise CvsiError(f"{self.folder / name}: damaged, its SHA-256 is not the manifest's; get the pack again")
        return content


def open_pack(folder: Path) -> Pack:
    """A pack by its manifest; raises CvsiError for a folder that is none, and for a later version."""
    if not (folder / MANIFEST).is_file():
        raise CvsiError(f"{folder}: no pack, it has no {MANIFEST}; give the folder that cvsi pack wrote")
    where = folder / MANIFEST
    content = read(folder, MANIFEST, MAX_MANIFEST)
    text = _text(content, where)
    version = parse_json(text, dict[str, Any], str(where)).get("schema")
    if isinstance(version, int) and version > VERSION:
        raise CvsiError(f"{where}: a pack of schema {version}, this cvsi reads up to {VERSION}; update cvsi")
    return Pack(folder, parse_json(text, Manifest, str(where)), hashlib.sha256(content).hexdigest())


def read(folder: Path, name: str, limit: int) -> bytes:
    """A plain file's bytes, `limit` at most; CvsiError for a larger one, a link, and what is not a file."""
    path = folder / name
    try:
        if path.parent != folder and path.parent.is_symlink():
            raise CvsiError(f"{path.parent}: a link; a pack holds plain files")
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise CvsiError(f"{path}: no plain file")
            if facts.st_size > limit:
                raise CvsiError(f"{path}: {facts.st_size:,} bytes, {limit:,} are expected at most; get the pack again")
            return stream.read(limit + 1)
    except OSError as error:
        raise CvsiError(f"{path}: no plain file that can be read ({error.strerror}); get the pack again") from None


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _text(content: bytes, where: Path) -> str:
    if len(content) > MAX_MANIFEST or (where.name == RECIPE and len(content) > MAX_JSON):
        raise CvsiError(f"{where}: {len(content):,} bytes are more than any pack needs")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CvsiError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _rows(content: bytes, schema: pa.Schema, where: Path) -> pa.Table:
    """A part's rows, of exactly the schema's columns and types, without nulls, each key a digest."""
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as parquet:
            columns, facts = parquet.schema_arrow, parquet.metadata
            check_version(columns.metadata, where)
            later = [field.name for field in schema if field.name in LATER_COLUMNS and pa.types.is_list(field.type)]
            earlier = pa.schema([field for field in schema if field.name not in later])
            if not (columns.equals(schema) or columns.equals(earlier)):
                raise CvsiError(f"{where}: columns {_words(columns)}, not {_words(schema)}")
            groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
            chunks = [group.column(number) for group in groups for number in range(facts.num_columns)]
            paths = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
            sizes = sum(chunk.total_uncompressed_size for chunk in chunks)
            values = sum(chunk.num_values for chunk in chunks)
            if facts.num_rows > SHARD_ROWS or sizes > MAX_DECODED or values > MAX_VALUES:
                raise CvsiError(f"{where}: more in one file than a pack may hold ({facts.num_rows:,} rows)")
        with pq.ParquetFile(
            pa.BufferReader(content), read_dictionary=sorted(paths), page_checksum_verification=True
        ) as parquet:
            _bounded(parquet.read(), where)
        with pq.ParquetFile(pa.BufferReader(content)) as parquet:
            table = parquet.read().replace_schema_metadata(None)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise CvsiError(f"{where}: not a readable Parquet file ({cause(error)}); get the pack again") from None
    _check_values(table, where)
    return with_later_columns(table, schema).cast(schema)


def _bounded(table: pa.Table, where: Path) -> None:
    """Refuse a small file whose repeated texts, written out, would need all of the memory."""
    for column in table.columns:
        for chunk in column.chunks:
            words = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
            if pa.types.is_floating(words.type):  # `MAX_VALUES` bounds them
                continue
            lengths = pc.binary_length(words.dictionary).cast(pa.int64())
            total = pc.sum(lengths.take(words.indices)).as_py() or 0
            if (pc.max(lengths).as_py() or 0) > MAX_TEXT or total > MAX_DECODED:
                raise CvsiError(f"{where}: more text in one file than a pack may hold")


def _check_values(table: pa.Table, where: Path) -> None:
    for name in table.column_names:
        column = table[name]
        if column.null_count or (pa.types.is_list(column.type) and pc.list_flatten(column).null_count):
            raise CvsiError(f"{where}: column '{name}' has nulls")
    digests = pc.match_substring_regex(table["key"], KEY)
    if table.num_rows and not pc.all(digests).as_py():
        raise CvsiError(f"{where}: column 'key' has a value that is not a SHA-256 in hex")
    if "logprobs" in table.column_names:
        _check_probabilities(table, where)


def _check_probabilities(table: pa.Table, where: Path) -> None:
    """Refuse tokens without a logarithm of a probability each, from which no verdict can be computed."""
    lengths = [pc.list_value_length(table[name]) for name in ("tokens", "logprobs")]
    if not lengths[0].equals(lengths[1]):
        raise CvsiError(f"{where}: not as many logprobs as tokens in a row")
    numbers = pc.list_flatten(table["logprobs"])
    if len(numbers) and not pc.all(pc.less_equal(numbers, ROUNDING)).as_py():  # false for NaN, too
        raise CvsiError(f"{where}: column 'logprobs' has a value that is no logarithm of a probability")


def _words(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:300]
