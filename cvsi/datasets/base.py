"""What every format's reader returns and what it is made with: a listing, annotation files, paths below the root.

A listing is the images and queries of a dataset as its annotations name them; no image is opened yet. `check_listing`
holds it against the rules that are the same for every format. All faults of a kind are reported together and name the
file to correct.
"""

import codecs
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import polars as pl
import pyarrow as pa

from cvsi.core import parquet
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Settings
from cvsi.core.schema import QUERIES
from cvsi.core.strict_json import parse_json
from cvsi.datasets.roots import Roots

T = TypeVar("T")
MAX_TEXT = 1 << 30  # bytes of an annotation file
LONGEST_WORD = 1_000  # characters; CLIP's tokenizer takes quadratic time for one word
LONGEST_ID, LONGEST_INSTRUCTION = 1_000, 50_000  # characters; a benchmark's instructions have a few hundred at most
LONGEST_SHOWN = 200  # characters of an id in a message
NOT_NAMES = frozenset(("", ".", ".."))  # what is between slashes of a path that is absolute or not normalised
OUTSIDE_ROOT = "a link that leaves the dataset's folder"
BOM = "\ufeff"  # the byte order mark, which editors and shells of Windows write
NO_QUERIES = pl.DataFrame(QUERIES.empty_table())
QUERY_COLUMNS = pl.Schema(NO_QUERIES.schema)


class FormatSettings(Settings):
    """The keys of a dataset in params.yaml that only its format has; none by default."""

    @property
    def averaged_as(self) -> str | None:
        """The part of a benchmark that this dataset is, such as FashionIQ's category; the summary averages parts."""
        return None

    @property
    def variant(self) -> str:
        """How queries or gallery differ from the benchmark's usual ones, as in params.yaml; empty where they do not.

        Published figures are comparable only with the same variant.
        """
        return ""


@dataclass(frozen=True)
class Listing:
    """Images (`image_id`, `path`, `in_gallery`) and queries (the columns of `schema.QUERIES`), in canonical order.

    `sources` names the files that the queries come from, by split, for messages; `skipped` has the names of files and
    folders that are not read, by noun and kind (`("file", ".txt")`); `refused` has paths of images that cannot be
    listed, with the reason; `matched` has names of the annotations that were written in another form, with their ids;
    `notes` are lines for people about what was read.
    """

    images: pl.DataFrame
    queries: pl.DataFrame
    sources: dict[str, Path]
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    matched: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def gallery(images: Mapping[str, str] | Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Ids and paths as the `images` of a listing, all of them ranked."""
    pairs = list(images.items() if isinstance(images, Mapping) else images)
    columns = {"image_id": [image for image, _ in pairs], "path": [path for _, path in pairs]}
    frame = pl.DataFrame(columns, schema={"image_id": pl.String, "path": pl.String})
    return frame.with_columns(in_gallery=pl.lit(True))


def load_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a typed value; raises CvsiError that names the file, the position and the reason."""
    return parse_json(_text(path), kind, str(path))


def load_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a JSON-lines file, one typed value per line; blank lines are numbered but give nothing."""
    numbered = enumerate(_text(path).split("\n"), start=1)  # JSON allows Python's other line ends within a string
    lines = ((number, line.lstrip(BOM)) for number, line in numbered)  # of files that were joined
    return [parse_json(line, kind, f"{path} line {number}") for number, line in lines if line.strip()]


def load_names(path: Path) -> list[str]:
    """Read a text file of one name per line, without blanks at their ends; blank lines give nothing."""
    return [name for line in _text(path).split("\n") if (name := line.strip())]


def load_parquet(path: Path, columns: pa.Schema) -> pl.DataFrame:
    """Read these columns of a Parquet file; cells, and entries of lists, may be null.

    Raises CvsiError where it is missing, damaged or too large, and for a column that is missing or of another type.
    """
    _check_size(path)
    there = parquet.columns_of(path).names
    if missing := [name for name in columns.names if name not in there]:
        raise CvsiError(f"{path}: no column '{missing[0]}'; there are: {first_names(there)}")
    parts, size = [], 0
    for part in parquet.parts(path, columns.names):
        size += part.nbytes
        if size > MAX_TEXT:
            raise CvsiError(f"{path}: more than {MAX_TEXT:,} bytes of content; that many are not read")
        parts.append(part)
    try:
        table = pa.concat_tables(parts).select(columns.names).cast(columns)
        table.validate(full=True)  # text that is not UTF-8 among others
    except pa.ArrowException as error:
        raise CvsiError(f"{path}: columns of other types than {columns.names} need ({cause(error)})") from None
    return pl.DataFrame(table)


def loose(name: str) -> str:
    """A name without its case and its Unicode form, in which systems differ."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def split_suffix(name: str) -> tuple[str, str]:
    """A file's name without its suffix, and the suffix with its dot: empty where there is none."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix}") if dot and stem and suffix else (name, "")


def relative_path(path: str, where: object, roots: Roots | None = None) -> str:
    """The path without `./` and `//`; raises CvsiError, which begins with `where`, for one that leaves the root.

    With `roots`, an absolute path within them becomes one relative to the root.
    """
    if "\0" not in path and NOT_NAMES.isdisjoint(path.split("/")):
        return path  # PurePosixPath takes seconds for the paths of a large gallery
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) in ("", "."):
        if roots is not None and pure.is_absolute() and (below := roots.inside(path)) is not None:
            return below
        raise CvsiError(f"{where}: path {path!r} leaves the dataset's folder; give one below it")
    return str(pure)


def annotation_path(root: Path, name: str, further: Sequence[str] = ()) -> Path:
    """The path of an annotation file below the dataset's root or `further` roots; raises CvsiError for other links."""
    roots = Roots(root, further)
    file = next((base / name for base in roots if (base / name).exists()), root / name)
    try:
        target = roots.target_outside(file) if roots.outside(file) else ""
    except OSError:  # a circle of links, which opening the file reports
        return file
    if target:
        folder = Path(target) if Path(target).is_dir() else Path(target).parent
        raise CvsiError(
            f"{file}: {OUTSIDE_ROOT}; copy the file into it, or add {folder} to the dataset's roots in params.yaml"
        )
    return file


def wanted_splits(selected: tuple[str, ...] | None, known: Sequence[str], root: Path) -> tuple[str, ...]:
    """The splits to read, in known order; raises CvsiError for one that the format does not have."""
    unknown = [split for split in selected or () if split not in known]
    if unknown:
        raise CvsiError(f"params.yaml: no split '{unknown[0]}' in {root}; there are: {', '.join(known)}")
    return tuple(split for split in known if selected is None or split in selected)


def check_listing(listing: Listing, root: Path) -> None:
    """Raise CvsiError for ids that are duplicate or too long, and for instructions that are too long."""
    _refuse_duplicates(listing.images, ["image_id"], str(root))
    _refuse_duplicates(listing.queries, ["split", "query_id"], str(root))
    _refuse_long_texts(listing, root)


def _refuse_duplicates(table: pl.DataFrame, columns: list[str], where: str) -> None:
    duplicates = table.filter(table.select(columns).is_duplicated()).select(columns).unique(maintain_order=True)
    if duplicates.height:
        names = first_names(" ".join(map(str, row)) for row in duplicates.iter_rows())
        raise CvsiError(f"{where}: duplicate {columns[-1]}: {names}; ids must be unique")


def _refuse_long_texts(listing: Listing, root: Path) -> None:
    """Refuse ids and texts longer than any dataset has and any model reads."""
    names = pl.concat([listing.images["image_id"], listing.queries["aspects"].explode().drop_nulls()])
    long = names.filter(names.str.len_chars() > LONGEST_ID)
    if long.len():
        raise CvsiError(f"{root}: ids of more than {LONGEST_ID:,} characters: {first_names(long)}; shorten them")
    endless = listing.queries.filter(pl.col("instruction").str.len_chars() > LONGEST_INSTRUCTION)
    if endless.height:
        raise CvsiError(
            f"{listing.sources[endless['split'][0]]}: instructions of more than {LONGEST_INSTRUCTION:,} characters: "
            f"query {first_names(endless['query_id'])}; shorten them"
        )
    for row in listing.queries.filter(pl.col("instruction").str.len_chars() > LONGEST_WORD).iter_rows(named=True):
        if max(map(len, row["instruction"].split()), default=0) > LONGEST_WORD:
            raise CvsiError(
                f"{listing.sources[row['split']]}: a word of more than {LONGEST_WORD:,} characters in the instruction "
                f"of query {row['query_id'][:LONGEST_SHOWN]}; shorten it"
            )


def first_names(names: Iterable[str], limit: int = 20) -> str:
    """The first names, shortened, and how many more there are."""
    listed = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..." for name in names]
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _check_size(path: Path) -> None:
    """Raise CvsiError for a path that is no file, or one of too many bytes."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; check the dataset's root in params.yaml") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise CvsiError(f"{path}: not a file")
    if facts.st_size > MAX_TEXT:
        raise CvsiError(f"{path}: {facts.st_size:,} bytes; more than {MAX_TEXT:,} are not read")


def _text(path: Path) -> str:
    _check_size(path)
    try:
        return path.read_text(encoding=_encoding(path))
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}") from None


def _encoding(path: Path) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one."""
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
