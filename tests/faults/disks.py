"""A folder on a disk of its own, that can be full or read-only: a small tmpfs in memory, which root can mount."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
ROOMY = 1 << 30


class Disk:
    """A tmpfs over a folder."""

    def __init__(self, place: Path) -> None:
        """`place` is mounted."""
        self.place = place

    def used(self) -> int:
        """Bytes in use, in whole pages."""
        facts = os.statvfs(self.place)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    def leave(self, room: int) -> None:
        """Leave so many bytes of room; of an empty disk a page at least, since a size of 0 is no limit."""
        self._again(f"rw,size={max(PAGE, self.used() + room)}")

    def freeze(self) -> None:
        """Make it read-only."""
        self._again("ro")

    def mend(self) -> None:
        """Make it roomy and writable again."""
        self._again(f"rw,size={ROOMY}")

    def _again(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True, capture_output=True)


@contextmanager
def disk(place: Path) -> Iterator[Disk]:
    """Put a folder, with what is in it, on a disk of its own while the block lasts; skips where none can be had."""
    aside = place.with_name(f"{place.name}.aside")
    place.rename(aside)
    place.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", place], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {tried.stderr.strip()}")
    try:
        shutil.copytree(aside, place, dirs_exist_ok=True)
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def pages(sizes: list[int]) -> int:
    """How many bytes files of these sizes take on such a disk."""
    return sum(-(-size // PAGE) * PAGE for size in sizes)
