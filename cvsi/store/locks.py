"""A store's lock: shared by all who read or write its rows, alone for who removes some.

The kernel lets go of a lock when its process ends, however it ends. Nothing but the standard library is loaded here.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

NAME = ".lock"


def share(store: Path) -> None:
    """Keep everybody from removing rows of a store until this process ends; waits for who is removing some now."""
    _share(store.resolve())


@cache
def _share(store: Path) -> None:
    handle = _open(store)
    if handle is not None:
        fcntl.flock(handle, fcntl.LOCK_SH)


@contextmanager
def alone(store: Path) -> Iterator[bool]:
    """Hold a store alone inside; gives False, and holds nothing, while anybody else is at work in it."""
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


def note_use(place: Path) -> None:
    """Give a folder of a store the time of now, which its upkeep takes for the last use; nothing in one only read."""
    if os.access(place, os.W_OK):
        os.utime(place)


def _open(store: Path) -> int | None:
    """The lock's file, made where it is missing; None where this user can neither make nor open it.

    From such a store this user can remove nothing, and adds nothing that another could remove.
    """
    path = store / NAME
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return os.open(path, os.O_RDONLY) if os.access(path, os.R_OK) else None
