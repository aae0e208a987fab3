"""The last run's kills as the table of docs/reliability.md: `python -m tests.faults.table`."""

import json
import statistics
import sys
from typing import Any

from tests.faults.killing import RESULTS
from tests.faults.workspace import IN_ORDER

HEAD = (
    "stage", "kills", "in the store's files, the output", "seconds after the first byte", "tried again",
    "rows kept", "files compared", "wrong",
)  # fmt: skip


def row(counts: dict[str, Any]) -> tuple[str, ...]:
    """A stage's line: how many kills hit which part, when (first, last, median), and what was compared."""
    kills = counts["kills"]
    parts = [sum(kill["part"] == part for kill in kills) for part in ("store", "output")]
    after = [kill["after"] for kill in kills]
    kept = [kill["kept"] for kill in kills]
    return (
        counts["stage"],
        str(len(kills)),
        ", ".join(map(str, parts)),
        f"{min(after):.3f} to {max(after):.3f}, median {statistics.median(after):.3f}",
        str(counts["late"]),
        f"{min(kept)} to {max(kept)} of {counts['rows']}" if counts["rows"] else "none stored",
        str(len(kills) * counts["files"]),
        str(sum(bool(kill["differences"]) for kill in kills)),
    )


def main() -> None:
    """Print the table of all stages that have results, and its sums."""
    paths = [RESULTS / f"{case.stage}.json" for case in IN_ORDER]
    stages = [json.loads(path.read_text()) for path in paths if path.exists()]
    rows = [row(counts) for counts in stages]
    sums = [sum(int(cells[column]) for cells in rows) for column in (1, 4, 6, 7)]
    rows.append(("all", str(sums[0]), "", "", str(sums[1]), "", str(sums[2]), str(sums[3])))
    for cells in (HEAD, ("---",) * len(HEAD), *rows):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
    seeds = ", ".join(f"{counts['stage']} {counts['seed']}" for counts in stages)
    sys.stdout.write(f"\nSeeds (CVSI_FAULTS_SEED): {seeds}\n")


if __name__ == "__main__":
    main()
