"""A disk that is full, a limit on a file's size, a folder that is read-only: one line, and a rerun is correct."""

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.faults import killing
from tests.faults.disks import PAGE, pages, small_disk
from tests.faults.stage_harness import StageHarness
from tests.faults.workspace import CASES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
FULL = "No space left on device; make room on that disk, then run it again"
LARGE = "File too large; raise the limit on a file's size"
NO_TEMPORARY = "No usable temporary directory"  # without a byte to write, torch cannot even be imported
READ_ONLY = "Read-only file system; make that folder writable"
DENIED = "Permission denied; make it readable and its folder writable for you"
LIBC = ctypes.CDLL(None, use_errno=True)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 24, 1, 2, 3  # of linux/prctl.h, capability.h


def check_rerun(harness: StageHarness) -> None:
    """A plain run ends in the expected bytes."""
    harness.rerun()
    assert harness.differences() == []


@pytest.mark.parametrize("stage", CASES)
def test_a_limit_on_the_size_of_a_file(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness = harness_of(stage)
    harness.keep_own_rows()
    largest = max(map(len, harness.expected.values()))
    random = Random(killing.seed())
    for limit in (0, random.randrange(largest)):
        harness.clear()

        def set_limit(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        line = harness.error(set_limit)
        named = LARGE in line and ("cache/" in line or "data/" in line)
        assert named or (limit == 0 and NO_TEMPORARY in line), line
        assert not harness.is_complete() and not harness.partial.exists()
        check_rerun(harness)


@pytest.mark.parametrize("stage", CASES)
def test_a_full_disk(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness = harness_of(stage)
    harness.keep_own_rows()
    files = [len(data) for data in harness.expected.values()]
    files += [file.stat().st_size for kind in harness.case.kinds for file in (harness.store / kind).rglob("*.parquet")]
    random = Random(killing.seed())
    with small_disk(harness.workspace.path / harness.case.output.split("/")[0]) as disk:
        for unused in (0, random.randrange(max(1, pages(files) // PAGE - 1)) * PAGE):
            harness.clear()
            disk.limit(unused)
            line = harness.error()
            assert FULL in line and ("cache/" in line or "data/" in line), line
            assert not harness.is_complete() and not harness.partial.exists()
            disk.restore()
            check_rerun(harness)


@pytest.mark.parametrize("stage", CASES)
def test_a_read_only_folder(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness = harness_of(stage)
    harness.keep_own_rows()
    with small_disk(harness.workspace.path / harness.case.output.split("/")[0]) as disk:
        harness.clear()
        disk.make_read_only()
        line = harness.error()
        assert READ_ONLY in line and ("cache/" in line or "data/" in line), line
        disk.restore()
        check_rerun(harness)


@pytest.mark.parametrize("stage", [case.stage for case in CASES.values() if case.kinds])
def test_a_read_only_store_with_every_row_is_enough(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness = harness_of(stage)
    harness.rerun()  # the files of a copied workspace have other inodes, so their facts are read once more
    harness.expected_rows = harness.stored_rows()
    with small_disk(harness.store) as disk:
        shutil.rmtree(harness.output)
        disk.make_read_only()
        check_rerun(harness)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
@pytest.mark.parametrize("stage", ["captions", "scores"])
def test_a_folder_of_another_user(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness = harness_of(stage)
    cache = harness.workspace.path / "cache"
    harness.clear()
    give(cache, 65534)
    line = harness.error(drop_override)
    assert DENIED in line and "cache/" in line, line
    give(cache, os.geteuid())
    check_rerun(harness)


def give(folder: Path, user: int) -> None:
    """Make a user the owner of everything in a folder; others may read it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1)
        path.chmod(0o755 if path.is_dir() else 0o644)


def drop_override() -> None:
    """Take from root, from its next program on, the right to use files of others like its own."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
        assert LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
