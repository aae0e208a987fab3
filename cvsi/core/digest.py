"""The digest of JSON-able values: keys of rows, recipes, fingerprints."""

import hashlib
import json
from typing import Any


def digest(*parts: Any) -> str:
    """SHA-256, in hex, of JSON-able parts in canonical form: sorted keys, no blanks, UTF-8."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
