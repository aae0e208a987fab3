"""Runs a stage script: its arguments, its errors as one line, a quick and clean end on Ctrl-C and SIGTERM."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import typer

from cvsi.core import run_log
from cvsi.core.console import set_prefix, tolerate_encoding, warn
from cvsi.core.errors import CvsiError
from cvsi.core.paths import runs_folder

ADVICE = {
    errno.ENOSPC: "make room on that disk, then run it again; finished blocks are kept",
    errno.EDQUOT: "make room within the quota, then run it again; finished blocks are kept",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), then run it again; finished blocks are kept",
    errno.EROFS: "make that folder writable, or name another store in params.yaml",
    errno.EACCES: "make it readable and its folder writable for you, then run it again",
    errno.EPERM: "make it readable and its folder writable for you, then run it again",
}

BEGAN = time.time()  # before the script imports what takes seconds, so that its time is seen too


class Stopped(BaseException):
    """SIGINT or SIGTERM came; nothing but the runner catches it."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        self.number = number


def run(stage: Callable[..., None]) -> None:
    """Run a stage from the command line and exit: 0, 1 on an error (one line), 128 + n on signal n."""
    tolerate_encoding()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @wraps(stage)
    def guarded(**arguments: Any) -> None:
        _guard(stage, [str(value) for value in arguments.values()], lambda: stage(**arguments))

    app.command()(guarded)
    app()


def _guard(stage: Callable[..., None], arguments: list[str], work: Callable[[], None]) -> None:
    name, began = stage.__name__, BEGAN
    set_prefix(" ".join([name, *arguments]))
    try:
        _on_signals(_stop)
        work()
    except CvsiError as error:
        _end(name, arguments, began, 1, str(error))
    except OSError as error:
        _end(name, arguments, began, 1, _explained(error))
    except (Stopped, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        _end(name, arguments, began, 128 + number, _stopped(number))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        _end(name, arguments, began, 1, f"a bug, please report it {_kept(name)}: {reason}")
    failure = _record(name, arguments, began, "done")
    if failure:
        warn(f"done, but {failure}")


def _end(name: str, arguments: list[str], began: float, code: int, line: str) -> NoReturn:
    """Print the line and exit at once: threads of engines must not delay the end."""
    failure = _record(name, arguments, began, line)
    warn(f"{line} ({failure})" if failure else line)
    sys.stdout.flush()
    os._exit(code)


def _record(name: str, arguments: list[str], began: float, outcome: str) -> str:
    """Write the run's record; returns why it could not be written (a full disk that ends a stage prevents it too)."""
    try:
        run_log.save(name, arguments, began, outcome)
    except OSError as error:
        return f"no record of this run: {error.strerror or error}"
    return ""


def _kept(name: str) -> str:
    """Write the traceback of a bug beside the records; returns words with its path."""
    details = runs_folder() / f"{name}-{os.getpid()}.traceback.txt"
    try:
        details.parent.mkdir(parents=True, exist_ok=True)
        details.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f"(its traceback could not be written: {error.strerror or error})"
    return f"with {details}"


def _explained(error: OSError) -> str:
    """The file, the error of the system, and advice where there is any."""
    line = f"{error.filename or 'input or output'}: {error.strerror or error}"
    return f"{line}; {ADVICE[error.errno]}" if error.errno in ADVICE else line


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _leave(number: int, frame: FrameType | None) -> None:
    warn(_stopped(number))
    os._exit(128 + number)


def _stopped(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; finished blocks are kept, run it again to go on"


def _unready(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An error of the system while the script imports its libraries, in one line; a bug there keeps its traceback."""
    if not isinstance(error, OSError):
        sys.__excepthook__(kind, error, trace)
        return
    set_prefix(" ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]))
    warn(f"{_explained(error)}; libraries could not be loaded: look at the disk, at ulimit -f and at TMPDIR")


def _own_code(workspace: Path) -> None:
    """Restart with the package beside the scripts, where Python imported another one.

    DVC runs experiments in copies of the workspace with their own code and prompts, and several clones may share one
    environment; without this, both would run the code of the environment's own clone.
    """
    own, before = workspace / "cvsi" / "core" / Path(__file__).name, os.environ.get("PYTHONPATH", "")
    if own.is_file() and not own.samefile(__file__) and before.split(os.pathsep)[0] != str(workspace):
        path = os.pathsep.join(filter(None, [str(workspace), before]))
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONPATH": path})


# Now, before what a script imports next.
_own_code(Path(sys.argv[0]).resolve().parent.parent)

# From here on, since what a script imports next may take seconds; nothing is at work yet that would need an end.
_on_signals(_leave)
sys.excepthook = _unready
