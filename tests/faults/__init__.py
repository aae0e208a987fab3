"""Faults: stages killed while they write, full and read-only disks, damaged files, models that are removed.

After each of them a plain rerun has to end with the bytes of a run without faults, or with one line of advice.
`make test-faults` runs all of it and prints the table of docs/reliability.md; a short form is part of `make test`.
"""
