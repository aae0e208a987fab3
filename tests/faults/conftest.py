"""What the tests of faults share: the local server of answers, and the workspace in which every stage ran once."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Workspace, environment
from tests.faults import workspace as workspaces
from tests.faults.answers import serving
from tests.faults.fork_server import Nursery, nursery
from tests.faults.stage_harness import Stand


@pytest.fixture(scope="session")
def answers() -> Iterator[str]:
    """The address of a server that answers the editor's prompts."""
    with serving() as address:
        yield address


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, worker_id: str, answers: str) -> Workspace:
    """A workspace in which every stage ran once, unharmed; made once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    place, whole = base / "chain", base / "chain.whole"
    with (base / "chain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            workspaces.make(place, answers)
            whole.touch()
    return Workspace(place)


@pytest.fixture(scope="session")
def young(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """An interpreter that forks a stage's process without importing libraries again."""
    with nursery(environment(tmp_path_factory.getbasetemp())) as made:
        yield made


@pytest.fixture
def stand(chain: Workspace, answers: str, tmp_path: Path) -> Callable[[str], Stand]:
    """Gives a stage in its own copy of the chain's workspace."""

    def put(stage: str) -> Stand:
        return Stand(workspaces.copy(chain, tmp_path / "stand", answers), workspaces.CASES[stage])

    return put
