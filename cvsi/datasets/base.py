"""What every reader returns: the images and queries of a dataset as its annotations name them, nothing opened yet."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.core.schema import QUERIES
from cvsi.core.strict_json import parse_json

T = TypeVar("T")
MAX_TEXT = 1 << 30  # bytes of an annotation file
NO_QUERIES = pl.DataFrame(QUERIES.empty_table())
QUERY_COLUMNS = pl.Schema(NO_QUERIES.schema)


@dataclass(frozen=True)
class Listing:
    """Images (`image_id`, `path`, `in_gallery`) and queries (the columns of `schema.QUERIES`), in canonical order.

    `sources` names the files the queries come from, by split, for messages; `ignored` counts files that are no images;
    `refused` has paths of images that can not even be listed, with the reason.
    """

    images: pl.DataFrame
    queries: pl.DataFrame
    sources: dict[str, Path]
    ignored: int = 0
    refused: dict[str, str] = field(default_factory=dict)


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
    numbered = enumerate(_text(path).split("\n"), start=1)  # what else Python takes for a line's end, JSON does not
    return [parse_json(line, kind, f"{path} line {number}") for number, line in numbered if line.strip()]


def inside(path: str, where: object) -> str:
    """The path without `./` and `//`, if it stays below the dataset's root; else a CvsiError names `where` it stood."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) in ("", "."):
        raise CvsiError(f"{where}: path {path!r} leaves the dataset's folder; give one below it")
    return str(pure)


def leaves(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, is outside the folder `root`, whose links are followed too."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def annotation(root: Path, place: str) -> Path:
    """The path of an annotation file below the dataset's root; raises CvsiError for a link that leaves it."""
    file = root / place
    if leaves(file, root):
        raise CvsiError(f"{file}: a link that leaves the dataset's folder; copy the file into it")
    return file


def wanted_splits(asked: tuple[str, ...] | None, known: Sequence[str], root: Path) -> tuple[str, ...]:
    """The splits to read, in known order; raises CvsiError for one that the format does not have."""
    unknown = [split for split in asked or () if split not in known]
    if unknown:
        raise CvsiError(f"params.yaml: no split '{unknown[0]}' in {root}; there are: {', '.join(known)}")
    return tuple(split for split in known if asked is None or split in asked)


def _text(path: Path) -> str:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise CvsiError(f"{path}: not a file")
        if facts.st_size > MAX_TEXT:
            raise CvsiError(f"{path}: {facts.st_size:,} bytes; more than {MAX_TEXT:,} are not read")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; check the dataset's root in params.yaml") from None
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}") from None
