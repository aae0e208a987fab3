"""A disk that is full, a limit on a file's size, a folder that is read-only: one line, and a rerun is right."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.faults import killing
from tests.faults.disks import PAGE, disk, pages
from tests.faults.fork_server import Forked
from tests.faults.stage_harness import Stand
from tests.faults.workspace import CASES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
FULL = "No space left on device; make room on that disk, then run it again"
LARGE = "File too large; raise the limit on a file's size"
NOWHERE = "No usable temporary directory"  # without a byte to write, torch cannot even be imported
FROZEN = "Read-only file system; make that folder writable"


def one_line(process: subprocess.Popen[str] | Forked, stage: str) -> str:
    """The single line with which a stage ended that could not go on."""
    out, err = process.communicate()
    assert process.returncode == 1, f"exit {process.returncode}: {out} {err}"
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{stage}") and "Traceback" not in err, err
    return lines[0]


def recovered(stand: Stand) -> None:
    """A plain run ends in the right bytes, and says nothing of what was."""
    stand.again()
    assert stand.differences() == []


@pytest.mark.parametrize("stage", CASES)
def test_a_file_that_may_not_grow(stand: Callable[[str], Stand], stage: str) -> None:
    put = stand(stage)
    put.alone()
    largest = max(map(len, put.wanted.values()))
    random = Random(killing.seed())
    for limit in (0, random.randrange(largest)):
        put.clear()

        def small(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        line = one_line(put.start(small), stage)
        assert (LARGE in line and ("cache/" in line or "data/" in line)) or (limit == 0 and NOWHERE in line), line
        assert not put.written() and not put.partial.exists()
        recovered(put)


@pytest.mark.parametrize("stage", CASES)
def test_a_full_disk(stand: Callable[[str], Stand], stage: str) -> None:
    put = stand(stage)
    put.alone()
    files = [len(data) for data in put.wanted.values()]
    files += [file.stat().st_size for kind in put.case.kinds for file in (put.store / kind).rglob("*.parquet")]
    random = Random(killing.seed())
    with disk(put.workspace.path / put.case.output.split("/")[0]) as small:
        for room in (0, random.randrange(max(1, pages(files) // PAGE - 1)) * PAGE):
            put.clear()
            small.leave(room)
            line = one_line(put.start(), stage)
            assert FULL in line and ("cache/" in line or "data/" in line), line
            assert not put.written() and not put.partial.exists()
            small.mend()
            recovered(put)


@pytest.mark.parametrize("stage", CASES)
def test_a_read_only_folder(stand: Callable[[str], Stand], stage: str) -> None:
    put = stand(stage)
    put.alone()
    with disk(put.workspace.path / put.case.output.split("/")[0]) as small:
        put.clear()
        small.freeze()
        line = one_line(put.start(), stage)
        assert FROZEN in line and ("cache/" in line or "data/" in line), line
        small.mend()
        recovered(put)


@pytest.mark.parametrize("stage", [case.stage for case in CASES.values() if case.kinds])
def test_a_read_only_store_that_has_every_row_is_enough(stand: Callable[[str], Stand], stage: str) -> None:
    put = stand(stage)
    put.rows = put.stored()
    with disk(put.store) as small:
        shutil.rmtree(put.output)
        small.freeze()
        recovered(put)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user(stand: Callable[[str], Stand], tmp_path: Path) -> None:
    put = stand("scores")
    for place in (tmp_path, *tmp_path.parents[:3]):  # pytest keeps others out of its folders
        place.chmod(place.stat().st_mode | 0o011)
    put.clear()

    def nobody() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    try:
        process = put.start(nobody)
    except PermissionError as error:
        pytest.skip(f"another user cannot run this interpreter: {error}")
    line = one_line(process, "scores")
    assert "Permission denied; make it readable and its folder writable for you" in line and "cache/" in line, line
    recovered(put)
