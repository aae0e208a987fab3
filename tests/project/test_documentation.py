"""Every block of README.md, CONTRIBUTING.md and docs/: settings are pasted and loaded, commands are parsed or run.

- YAML is pasted into params.yaml as the text before it says, and checked as `cvsi check` does.
- JSON lines are read by the reader of own photos, in a folder that has the photographs they name.
- Commands are parsed by the programs themselves (`cvsi`, `dvc`, git's list of commands, the Makefile); those that need
  nothing but a workspace are run: own photographs up to the index, and sharing's `dvc remote`; test_own_photos.py runs
  the commands of docs/own_photos.md.
- Diagrams and lists of paths are compared with the stages and with what exists.

What is only parsed, and why: `dvc repro`, `dvc push`, `make ...`, `python -m demo.train` and the like take minutes
(tests/project/test_pipeline.py and test_sharing.py run the pipeline and the commands of "Every day");
`spacy download`, `git push` and addresses of servers need a network; commands on runs of benchmarks need their data;
`mkdir /team/...`, `chgrp` and `umask` are for a file server; examples of what a command prints (a fence `text`, or
lines that begin with a number) are compared by the tests of that command. test_extending.py runs docs/extending.md.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
import yaml
from dvc.cli import DvcParserError
from dvc.cli import main as run_dvc
from dvc.cli.parser import get_main_parser
from PIL import Image
from typer.testing import CliRunner

from cvsi.commands.check import check_blocks
from cvsi.commands.main import app
from cvsi.commands.sweep_request import request
from cvsi.core import params
from cvsi.datasets import index
from demo.world.dataset import draw
from tests.conftest import Workspace
from tests.imports import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BUILTINS = ("source", "umask", "wait")  # of a shell
PROGRAMS = ("make", "cvsi", "dvc", "git", "python", "python3", "mkdir", "chgrp", "chmod", "cp", *BUILTINS)
# docs/phi.md: the loss, which tests/training/test_train.py computes; docs/methods.md: tests/evaluation/test_forms.py;
# docs/reranking.md: tests/evaluation/test_rerank.py; docs/method.md: tests/pipeline/test_components.py, test_fusion.py
FORMULAS = ("noise = U(0, 1)", "a = ((x.y)", "value = mix * yes", "f_edited", "g_image", "q = w_e")
NOT_IN_THE_PROJECT = ("data/", "models/", "published-demo", "cache/", ".venv/", "~/")  # named, and made by a command


@dataclass(frozen=True)
class Block:
    """One block of a document: its text without indentation, and the kind that a fence names."""

    document: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> Iterator[Block]:
    """All blocks, in order: fenced ones, and indented ones that follow an empty line."""
    for document in DOCUMENTS:
        name, fence, found = document.relative_to(ROOT).as_posix(), "", list[str]()
        before, began = "", 0
        for number, line in enumerate([*document.read_text(encoding="utf-8").splitlines(), ""], 1):
            if line.startswith("```") and not fence:
                fence, began, found = line.removeprefix("```") or "none", number, []
            elif line.startswith("```"):
                yield Block(name, began, fence, "\n".join(found) + "\n")
                fence, found = "", []
            elif fence:
                found.append(line)
            elif line.startswith("    ") and (found or not before):
                began = began if found else number
                found.append(line[4:])
            elif found:
                yield Block(name, began, "", "\n".join(found) + "\n")
                found = []
            before = line


def is_settings(text: str) -> bool:
    """Whether a block has keys of params.yaml, at the top or of a dataset."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return bool(re.match(r" +\w+:", text))  # aliases that only the whole file defines
    return isinstance(content, dict) and (set(content) <= set(params.Params.model_fields) or text.startswith(" "))


def kind_of(block: Block) -> str:
    """What a block is: settings, a method, queries, commands, paths, diagram, code of docs/extending.md, ..."""
    first = block.text.split()[0]
    if block.document == "docs/extending.md":
        return "code"
    if block.kind == "text" or first.isdigit():
        return "output"
    if block.text.startswith("{"):
        return "queries"
    if first in PROGRAMS:
        return "commands"
    if is_settings(block.text):
        return "settings"
    if block.document == "docs/sweep.md" and block.kind == "yaml":
        return "method"
    if "--index-->" in block.text:
        return "diagram"
    if block.text.startswith(FORMULAS):
        return "formula"
    return "paths" if re.match(r"[\w.]+/|\w+\.\w+ ", block.text) else "unknown"


BLOCKS = list(blocks())
SUBCOMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has a click of its own, and no public name for this


def of_kind(kind: str) -> pytest.MarkDecorator:
    """The parameters of a test: every block of a kind."""
    return pytest.mark.parametrize("block", [block for block in BLOCKS if kind_of(block) == kind], ids=str)


@of_kind("method")
def test_a_method_with_lists_is_one_that_a_sweep_takes(block: Block, place: Workspace) -> None:
    (place.path / "method.yaml").write_text(block.text, encoding="utf-8")
    assert len(request(params.load(), "demo", "method.yaml", ()).fusions) > 1


def test_every_block_is_of_a_known_kind() -> None:
    kinds = [kind_of(block) for block in BLOCKS]
    assert "unknown" not in kinds, [str(block) for block in BLOCKS if kind_of(block) == "unknown"]
    fenced = sum(document.read_text(encoding="utf-8").count("\n```") for document in DOCUMENTS)
    assert sum(bool(block.kind) for block in BLOCKS) * 2 == fenced
    assert {"settings", "queries", "commands", "paths", "diagram", "code"} <= set(kinds)


ADDED = ("captioners", "editors", "readers", "datasets", "backbones", "phis")  # a block adds names; others it replaces


def paste(text: str, block: str) -> str:
    """params.yaml with a block in it: indented lines follow `datasets:`, keys at the top are added to or replaced."""
    if block.startswith(" "):
        return paste(text, f"datasets:\n{block}")
    for part in re.findall(r"^\w+:.*\n(?:\n|[ #].*\n?)*", block, flags=re.M):
        key, _, rest = part.partition(":")
        if key in ADDED:
            assert text.count(f"\n{key}:\n") == 1
            text = text.replace(f"\n{key}:\n", f"\n{key}:\n{rest.partition(chr(10))[2]}")
        else:
            text, number = re.subn(rf"^{key}:.*\n(?:[ #].*\n|\n(?= ))*", lambda match: part, text, flags=re.M)  # noqa: B023
            assert number == 1, key
    return text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with the project's params.yaml as it is, and the models that it names."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    return Workspace(tmp_path)


def pasted(block: Block) -> str:
    """params.yaml with a block, and where it names datasets, with those that the same page defines."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    if re.search("^(active|runs):", block.text, flags=re.M):
        for other in BLOCKS:
            if (other.document, kind_of(other)) == (block.document, "settings") and other.text.startswith(" "):
                text = paste(text, other.text)
    return paste(text, block.text)


@of_kind("settings")
def test_settings_can_be_pasted(place: Workspace, block: Block) -> None:
    text = pasted(block)
    (place.path / "params.yaml").write_text(text, encoding="utf-8")
    assert text != (ROOT / "params.yaml").read_text(encoding="utf-8")
    check_blocks(params.load())


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block."""
    for line in block.text.splitlines():
        for command in re.split(r"&&|;|\|| & ?$|&$", re.sub(r"(^|\s)#.*", "", line)):
            if words := shlex.split(command):
                yield words


@cache
def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


@cache
def git_commands() -> set[str]:
    return set(subprocess.check_output(["git", "--list-cmds=main"], text=True).split())


def check_cvsi(arguments: list[str]) -> None:
    """Parse a command line of `cvsi` without running it; raises an error for what does not exist."""
    assert arguments and arguments[0] in SUBCOMMANDS, arguments
    SUBCOMMANDS[arguments[0]].make_context(
        arguments[0], [argument for argument in arguments[1:] if argument != "--help"]
    )


def check_dvc(arguments: list[str]) -> None:
    """Parse a command line of `dvc` without running it, and look up the stages that it names."""
    parsed = get_main_parser().parse_args(arguments)
    for change in getattr(parsed, "set_param", None) or ():
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for key in change.partition("=")[0].split("."):
            content = content[key]
    if arguments[0] == "repro":
        for target in arguments[1:]:
            if not target.startswith("-"):
                file, _, stage = target.rpartition(":")
                content = yaml.safe_load((ROOT / (file or "dvc.yaml")).read_text(encoding="utf-8"))
                assert stage.partition("@")[0] in content["stages"], target


def check_python(arguments: list[str]) -> None:
    """A script that exists, or a module that can be imported."""
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, arguments
    else:
        assert (ROOT / arguments[0]).is_file(), arguments


def check_command(words: list[str]) -> None:
    """One command: its program, sub-command and options exist, and so do the files of the project that it names."""
    program, arguments = words[0], words[1:]
    if program.startswith(".venv/bin/"):
        assert (Path(sys.executable).parent / program.rpartition("/")[2]).exists(), words
        return
    assert program in PROGRAMS, words
    if program == "make":
        assert arguments and set(arguments) <= targets(), words
    elif program == "cvsi":
        check_cvsi(arguments)
    elif program == "dvc":
        check_dvc(arguments)
    elif program == "git":
        assert arguments[0] in git_commands(), words
    elif program in ("python", "python3"):
        check_python(arguments)
    for word in arguments:
        name = word.partition(":")[0]
        if "/" in name and not name.startswith((*NOT_IN_THE_PROJECT, "/", "$", "-")) and "=" not in name:
            if "://" not in word:
                assert (ROOT / name).exists(), words


@of_kind("commands")
def test_commands_exist(block: Block) -> None:
    words = list(commands(block))
    assert words
    for command in words:
        try:
            check_command(command)
        except (UsageError, DvcParserError, SystemExit) as error:
            pytest.fail(f"{block}: {' '.join(command)}: {error}")


@pytest.mark.parametrize(
    "line",
    ["make everything", "cvsi shwo demo-tiny", "cvsi show", "cvsi sweep demo tiny --stp 0.1", "dvc reproduce",
     "dvc push --run-caches", "dvc repro report@x training/dvc.yaml:train@x", "git comit", "python -m demo.trains",
     "python3 tools/set-up.py", "cp -rn tools/nothing.py x", "dvc exp run -S backbones.tiny.prep=plain", "frobnicate"],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_found_out(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, UsageError, DvcParserError, SystemExit, ModuleNotFoundError, KeyError)):
        check_command(line.split())


@of_kind("commands")
def test_comments_name_existing_options(block: Block) -> None:
    """`# add --only captions` and `cvsi ...; cvsi unpack FOLDER imports them` in a comment are true, too."""
    for comment in re.findall(r"(?:^|\s)#(.*)", block.text):
        for sub in re.findall(r"\bcvsi ([a-z-]+)", comment):
            assert sub in SUBCOMMANDS, comment


@of_kind("queries")
def test_queries_are_read_by_the_reader_of_own_photos(place: Workspace, block: Block) -> None:
    add_photos(place, block)
    index.build("photographs", params.load())
    queries = pl.read_parquet(place.path / "cache/photographs/index/queries.parquet")
    assert sorted(queries["instruction"]) == sorted(json.loads(line)["instruction"] for line in block.text.splitlines())


def own_queries() -> Block:
    """The block of queries in docs/own_photos.md."""
    (block,) = [block for block in BLOCKS if block.document == "docs/own_photos.md" and kind_of(block) == "queries"]
    return block


def add_photos(place: Workspace, block: Block) -> None:
    """The folder of docs/own_photos.md, added with the demo's models: queries, and an image for every name in them."""
    root = place.path / "data" / "photographs"
    root.mkdir(parents=True)
    (root / "queries.jsonl").write_text(block.text, encoding="utf-8")
    for line in map(json.loads, block.text.splitlines()):
        for name in (line["reference"], *line.get("targets", [])):
            (root / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (60, 40), "navy").save(root / name)
    added = CliRunner().invoke(app, ["add", "data/photographs", "--preset", "tiny"])
    assert added.exit_code == 0, added.output


def test_own_photos_as_in_the_docs_need_nothing_more(place: Workspace) -> None:
    add_photos(place, own_queries())
    shown = CliRunner().invoke(app, ["check"])
    assert shown.exit_code == 0 and "Nothing is missing" in shown.output and "of 4" in shown.output, shown.output


@pytest.mark.slow
def test_own_photos_as_in_the_docs_are_edited(place: Workspace) -> None:
    """The folder through every stage, with pictures that the tiny models know."""
    add_photos(place, own_queries())
    draw(place.path / "drawn", params.World(gallery=60, val=4, test=1))
    drawn = sorted((place.path / "drawn").rglob("*.jpg"))
    for photo, picture in zip(sorted((place.path / "data" / "photographs").rglob("*g")), drawn, strict=False):
        shutil.copy(picture, photo)
    place.run_all("photographs", "tiny")
    edits = pl.read_parquet(place.path / "cache/photographs/edits/*.parquet")
    assert edits.filter(pl.col("status") == "ok").height > 0, edits


def test_remotes_are_added_as_in_sharing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        words
        for block in BLOCKS
        if kind_of(block) == "commands"
        for words in commands(block)
        if words[:2] == ["dvc", "remote"]
    ]
    assert len(lines) == 3
    for number, words in enumerate(lines):
        if words[2] == "add":
            folder = tmp_path / str(number)
            folder.mkdir()
            monkeypatch.chdir(folder)
            assert run_dvc(["init", "--no-scm", "--quiet"]) == 0
        assert run_dvc([*words[1:], "--quiet"]) == 0, words


@of_kind("diagram")
def test_diagrams_name_stages(block: Block) -> None:
    named = set(re.findall(r"--(\w+)-->", block.text))
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    assert named and named <= stages <= named | {"world", "verdicts", "rerank"}  # of the demo, and of reranks


@of_kind("paths")
def test_paths_exist_or_belong_to_a_benchmark(block: Block) -> None:
    roots = tuple(f"{dataset.root}/" for dataset in params.load(ROOT / "params.yaml").datasets.values())
    for line in block.text.splitlines():
        name = line.split()[0]
        if not name.startswith(roots):
            for path in re.findall(r"[\w.-]+(?:/[\w.-]*)+|\w+\.yaml", line):
                assert (ROOT / path).exists() or path.startswith(("data/", "cache/")), line


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_prose_names_existing_commands_and_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"`cvsi ([a-z-]+)", text)) <= set(SUBCOMMANDS)
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets()
    assert not [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    for command in re.findall(r"`(cvsi [a-z-]+(?: [A-Z]+)*(?: --[a-z-]+)?)`", text):
        words = command.split()[1:]
        options = {option for parameter in SUBCOMMANDS[words[0]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, command
