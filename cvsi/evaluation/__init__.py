"""Vectors to rankings, rankings to metrics and submissions, and all of it to the report."""
