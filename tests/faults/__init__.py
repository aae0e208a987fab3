"""Faults: stages killed while they write, full and read-only disks, damaged files, models that go away.

After each of them a plain rerun has to end in the bytes of a run that met none, or in one line that says what to do.
`make test-faults` runs all of it and prints the table of docs/reliability.md; a short form is part of `make test`.
"""
