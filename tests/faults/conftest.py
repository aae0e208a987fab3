"""Fixtures of the fault tests: the local model server, and the workspace in which every stage ran once."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Workspace, environment
from tests.faults import workspace as workspaces
from tests.faults.answers import serve
from tests.faults.fork_server import ForkServer, start_fork_server
from tests.faults.stage_harness import StageHarness


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    """The address of a server that answers the editor's prompts."""
    with serve() as address:
        yield address


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory, worker_id: str, model_server: str) -> Workspace:
    """A workspace in which every stage ran once, without faults; made once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    path, marker = base / "complete", base / "complete.done"
    with (base / "complete.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists():
            workspaces.make(path, model_server)
            marker.touch()
    return Workspace(path)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """An interpreter that forks a stage's process without importing libraries again."""
    with start_fork_server(environment(tmp_path_factory.getbasetemp())) as server:
        yield server


@pytest.fixture
def harness_of(
    complete: Workspace, model_server: str, fork_server: ForkServer, tmp_path: Path
) -> Callable[[str], StageHarness]:
    """A function from a stage's name to a harness, in its own copy of the complete workspace."""

    def make(stage: str) -> StageHarness:
        workspace = workspaces.copy(complete, tmp_path / "copy", model_server)
        return StageHarness(workspace, workspaces.CASES[stage], fork_server)

    return make
