"""The report of a run: one HTML page that opens from disk, the table of methods, and their values per query."""
