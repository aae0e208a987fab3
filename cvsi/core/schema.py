"""The Arrow schema of every table, declared once; writers cast to it.

Names and types of the artifact tables are a contract with other programs (see docs/artifacts.md): columns may be
added, none may be renamed. Vectors are fixed-size lists, so their schemas are functions of the width d.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

VERSION = 1  # of all tables, the store's included; raised when a reader of before would take a table for another one
STRINGS = pa.list_(pa.string())

IMAGES = pa.schema(
    {
        "image_id": pa.string(),
        "path": pa.string(),
        "digest": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "in_gallery": pa.bool_(),
    }
)
# Columns of images.parquet that only some datasets have. `crop`: x, y, width and height of the part that is used.
OPTIONAL_IMAGES = pa.schema({"crop": pa.list_(pa.float32(), 4)})
QUERIES = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "reference_id": pa.string(),
        "instruction": pa.string(),
        "target_ids": STRINGS,
        "exclude_ids": STRINGS,
        "group_ids": STRINGS,
        "aspects": STRINGS,
    }
)
# Columns of queries.parquet that only some datasets have.
# `negative_ids`: images that are wrong although they look right. `variant_of`: queries that express the same request in
# other words share it. `second_reference_id`: an image whose mean with the reference is the reference; empty for none.
OPTIONAL_QUERIES = pa.schema(
    {"tags": STRINGS, "negative_ids": STRINGS, "variant_of": pa.string(), "second_reference_id": pa.string()}
)
TAGS = pa.schema({"split": pa.string(), "query_id": pa.string(), "tag": pa.string()})  # of a user's file
DROPPED = pa.schema({"path": pa.string(), "reason": pa.string()})
DROPPED_QUERIES = pa.schema({"query_id": pa.string(), "split": pa.string(), "reason": pa.string()})
CAPTIONS = pa.schema({"image_id": pa.string(), "digest": pa.string(), "captions": STRINGS})
# Of a captioner that answers like a language model; the status columns are not in the tables of other captioners.
ANSWERED_CAPTIONS = pa.schema([*CAPTIONS, pa.field("status", pa.string()), pa.field("answer_status", STRINGS)])
EDITS = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "edited": STRINGS,
        "added": pa.string(),
        "status": pa.string(),
        "answer_status": STRINGS,
        "answers": STRINGS,
        "finish": STRINGS,
    }
)
RANKINGS = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "rank": pa.int32(),
        "image_id": pa.string(),
        "score": pa.float32(),
    }
)
GROUP_RANKINGS = pa.schema([RANKINGS.field(name) for name in ("query_id", "split", "rank", "image_id")])
# As it is written where queries have groups; a rerank needs the scores of images past the rankings' last rank.
SCORED_GROUP_RANKINGS = RANKINGS
VERDICTS = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "image_id": pa.string(),
        "rank": pa.int32(),
        "yes": pa.float32(),
        "status": pa.string(),
    }
)
RANKS = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "target_ranks": pa.list_(pa.int32()),
        "group_rank": pa.int32(),
    }
)
OPTIONAL_RANKS = pa.schema({"negative_ranks": pa.list_(pa.int32())})  # where the index has `negative_ids`

QUERY_PARTS = ("edited", "pseudo", "reference", "source", "instruction")
PHI_PARTS = ("pseudo",)  # missing where the backbone has no phi
ROLES = ("target", "desired", "preserve", "forbidden")  # of readers, by convention: columns like the other parts
GALLERY_PARTS = ("image", "caption")
# Names that no role may have: columns of the tables that the roles' columns stand beside or are joined with.
RESERVED = frozenset(
    {
        *QUERIES.names,
        *OPTIONAL_QUERIES.names,
        *IMAGES.names,
        *CAPTIONS.names,
        *EDITS.names,
        *RANKINGS.names,
        *RANKS.names,
    }
    | {"reader_status", "reader_answer", "reader_finish", "pool", "crop", "negative_ids", "variant_of"}
)

# Rows of the store: `key` is the digest of what a row was computed from, the recipe's digest names the folder.
STORED_FACTS = pa.schema(
    {"key": pa.string(), "digest": pa.string(), "width": pa.int32(), "height": pa.int32(), "reason": pa.string()}
)
STORED_CHANGES = pa.schema({"key": pa.string(), "path": pa.string()})
STORED_CAPTIONS = pa.schema({"key": pa.string(), "captions": STRINGS})
# Rows of a captioner that answers like a language model also have its raw answers, from which the table is parsed;
# `captions` are those of the time of storing. Other captioners keep their two columns, so their files do not change. A
# row from a pack has captions alone.
STORED_ANSWERED_CAPTIONS = pa.schema([*STORED_CAPTIONS, pa.field("raw", STRINGS), pa.field("finish", STRINGS)])
# Read are `answers` and `finish`; texts and status are those of the time of storing, which earlier versions read.
STORED_EDITS = pa.schema(
    {
        "key": pa.string(),
        "edited": STRINGS,
        "added": pa.string(),
        "status": pa.string(),
        "answers": STRINGS,
        "finish": STRINGS,
    }
)
# The first token's reported alternatives, as texts and logarithms of probabilities; the verdict is computed from them.
STORED_VERDICTS = pa.schema(
    {"key": pa.string(), "tokens": STRINGS, "logprobs": pa.list_(pa.float32()), "finish": pa.string()}
)
LATER_COLUMNS = ("finish", "raw")  # lists of the store that files of earlier versions and packs lack: empty there
# One answer and one finish reason each, as lists like those of edits.
STORED_READINGS = pa.schema({"key": pa.string(), "answers": STRINGS, "finish": STRINGS})
STORED_WEIGHTS = pa.schema({"key": pa.string(), "weights": pa.string()})
STORED_MASKS = pa.schema({"key": pa.string(), "masked": pa.string()})


def images_schema(columns: Iterable[str]) -> pa.Schema:
    """`IMAGES` and those of the optional columns that are among `columns`."""
    present = set(columns)
    return pa.schema([*IMAGES, *(field for field in OPTIONAL_IMAGES if field.name in present)])


def queries_schema(columns: Iterable[str]) -> pa.Schema:
    """`QUERIES` and those of the optional columns that are among `columns`."""
    present = set(columns)
    return pa.schema([*QUERIES, *(field for field in OPTIONAL_QUERIES if field.name in present)])


def reading_columns(roles: Iterable[str]) -> pa.Schema:
    """The columns of the table `edits` that a reader adds: one list of texts per role, its status and its answer."""
    facts = {name: pa.string() for name in ("reader_status", "reader_answer", "reader_finish")}
    return pa.schema({role: STRINGS for role in roles} | facts)


def roles_in(edits: pa.Schema) -> list[str]:
    """The roles whose columns a table of edits has."""
    if "reader_status" not in edits.names:
        return []
    return [field.name for field in edits if field.type == STRINGS and field.name not in EDITS.names]


def with_later_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of the store with the schema's later columns, as empty lists where an earlier version left them out."""
    for name in LATER_COLUMNS:
        if name in schema.names and name not in table.column_names:
            table = table.append_column(schema.field(name), pa.array([[]] * table.num_rows, schema.field(name).type))
    return table


def per_query(metrics: Iterable[str], columns: Iterable[str] = ()) -> pa.Schema:
    """Ranks of a query's targets and one float64 per metric, in percent; null where the query does not count.

    Optional columns of ranks are there if they are among `columns`.
    """
    present = set(columns)
    optional = [field for field in OPTIONAL_RANKS if field.name in present]
    return pa.schema([*RANKS, *optional, *(pa.field(name, pa.float64()) for name in metrics)])


def per_method(metrics: Iterable[str], columns: Iterable[str] = ()) -> pa.Schema:
    """`method`, then the columns of `per_query`."""
    return pa.schema([pa.field("method", pa.string()), *per_query(metrics, columns)])


def vector(width: int, value: pa.DataType | None = None) -> pa.DataType:
    """The Arrow type of one vector: a fixed-size list of `width` float32 (or `value`)."""
    return pa.list_(value or pa.float32(), width)


def stored_vectors(width: int) -> pa.Schema:
    """The store's image, text and pseudo-token rows: a key and a float32 vector of `width`."""
    return pa.schema({"key": pa.string(), "vector": vector(width)})


def gallery_vectors(width: int, components: Sequence[str]) -> pa.Schema:
    """`image_id` and the gallery components, float16: no ranking of unit vectors needs more."""
    return pa.schema({"image_id": pa.string()} | {name: vector(width, pa.float16()) for name in components})


def query_vectors(width: int, components: Sequence[str]) -> pa.Schema:
    """`query_id`, `split` and the query components, float32."""
    return pa.schema({"query_id": pa.string(), "split": pa.string()} | {name: vector(width) for name in components})
