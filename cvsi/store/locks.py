"""A store's lock: shared by every process that reads or writes its rows, exclusive for the clean-up.

The kernel releases a lock when its process ends, however it ends. Only the standard library is imported here.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

NAME = ".lock"


def shared_lock(store: Path) -> None:
    """Hold a shared lock on a store until this process exits; waits while a clean-up runs."""
    _shared_lock(store.resolve())


@cache
def _shared_lock(store: Path) -> None:
    handle = _open(store)
    if handle is not None:
        fcntl.flock(handle, fcntl.LOCK_SH)


@contextmanager
def exclusive_lock(store: Path) -> Iterator[bool]:
    """Hold a store's exclusive lock inside; yields False, and holds nothing, while any other process uses the store."""
    handle = _open(store)
    if handle is None:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)


def touch(folder: Path) -> None:
    """Set a folder's modification time to now, which the clean-up reads as the last use; skips a read-only one."""
    if os.access(folder, os.W_OK):
        os.utime(folder)


def _open(store: Path) -> int | None:
    """The lock's file, created where it is missing; None where this user can neither create nor open it.

    This user can then remove nothing from the store, and adds nothing that another process could remove.
    """
    path = store / NAME
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return os.open(path, os.O_RDONLY) if os.access(path, os.R_OK) else None
