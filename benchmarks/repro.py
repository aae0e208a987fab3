"""`dvc repro` with nothing to do, on a data set of 123,403 images: how much of its time is this project's and DVC's.

A scratch project gets a folder of CIRCO's size and layout, made of hard links to a few tiny pictures, and one real
`dvc repro` of everything with the demo's models, so that every output exists and is recorded. Then `dvc repro` is timed
as a whole process. The floor is the same command over the same graph, files and outputs with `true` in place of every
stage's command. One stage that does nothing, in a repository of its own, shows the least time that DVC takes.
"""

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks import measure, worlds
from benchmarks.measure import FLOOR, OURS

IMAGES, VAL, TEST = 123_403, 220, 800
PICTURES = 8  # distinct ones
EMPTY, INDEX = "one empty stage", "index alone"
COPIED = ("stages", "cvsi", "demo", "dvc.yaml", ".gitignore", ".dvcignore")
DVC = (sys.executable, "-m", "dvc")


def environment(folder: Path) -> dict[str, str]:
    """Variables by which a stage's `python` is this one, with the folder's own code."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder), "COLUMNS": "200"}


def dvc(folder: Path, *arguments: str) -> measure.Ended:
    """Run DVC in a folder."""
    return measure.process([*DVC, *arguments], folder, **environment(folder))


def repository(folder: Path) -> None:
    """Make a folder a repository of git and DVC."""
    measure.process(["git", "init", "-q"], folder)
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")


def project(folder: Path, images: int) -> str:
    """A project whose active data set has that many images, after one `dvc repro` of everything; what that printed."""
    for name in COPIED:
        source = worlds.ROOT / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    worlds.circo(folder / "data" / "CIRCO", images, VAL, TEST, distinct=PICTURES)
    content = yaml.safe_load((worlds.ROOT / "params.yaml").read_text(encoding="utf-8"))
    sizes = {"images": images, "val": VAL, "test": TEST}
    content["datasets"]["circo"] = content["datasets"]["demo"] | {"root": "data/CIRCO", "sizes": sizes}
    content |= {"active": ["circo"], "runs": {"circo-tiny": {"dataset": "circo", "backbone": "tiny"}}}
    content["world"] = {"seed": 1, "gallery": 40, "val": 2, "test": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    repository(folder)
    return dvc(folder, "repro").output


def hollow(source: Path, folder: Path) -> None:
    """The same graph over copies of the same files, each stage's command `true`, everything recorded."""
    for name in (*COPIED, "cache", "data/demo", "params.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            ignore = shutil.ignore_patterns("store") if name == "cache" else None
            shutil.copytree(source / name, folder / name, ignore=ignore)
        else:
            shutil.copy(source / name, folder / name)
    content = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    content["stages"] = without_commands(content["stages"])
    (folder / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    repository(folder)
    dvc(folder, "commit", "-f", "-q")


def without_commands(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of a dvc.yaml with `true` for every command; DVC must keep the outputs, since nothing writes them."""
    hollowed: dict[str, Any] = copy.deepcopy(dict(stages))
    for entry in hollowed.values():
        stage = entry.get("do", entry)
        stage["cmd"] = "true"
        if stage.get("always_changed"):
            stage["outs"] = [{output: {"persist": True}} for output in stage["outs"]]
    return hollowed


def empty(folder: Path) -> None:
    """A repository with one stage, whose command is `true`, after one `dvc repro`."""
    folder.mkdir()
    (folder / "input.txt").write_text("without an input it would always run\n", encoding="utf-8")
    stages = {"nothing": {"cmd": "true", "deps": ["input.txt"]}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    repository(folder)
    dvc(folder, "repro")


def nothing_ran(output: str) -> None:
    """Raise RuntimeError where `dvc repro` ran a stage that does not always run."""
    ran = [
        line for line in output.splitlines() if line.startswith("Running stage") and line.split("'")[1][:6] != "index@"
    ]
    if ran:
        raise RuntimeError(f"dvc repro had something to do: {'; '.join(ran)}")


def main(
    images: Annotated[int, typer.Option(min=PICTURES, help="How many images the data set has.")] = IMAGES,
    repeats: Annotated[int, typer.Option(min=1, help="How many turns count.")] = measure.REPEATS,
) -> None:
    """Time `dvc repro` when nothing changed, against DVC alone."""
    outputs: dict[str, str] = {}
    peak: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours, floor, least = (Path(scratch) / name for name in ("project", "hollow", "empty"))
        first = project(ours, images)
        hollow(ours, floor)
        empty(least)

        def timed(name: str, folder: Path, *command: str) -> Callable[[], float]:
            def work() -> float:
                ended = measure.process(command or [*DVC, "repro"], folder, **environment(folder))
                nothing_ran(ended.output)
                outputs[name], peak[name] = ended.output, max(ended.peak, peak.get(name, 0))
                return ended.seconds

            return work

        index = (sys.executable, "stages/index.py", "circo")
        variants: dict[str, measure.Work] = {
            OURS: timed(OURS, ours), FLOOR: timed(FLOOR, floor), EMPTY: timed(EMPTY, least),
            INDEX: timed(INDEX, ours, *index),
        }  # fmt: skip
        seconds = measure.in_turn(variants, repeats)
    work = (
        f"dvc repro, {images:,} images active (hard links to {PICTURES} pictures), all stages up to date; "
        "the floor has the command true in every stage of the same graph"
    )
    case = measure.Case("nothing to do", seconds, work, peak, at_most_more={(OURS, FLOOR): 3, (OURS, EMPTY): 3})
    measure.publish("repro", [case], index=_lines(outputs[INDEX]), first=_lines(first))
    measure.say(*_lines(outputs[INDEX]))


def _lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("index ")]


if __name__ == "__main__":
    measure.run(main)
