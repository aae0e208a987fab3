"""Rows of expensive results, found by key and recipe: the store itself, its locks, and the jobs that fill it."""
