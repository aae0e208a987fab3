"""Every stage killed at many random instants while it writes; each time a plain rerun ends in the same bytes.

CVSI_KILLS is the number a stage, CVSI_FAULTS_SEED repeats a run's instants.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Workspace
from tests.faults import killing
from tests.faults.fork_server import Nursery
from tests.faults.stage_harness import Stand
from tests.faults.workspace import CASES, copy

KILLS = int(os.environ.get("CVSI_KILLS") or 26)
LONGEST_FIRST = (
    "captions", "gallery_vectors", "edits", "query_vectors", "world", "report", "scores", "index",
)  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stage", LONGEST_FIRST)
def test_killed_at_random_instants_and_run_again_is_byte_identical(
    stand: Callable[[str], Stand], young: Nursery, stage: str
) -> None:
    tally = killing.many(stand(stage), KILLS, killing.seed(), young)
    assert not tally.failures, f"seed {tally.seed}: {tally.failures}"


def test_all_stages_are_killed() -> None:
    assert set(LONGEST_FIRST) == set(CASES)


# The short form, in `make test`. tests/project/test_pipeline.py kills captions, edits and vectors, with real models.
@pytest.mark.xdist_group("project")
@pytest.mark.parametrize("stage", ["world", "index", "scores", "report"])
def test_killed_once_and_run_again_is_byte_identical(project: Workspace, tmp_path: Path, stage: str) -> None:
    tally = killing.many(Stand(copy(project, tmp_path / "stand"), CASES[stage]), 1, killing.seed())
    assert not tally.failures, f"seed {tally.seed}: {tally.failures}"
