"""A dataset's folder to the index: one file per format, with its reader, metrics and submissions."""
