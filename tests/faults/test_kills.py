"""Every stage killed at many random instants while it writes; each time a plain rerun ends in the same bytes.

CVSI_KILLS is the number of kills per stage, CVSI_FAULTS_SEED repeats a run's instants.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Workspace, environment
from tests.faults import killing
from tests.faults.fork_server import ForkServer, start_fork_server
from tests.faults.stage_harness import StageHarness
from tests.faults.workspace import CASES, copy

KILLS = int(os.environ.get("CVSI_KILLS") or 26)
LONGEST_FIRST = (
    "captions", "gallery_vectors", "edits", "query_vectors", "world", "report", "scores", "index",
)  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stage", LONGEST_FIRST)
def test_killed_at_random_instants_and_run_again_is_byte_identical(
    harness_of: Callable[[str], StageHarness], stage: str
) -> None:
    counts = killing.kill_repeatedly(harness_of(stage), KILLS, killing.seed())
    assert not counts.failures, f"seed {counts.seed}: {counts.failures}"


def test_all_stages_are_killed() -> None:
    assert set(LONGEST_FIRST) == set(CASES)


# The short form, in `make test`, by an interpreter that imports only what these four stages need.
# tests/project/test_pipeline.py kills captions, edits and vectors, with real models.
SHORT = ("world", "index", "scores", "report")
LIBRARIES = ("torch", "polars", "pyarrow.parquet", "PIL.Image", "pydantic", "yaml", "typer", "jinja2")


@pytest.fixture(scope="module")
def small_fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A fork server for the short form."""
    with start_fork_server(environment(tmp_path_factory.getbasetemp()), LIBRARIES) as server:
        yield server


@pytest.fixture(scope="module")
def project_copy(project: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the shared project, of which each test breaks and repairs one stage."""
    return copy(project, tmp_path_factory.mktemp("kills") / "copy")


@pytest.mark.xdist_group("project")
@pytest.mark.parametrize("stage", SHORT)
def test_killed_once_and_run_again_is_byte_identical(
    project_copy: Workspace, small_fork_server: ForkServer, stage: str
) -> None:
    harness = StageHarness(project_copy, CASES[stage], small_fork_server)
    counts = killing.kill_repeatedly(harness, 1, killing.seed(), plain_every=0)
    assert not counts.failures, f"seed {counts.seed}: {counts.failures}"
