"""JSON text that others wrote to typed values; duplicate keys, NaN and single surrogates are refused."""

import json
from collections import Counter
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cvsi.core.errors import CvsiError
from cvsi.core.params import explain

T = TypeVar("T")


def parse_json(text: str, kind: type[T], where: str) -> T:
    """Parse JSON text as a typed value; `where` begins the message of the CvsiError."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # a single surrogate is not text; this raises ValueError
        return TypeAdapter(kind).validate_python(value)
    except json.JSONDecodeError as error:
        raise CvsiError(f"{where}: broken JSON, {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValidationError as error:
        raise CvsiError(f"{where}: {explain(error)[:500]}") from None
    except (ValueError, RecursionError) as error:
        raise CvsiError(f"{where}: broken JSON, {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        ((duplicate, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {duplicate[:40]!r} in one object")
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
