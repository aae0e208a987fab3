"""Vectors to rankings, rankings to values per query, metrics and submissions, and all of it to the report."""

OWN = "cvsi"  # the name of a dataset's own fusion in tables of methods
