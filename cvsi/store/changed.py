"""Records of files whose content is not the indexed one, although size, times and inode did not show it.

A stage that reads such a file adds a record to the store. The key of the file's facts contains how many records there
are, so the next `index` finds no facts and reads the file again. A record that was lost would bring the wrong facts
back, so records are never removed.
"""

import uuid

import polars as pl
import pyarrow as pa

from cvsi.core.errors import ChangedFile, CvsiError
from cvsi.core.schema import STORED_CHANGES
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.rows import RowStore, Store

KIND = "changed_files"


def changed_rows(store: Store) -> RowStore:
    """The records."""
    return store.rows(KIND, {"code": CODE_VERSIONS[KIND]}, STORED_CHANGES)


def record_change(store: Store, change: ChangedFile) -> None:
    """Add a record; raises CvsiError with other advice where the store cannot be written."""
    row = {"key": [uuid.uuid4().hex], "path": [change.path]}
    try:
        changed_rows(store).append(pa.table(row, schema=STORED_CHANGES))
    except OSError as error:
        raise CvsiError(
            f"{change.path}: the file changed since it was indexed, which could not be recorded in "
            f"{store.path} ({error.strerror}); change the file's date (touch) and run dvc repro"
        ) from None


def changes(store: Store) -> pl.DataFrame:
    """How many records each file has: `path`, `changes`."""
    rows = changed_rows(store)
    if not rows.folder.is_dir():
        return pl.DataFrame(schema={"path": pl.String, "changes": pl.UInt32})
    rows.quarantine_corrupt(rows.keys())  # a stage that notices the change once more records it again
    table = pl.DataFrame(rows.get(rows.keys()))
    return table.group_by("path").agg(changes=pl.len())
