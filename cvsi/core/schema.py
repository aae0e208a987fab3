"""The Arrow schema of every table, declared once; writers cast to it.

Names and types of the artifact tables are a contract with other programs (see docs/artifacts.md): columns may be
added, none may be renamed. Vectors are fixed-size lists, so their schemas are functions of the width d.
"""

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
DROPPED = pa.schema({"path": pa.string(), "reason": pa.string()})
DROPPED_QUERIES = pa.schema({"query_id": pa.string(), "split": pa.string(), "reason": pa.string()})
CAPTIONS = pa.schema({"image_id": pa.string(), "digest": pa.string(), "captions": STRINGS})
EDITS = pa.schema(
    {
        "query_id": pa.string(),
        "split": pa.string(),
        "edited": STRINGS,
        "added": pa.string(),
        "status": pa.string(),
        "answers": STRINGS,
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

QUERY_PARTS = ("edited", "pseudo", "reference", "source", "instruction")
GALLERY_PARTS = ("image", "caption")

# Rows of the store: `key` is the digest of what a row was computed from, the recipe's digest names the folder.
STORED_FACTS = pa.schema(
    {"key": pa.string(), "digest": pa.string(), "width": pa.int32(), "height": pa.int32(), "reason": pa.string()}
)
STORED_CAPTIONS = pa.schema({"key": pa.string(), "captions": STRINGS})
STORED_EDITS = pa.schema(
    {
        "key": pa.string(),
        "edited": STRINGS,
        "added": pa.string(),
        "status": pa.string(),
        "answers": STRINGS,
    }
)
STORED_WEIGHTS = pa.schema({"key": pa.string(), "weights": pa.string()})
STORED_MASKS = pa.schema({"key": pa.string(), "masked": pa.string()})


def vector(width: int, value: pa.DataType | None = None) -> pa.DataType:
    """The Arrow type of one vector: a fixed-size list of `width` float32 (or `value`)."""
    return pa.list_(value or pa.float32(), width)


def stored_vectors(width: int) -> pa.Schema:
    """The store's image, text and pseudo-token rows: a key and a float32 vector of `width`."""
    return pa.schema({"key": pa.string(), "vector": vector(width)})


def gallery_vectors(width: int) -> pa.Schema:
    """`image_id` and the two gallery parts, float16: unit vectors lose nothing that ranks."""
    return pa.schema({"image_id": pa.string()} | {part: vector(width, pa.float16()) for part in GALLERY_PARTS})


def query_vectors(width: int) -> pa.Schema:
    """`query_id`, `split` and the five query parts, float32."""
    return pa.schema({"query_id": pa.string(), "split": pa.string()} | {part: vector(width) for part in QUERY_PARTS})
