"""Everything the earlier stages made to one HTML page that opens from disk, and the table of weightings."""
