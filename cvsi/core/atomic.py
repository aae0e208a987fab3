"""Files and folders that appear complete or not at all: written beside their final path, flushed, then renamed.

Only the standard library is imported, so that a stage with nothing to do ends at once.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush(path: Path) -> None:
    """Write a file's or folder's bytes to the disk, so that a rename never names something incomplete."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Write a folder beside its final path; it replaces `target`, flushed, when the block ends without an error."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _with_filename(target):
            yield partial
            for path in partial.rglob("*"):
                flush(path)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write a file at; it is renamed to `target`, flushed, when the block ends without an error.

    The folder of `target` must exist.
    """
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}.partial")
    try:
        with _with_filename(target):
            yield partial
            flush(partial)
            partial.replace(target)
            flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _with_filename(target: Path) -> Iterator[None]:
    """Add the file's name to an error of the system: a failed write does not contain one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(target)
        raise
