"""Rows of expensive results, found by key and recipe: the store, its locks, and the jobs that compute missing rows."""
