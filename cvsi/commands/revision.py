"""A run of an earlier state to a folder like `cache/` with the files that a comparison reads; no checkout, no clone.

A state is a git revision or a DVC experiment. Its `dvc.lock` has the digest of every output folder; DVC's cache has the
folder's list of files, and the files, by their digests. The digests are checked, and the files linked, not copied.
"""

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cvsi.core import paths, provenance
from cvsi.core.console import count, plain
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import PATH
from cvsi.datasets.roots import dvc_cache_files

LOCK = "dvc.lock"
RECIPE = "provenance.json"
NEEDED = {"index": ("images.parquet", "queries.parquet"), "scores": ("metrics.json",), "rerank": ("metrics.json",)}
OPTIONAL = {
    "scores": ("per_query.parquet",),
    "rerank": ("per_query.parquet",),
}  # that earlier versions did not write; so is every recipe
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # as in params.yaml; a name becomes part of a path here
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
# Safe loaders both; the slower one takes seconds for a lock of many runs, which has thousands of lines.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class State:
    """A commit, by the name that the user gave; `experiment` where that is one of DVC's experiments."""

    name: str
    commit: str
    experiment: bool = False

    def __str__(self) -> str:
        """The name, with the commit's first digits where they are not the name."""
        return self.name if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:7]})"


@dataclass(frozen=True)
class PastRun:
    """A run as a state's `params.yaml` defines it, and the folder that is like the state's `cache/`."""

    run: str
    dataset: str
    backbone: str
    cache: Path
    state: State

    @property
    def label(self) -> str:
        """The run's name and the state's."""
        return f"{self.run} at {self.state}"


@dataclass
class _Files:
    """The files found in DVC's cache by their paths, and the paths of those that it lacks."""

    state: State
    found: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, output: str, digest: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
        """Look up files of one output folder; raises CvsiError where the folder never had a needed one."""
        tree = _object(digest)
        listed = _listed(tree, f"{self.state}: {output}") if tree else dict.fromkeys(needed + optional)
        self.add_listed(output, listed, needed, optional)

    def add_listed(
        self, output: str, listed: Mapping[str, str | None], needed: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        """Look up files of a folder whose files' digests are known by name (None: the list itself is missing)."""
        for name in needed:
            if name not in listed:
                raise CvsiError(f"{self.state}: {output} has no {name}; run the stage there again (dvc repro)")
        for name in (*needed, *optional):
            if name not in listed:
                continue
            path, md5 = f"{output}/{name}", listed[name]
            if file := _object(md5) if md5 else None:
                self.found[path] = file
            else:
                self.missing.append(path)


@contextmanager
def run_at(revision: str, run: str) -> Iterator[PastRun]:
    """A run, or a rerank as RUN:RERANK, at a revision or experiment; its files are there within the context.

    Raises CvsiError, in one line, where there is no git repository, no such state, no such run or stage in it, and
    where DVC's cache lacks a file or has a damaged one.
    """
    state = resolve(revision)
    dataset, backbone = _defined(state, *run.partition(":")[::2])
    files = _files(state, run, dataset, backbone)
    with _linked(files) as folder:
        try:
            yield PastRun(run, dataset, backbone, folder / paths.CACHE, state)
        except CvsiError as error:  # a message that names a file names the state's, not the link
            raise CvsiError(str(error).replace(f"{folder}/", f"{state}: ")) from None


@contextmanager
def _linked(files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder with links to files, by path."""
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvsi-")))
            for path, file in files.items():
                link = folder / path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())
        except OSError as error:
            raise CvsiError(
                f"no temporary folder could be made ({cause(error)}); set TMPDIR to one with space"
            ) from None
        yield folder


def resolve(revision: str) -> State:
    """The commit of a revision of git or of a DVC experiment; raises CvsiError where there is none or more than one."""
    known = _git("rev-parse", "--git-dir")
    if known.returncode:
        raise CvsiError(f"--rev {plain(revision)}: no git repository here ({cause(RuntimeError(known.stderr))})")
    unusable = not revision.strip() or revision.startswith("-") or "\0" in revision
    commit = "" if unusable else _commit(revision)
    if commit:
        return State(revision, commit)
    found = {} if unusable else _experiments(revision)
    head = _commit("HEAD")
    if len(found) > 1 and head in found:  # as DVC does: the experiment of the current commit comes first
        found = {head: found[head]}
    if len(found) > 1:
        commits = ", ".join(commit[:7] for commit in found.values())
        raise CvsiError(f"--rev {revision}: {len(found)} experiments have this name; give a commit: {commits}")
    if not found:
        raise CvsiError(
            f"--rev {plain(revision)}: no such commit, tag, branch or experiment, or too few digits; "
            "git log --oneline and dvc exp list --all-commits list them"
        )
    return State(revision, next(iter(found.values())), experiment=True)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise CvsiError(f"git: {cause(error)}; --rev needs git") from None


def _commit(revision: str) -> str:
    """The commit of a revision, or nothing."""
    done = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return done.stdout.strip() if not done.returncode else ""


def _experiments(name: str) -> dict[str, str]:
    """`{commit it started from: its own}` of the experiments of a name, from DVC's refs `refs/exps/AB/CDEF.../NAME`."""
    found = {}
    for line in _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/").stdout.splitlines():
        commit, _, ref = line.partition(" ")
        parts = ref.split("/")
        if len(parts) == 5 and parts[-1] == name and len(parts[2]) == 2:
            found[parts[2] + parts[3]] = commit
    return found


def _document(state: State, name: str) -> Mapping[str, Any]:
    """A YAML file of the project's folder at a state."""
    done = _git("show", f"{state.commit}:./{name}")
    if done.returncode:
        raise CvsiError(f"{state}: no {name} there; a state to compare with has it under git")
    try:
        content = LOADER(done.stdout).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise CvsiError(f"{state}: {name} is not YAML ({cause(error)})") from None
    if not isinstance(content, dict):
        raise CvsiError(f"{state}: {name} has no keys")
    return content


def _defined(state: State, run: str, rerank: str = "") -> tuple[str, str]:
    """Dataset and backbone of a run at a state; not by today's model of params.yaml, which may not fit an older one.

    Raises CvsiError where the state has no such run, or no such rerank of it.
    """
    document = _document(state, str(PATH))
    runs, reranks = (part if isinstance(part := document.get(key), dict) else {} for key in ("runs", "reranks"))
    if run not in runs:
        raise CvsiError(f"{state}: no run '{run}' in its {PATH}; there are: {', '.join(map(str, runs)) or 'none'}")
    entry = runs[run] if isinstance(runs[run], dict) else {}
    if rerank and (not isinstance(reranks.get(rerank), dict) or reranks[rerank].get("run") != entry):
        raise CvsiError(f"{state}: no rerank '{rerank}' of {run} in its {PATH}")
    names = [str(entry.get(key, "")) for key in ("dataset", "backbone")]
    if not all(NAME.fullmatch(name) for name in names):
        raise CvsiError(f"{state}: {PATH}: runs.{run} has no usable names of a dataset and a backbone")
    return names[0], names[1]


def _files(state: State, run: str, dataset: str, backbone: str) -> dict[str, Path]:
    """The files of a run in DVC's cache, by their paths in the project; raises CvsiError where any is not there."""
    digests, files = _outputs(state), _Files(state)
    rerank = run.partition(":")[2]
    for stage in (*provenance.STAGES, *(provenance.RERANK_STAGES if rerank else ())):
        of_rerank = rerank if stage in provenance.RERANK_STAGES else ""
        output = provenance.output_path(stage, dataset, backbone, rerank=of_rerank).as_posix()
        needed, optional = NEEDED.get(stage, ()), (*OPTIONAL.get(stage, ()), RECIPE)
        if digests.get(output) == "":
            raise CvsiError(f"{state}: {LOCK}: {output} has no MD5 digest; run dvc repro there")
        single = {
            path.removeprefix(f"{output}/"): digest for path, digest in digests.items() if path.startswith(f"{output}/")
        }
        if output in digests:
            files.add(output, digests[output], needed, optional)
        elif single:  # outputs that DVC tracks one by one
            files.add_listed(output, single, needed, optional)
        elif needed:
            raise CvsiError(
                f"{state}: its {LOCK} has no output {output}: {run} was not run there, or {LOCK} was not committed"
            )
    if files.missing:
        raise CvsiError(_advice(state, files.missing))
    return files.found


def _outputs(state: State) -> dict[str, str]:
    """The digest of each output in a state's `dvc.lock`; empty where it is none of DVC's cache."""
    stages = _document(state, LOCK).get("stages")
    outputs = {}
    for stage in stages.values() if isinstance(stages, dict) else ():
        listed = stage.get("outs") if isinstance(stage, dict) else None
        for output in listed if isinstance(listed, list) else ():
            if isinstance(output, dict):
                digest = str(output.get("md5", ""))
                outputs[str(output.get("path"))] = digest if MD5.fullmatch(digest) else ""
    return outputs


def _object(digest: str) -> Path | None:
    """The file of a digest in DVC's cache; None where it is not there; raises CvsiError where its bytes are others."""
    for folder in dvc_cache_files():
        path = folder / digest[:2] / digest[2:]
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CvsiError(f"{path}: {cause(error)}; make DVC's cache readable") from None
        if found != digest.removesuffix(".dir"):
            raise CvsiError(
                f"{path}: damaged, its MD5 digest is {found}; delete this file and fetch it again: dvc fetch"
            )
        return path
    return None


def _listed(tree: Path, where: str) -> dict[str, str | None]:
    """The digest of each file of an output folder, from DVC's list of it."""
    try:
        rows = json.loads(tree.read_bytes())
        listed: dict[str, str | None] = {row["relpath"]: row["md5"] for row in rows}
    except (ValueError, TypeError, KeyError):
        raise CvsiError(f"{where}: {tree} is not a list of a folder's files as DVC writes it") from None
    if not all(isinstance(md5, str) and MD5.fullmatch(md5) for md5 in listed.values()):
        raise CvsiError(f"{where}: {tree} has a digest that is no MD5 digest")
    return listed


def _advice(state: State, missing: list[str]) -> str:
    """What to run for files that DVC's cache lacks; it takes targets within outputs, so vectors are not fetched."""
    number = f"{count(len(missing), 'file')} of it {'is' if len(missing) == 1 else 'are'} not in DVC's cache"
    if state.experiment:
        return f"{state}: {number} ({missing[0]}); fetch the experiment: dvc exp pull REMOTE {state.name}"
    return f"{state}: {number}; fetch: dvc fetch --all-commits {' '.join(missing)}"
