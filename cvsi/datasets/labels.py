"""Changes to a folder's `queries.jsonl` by hand: a query added at its end, an image marked as right or wrong for one.

The file is rewritten as a whole or not at all. The order and all other lines stay as they are, byte for byte. A file
that changed since it was read is left alone.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cvsi.core.atomic import atomic_file
from cvsi.core.errors import CvsiError
from cvsi.core.params import explain
from cvsi.datasets.base import BOM
from cvsi.datasets.folder import Query

Mark = Literal["right", "wrong", "none"]
LISTS = {"right": "targets", "wrong": "negatives"}


def digest(file: Path) -> str:
    """What identifies the content of a file of queries; empty where there is no file."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def append(file: Path, reference: str, instruction: str, seen: str) -> str:
    """Add a query without targets at the end; the digest of the new content.

    Raises CvsiError where the file's content is not that of the digest `seen`, and for a query that is none.
    """
    query = {"reference": reference, "instruction": instruction}
    line = json.dumps(_checked(query), ensure_ascii=False)

    def appended(text: str) -> str:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"

    return _rewrite(file, seen, appended)


def mark(file: Path, number: int, image: str, as_what: Mark, seen: str) -> str:
    """Mark an image for the query of a number, counted from 0 without blank lines; the digest of the new content.

    `right` adds it to `targets`, `wrong` to `negatives`, and each takes it out of the other list; `none` out of both.
    Raises CvsiError where the file's content is not that of the digest `seen`, and for a number without a query.
    """

    def marked(text: str) -> str:
        lines = text.split("\n")  # JSON allows Python's other line ends within a string
        rows = [row for row, line in enumerate(lines) if line.lstrip(BOM).strip()]
        if not 0 <= number < len(rows):
            raise CvsiError(f"{file}: {len(rows):,} queries, no number {number}")
        lines[rows[number]] = _marked(lines[rows[number]], image, as_what)
        return "\n".join(lines)

    return _rewrite(file, seen, marked)


def _marked(line: str, image: str, as_what: Mark) -> str:
    bare = line.lstrip(BOM)
    query: dict[str, Any] = json.loads(bare)
    for name, column in LISTS.items():
        listed = [one for one in query.get(column, []) if one != image]
        if name == as_what:
            listed.append(image)
        if listed or column in query:
            query[column] = listed
    return line[: len(line) - len(bare)] + json.dumps(_checked(query), ensure_ascii=False)


def _checked(query: dict[str, Any]) -> dict[str, Any]:
    """A query as it is, once it was seen to be one."""
    try:
        Query.model_validate(query)
    except ValidationError as error:
        raise CvsiError(explain(error)) from None
    return query


def _rewrite(file: Path, seen: str, change: Callable[[str], str]) -> str:
    before = file.read_bytes() if file.exists() else b""
    if (hashlib.sha256(before).hexdigest() if file.exists() else "") != seen:
        raise CvsiError(f"{file}: changed meanwhile, so nothing was written; load the page again")
    after = change(before.decode("utf-8")).encode("utf-8")
    with atomic_file(file) as partial:
        partial.write_bytes(after)
    return hashlib.sha256(after).hexdigest()
