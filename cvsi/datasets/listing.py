"""What every reader returns: the images and queries of a dataset as its annotations name them, nothing opened yet."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import polars as pl
from pydantic import TypeAdapter, ValidationError

from cvsi.errors import CvsiError
from cvsi.params import explain
from cvsi.schema import QUERIES

T = TypeVar("T")
QUERY_COLUMNS = pl.Schema(pl.DataFrame(QUERIES.empty_table()).schema)


@dataclass(frozen=True)
class Listing:
    """Images (`image_id`, `path`, `in_gallery`) and queries (the columns of `schema.QUERIES`), in canonical order.

    `sources` names the files the queries come from, by split, for messages; `ignored` counts files that are no images.
    """

    images: pl.DataFrame
    queries: pl.DataFrame
    sources: dict[str, Path]
    ignored: int = 0


def gallery(images: Mapping[str, str] | Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Ids and paths as the `images` of a listing, all of them ranked."""
    pairs = list(images.items() if isinstance(images, Mapping) else images)
    frame = pl.DataFrame(pairs, schema={"image_id": pl.String, "path": pl.String}, orient="row")
    return frame.with_columns(in_gallery=pl.lit(True))


def load_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a typed value; raises CvsiError that names the file, the place and the reason."""
    return parse_json(_text(path), kind, str(path))


def load_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a JSON-lines file, a typed value a line; blank lines count but give nothing."""
    numbered = enumerate(_text(path).splitlines(), start=1)
    return [parse_json(line, kind, f"{path} line {number}") for number, line in numbered if line.strip()]


def parse_json(text: str, kind: type[T], where: str) -> T:
    """Parse JSON text as a typed value; `where` begins the message of the CvsiError."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text; this raises ValueError
        return TypeAdapter(kind).validate_python(value)
    except json.JSONDecodeError as error:
        raise CvsiError(f"{where}: broken JSON, {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValidationError as error:
        raise CvsiError(f"{where}: {explain(error)[:500]}") from None
    except (ValueError, RecursionError) as error:
        raise CvsiError(f"{where}: broken JSON, {error}") from None


def inside(path: str, where: object) -> str:
    """The path as it is, if it stays below the dataset's root; raises CvsiError that names `where` it was read."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) in ("", "."):
        raise CvsiError(f"{where}: path {path!r} leaves the dataset's folder; give one below it")
    return path


def wanted_splits(asked: tuple[str, ...] | None, known: Sequence[str], root: Path) -> tuple[str, ...]:
    """The splits to read, in known order; raises CvsiError for one that the format does not have."""
    unknown = [split for split in asked or () if split not in known]
    if unknown:
        raise CvsiError(f"params.yaml: no split '{unknown[0]}' in {root}; there are: {', '.join(known)}")
    return tuple(split for split in known if asked is None or split in asked)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; check the dataset's root in params.yaml") from None
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
