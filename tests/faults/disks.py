"""A folder on a file system of its own that can be full or read-only: a small tmpfs, which root can mount."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
AMPLE = 1 << 30


class Disk:
    """A tmpfs mounted on a folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the mount point."""
        self.folder = folder

    def used(self) -> int:
        """Bytes in use, in whole pages."""
        facts = os.statvfs(self.folder)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    def limit(self, unused: int) -> None:
        """Leave so many bytes unused; on an empty disk one page at least, because a size of 0 is no limit."""
        self._remount(f"rw,size={max(PAGE, self.used() + unused)}")

    def make_read_only(self) -> None:
        """Refuse every write from now on."""
        self._remount("ro")

    def restore(self) -> None:
        """Make it large and writable again."""
        self._remount(f"rw,size={AMPLE}")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Put a folder, with its files, on a disk of its own inside the block; skips the test where mounting fails."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def pages(sizes: list[int]) -> int:
    """How many bytes files of these sizes take on such a disk."""
    return sum(-(-size // PAGE) * PAGE for size in sizes)
