"""The last run's kills as the table of docs/reliability.md: `python -m tests.faults.table`."""

import json
import statistics
import sys
from typing import Any

from tests.faults.killing import RESULTS
from tests.faults.workspace import IN_ORDER

HEAD = (
    "stage", "kills", "in the store's files, the output, the memo", "seconds after the first byte", "tried again",
    "rows kept", "files compared", "wrong",
)  # fmt: skip


def row(tally: dict[str, Any]) -> tuple[str, ...]:
    """A stage's line: how many kills hit which part, when (first, median, last), and what was compared."""
    kills = tally["kills"]
    parts = [sum(kill["part"] == part for kill in kills) for part in ("store", "output", "memo")]
    after = [kill["after"] for kill in kills]
    kept = [kill["kept"] for kill in kills]
    rows = f"{min(kept)} to {max(kept)} of {tally['rows']}" if tally["rows"] else "none stored"
    return (
        tally["stage"],
        str(len(kills)),
        ", ".join(map(str, parts)),
        f"{min(after):.3f} to {max(after):.3f}, median {statistics.median(after):.3f}",
        str(tally["late"]),
        rows,
        str(len(kills) * tally["files"]),
        str(sum(bool(kill["differences"]) for kill in kills)),
    )


def main() -> None:
    """Print the table of all stages that have results, and its sums."""
    found = [RESULTS / f"{case.stage}.json" for case in IN_ORDER]
    tallies = [json.loads(path.read_text()) for path in found if path.exists()]
    rows = [row(tally) for tally in tallies]
    sums = [sum(int(cells[at]) for cells in rows) for at in (1, 4, 6, 7)]
    rows.append(("all", str(sums[0]), "", "", str(sums[1]), "", str(sums[2]), str(sums[3])))
    for cells in (HEAD, ("---",) * len(HEAD), *rows):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
    seeds = ", ".join(f"{tally['stage']} {tally['seed']}" for tally in tallies)
    sys.stdout.write(f"\nSeeds (CVSI_FAULTS_SEED): {seeds}\n")


if __name__ == "__main__":
    main()
