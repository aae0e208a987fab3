"""The line `next: COMMAND` after each command: what to type next, computed from what is on disk now.

It goes to standard error: standard output has the command's result alone, so a pipe, a file and `--json` receive no
word of it, while a terminal shows both. With `--json`, no line is printed, since programs may read both streams as one.
`cvsi serve` has none: it goes on until Ctrl-C, and the line that says where it listens names `cvsi search`.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cvsi.commands.open_report import report_page
from cvsi.core import paths
from cvsi.core.console import encodable, plain
from cvsi.core.params import Params, Run

if TYPE_CHECKING:
    from cvsi.commands.comparison import Comparison
    from cvsi.commands.search import Search
    from cvsi.commands.store import Part
    from cvsi.commands.summary import Summary
    from cvsi.commands.sweep_grid import Sweep

EXAMPLE = ("--text", "a beach")
UNUSED_DAYS = 30
ASK_CHECK = ("active", "runs", "datasets")  # keys after whose change data or models may be missing


class Step(NamedTuple):
    """A command's words, and when or why to type it."""

    words: tuple[str, ...]
    note: str = ""

    @property
    def line(self) -> str:
        """The line that is printed."""
        note = f"    # {self.note}" if self.note else ""
        return f"next: {shlex.join(self.words)}{note}"

    def print(self) -> None:
        """Print the line to standard error, after everything that was printed before."""
        sys.stdout.flush()
        sys.stderr.write(encodable(plain(self.line), sys.stderr) + "\n")
        sys.stderr.flush()


REPRO = Step(("dvc", "repro"))
CHECK = Step(("cvsi", "check"))


def after_version() -> Step:
    """After `cvsi version`, and after a check of the model folders: the preflight."""
    return CHECK


def after_add(run: str) -> list[Step]:
    """After `cvsi add`: what leads to the first search in the new run; without one, nothing was added."""
    if not run:
        return [CHECK]
    return [
        Step(CHECK.words, "what is missing, how much is downloaded, how long it takes"),
        Step((*CHECK.words, "--download"), "fetches the models"),
        REPRO,
        Step(("cvsi", "search", run, *EXAMPLE)),
    ]


def after_presets() -> Step:
    """After the list of presets: one is used."""
    return Step(("cvsi", "add", "FOLDER", "--preset", "NAME"))


def after_show(run: str, settings: Params) -> Step:
    """After `cvsi show`: the run's report, or what makes it."""
    return _open(run, settings.run(run))


def after_open(run: str, settings: Params) -> Step:
    """After `cvsi open`: a search, where the run has vectors."""
    chosen = settings.run(run)
    if any(paths.folder("gallery_vectors", chosen.dataset, chosen.backbone).glob("*.parquet")):
        return Step(("cvsi", "search", run, *EXAMPLE))
    return REPRO


def after_compare(comparison: "Comparison", run: str, settings: Params) -> Step:
    """After `cvsi compare`: the report of a run here that took part; `dvc repro` where outputs are not up to date."""
    return REPRO if any("dvc repro" in line for line in comparison.doubts) else _open(run, settings.run(run))


def after_summary(found: "Summary", settings: Params) -> Step:
    """After `cvsi summary`: what makes missing scores, else a comparison of two runs, or the report of one."""
    if not all(
        (paths.folder("scores", run.dataset, run.backbone) / "metrics.json").exists() for run in _runs(settings)
    ):
        return REPRO
    scored = list(dict.fromkeys(line.run for line in found.runs))
    for place, first in enumerate(scored):
        for second in scored[place + 1 :]:
            if settings.run(first).dataset == settings.run(second).dataset:
                return Step(("cvsi", "compare", first, second))
    if scored:
        return _open(scored[0], settings.run(scored[0]))
    files = [file for listed in found.submissions.values() for file in listed]
    return Step(("cvsi", "check-submission", files[0])) if files else CHECK


def after_times() -> Step:
    """After `cvsi times`: the preflight, which estimates from the same records."""
    return CHECK


def after_store(parts: Iterable["Part"]) -> Step:
    """After `cvsi store`: rows that may be deleted, if any, else the times of the runs that used the store."""
    if any(part.unused(UNUSED_DAYS) for part in parts):
        return Step(("cvsi", "store", "--unused-for", str(UNUSED_DAYS)), "asks before it deletes")
    return Step(("cvsi", "times")) if any(paths.runs_folder().glob("*.json")) else CHECK


def after_deletion(outputs: Iterable[str] = ()) -> Step:
    """After rows were deleted: the stage that makes one of these outputs from new rows, else what is left."""
    for output in outputs:
        dataset, _, stage = output.rpartition("/")
        if stage in ("captions", "edits"):
            return Step(("dvc", "repro", "--force", f"{stage}@{dataset}"), "to make that output from new rows")
    return Step(("cvsi", "store"))


def after_check(missing: int) -> Step:
    """After `cvsi check`: the run, or the check again."""
    return Step(CHECK.words, "when the missing things are there") if missing else REPRO


def after_methods() -> Step:
    """After `cvsi check --methods`: what is missing and what the run computes."""
    return CHECK


def after_set(key: str, lines: Sequence[str]) -> Step:
    """After `cvsi set`: the preflight where nothing changed or where data may be missing now, else the run."""
    unchanged = bool(lines) and lines[-1].endswith("already; nothing changed")
    inputs = key.split(".")[0] in ASK_CHECK and not key.endswith("fusion") and ".fusion." not in key
    return CHECK if unchanged or inputs else REPRO


def after_check_submission() -> Step:
    """After a submission without fault: the metrics of the runs with labels."""
    return Step(("cvsi", "summary"))


def after_pack(folder: Path) -> Step:
    """After `cvsi pack`: how others use the folder."""
    return Step(("cvsi", "unpack", str(folder)), "in another workspace")


def after_unpack() -> Step:
    """After `cvsi unpack`: what is left to be computed."""
    return CHECK


def after_convert_phi(target: str, backbone: str, settings: Params | None) -> Step:
    """After `cvsi convert-phi`: the new file in the backbone's place of params.yaml, where that has one."""
    before = settings.backbone(backbone).phi if settings is not None else None
    if before is None:
        return CHECK
    return REPRO if before == target else Step(("cvsi", "set", f"backbones.{backbone}.phi", target))


def after_sweep(sweep: "Sweep", dataset: str, backbone: str, settings: Params) -> Step:
    """After `cvsi sweep`: the best weights of the first split; the report where those of params.yaml are as good."""
    best, components = sweep.frame.row(0, named=True), sweep.components
    split = sweep.splits.get(best["split"])
    as_good = split is not None and split.noise is not None and split.own is not None and split.noise.within[split.own]
    if as_good or (sweep.own and sweep.own in best["name"].split(", ")):
        runs = [name for name, run in settings.runs.items() if (run.dataset, run.backbone) == (dataset, backbone)]
        return _open(runs[0], settings.run(runs[0])) if runs else CHECK
    from cvsi.commands.sweep_findings import flow

    return Step(
        ("cvsi", "set", f"datasets.{dataset}.fusion", flow(components.form_of(best))), "to report on another split"
    )


def after_search(session: "Search") -> Step:
    """After `cvsi search`: a server that answers at once where none does, else what is like the best result."""
    if not session.served:
        return Step(("cvsi", "serve", session.run), "keeps the models loaded")
    if session.best and plain(session.best) == session.best:
        return Step(("cvsi", "search", session.run, f"--like={session.best}"))
    return _open(session.run, session.params.run(session.run))


def _open(name: str, run: Run) -> Step:
    return Step(("cvsi", "open", name)) if report_page(run).is_file() else REPRO


def _runs(settings: Params) -> list[Run]:
    return list(settings.runs.values())
