"""The shape of the code: data flows one way, modules stay small, importing the command line loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

# A module imports only modules that stand before it.
ORDER = tuple(
    """
    cvsi cvsi.errors cvsi.places cvsi.locks cvsi.schema cvsi.settings cvsi.model_settings cvsi.params cvsi.runs
    cvsi.tables cvsi.console cvsi.memo cvsi.store cvsi.steps cvsi.provenance cvsi.rooms cvsi.pictures cvsi.batches
    cvsi.strict_json cvsi.datasets.listing cvsi.datasets.rules cvsi.datasets.circo cvsi.datasets.cirr
    cvsi.datasets.fashioniq cvsi.datasets.folder cvsi.datasets cvsi.indexing cvsi.weights cvsi.checkpoints
    cvsi.recipes cvsi.devices cvsi.vllm_engine cvsi.decoding cvsi.captioner cvsi.captioner_vllm cvsi.captions
    cvsi.engines cvsi.editor cvsi.edits cvsi.phi cvsi.tokenizing cvsi.encoder cvsi.spans cvsi.lessons cvsi.phi_state
    cvsi.phi_training cvsi.fusion cvsi.embedding cvsi.vectors cvsi.ranking cvsi.metrics cvsi.submission_check
    cvsi.submissions cvsi.asked cvsi.gallery cvsi.scores cvsi.published cvsi.report cvsi.report.thumbnails
    cvsi.report.weightings cvsi.report.beside cvsi.report.cards cvsi.report.build cvsi.grid cvsi.bilinear
    cvsi.sweep_views cvsi.sweep cvsi.world cvsi.world.scenes cvsi.world.drawing cvsi.world.wordings
    cvsi.world.instructions cvsi.world.rule cvsi.world.dataset cvsi.stage cvsi.times cvsi.show cvsi.upkeep cvsi.doubts
    cvsi.summary cvsi.compare cvsi.compare_views cvsi.sources cvsi.needs cvsi.outlook cvsi.check cvsi.packs cvsi.card
    cvsi.pack cvsi.fitting cvsi.unpack cvsi.pack_commands cvsi.cli
    """.split()
)
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "cvsi").rglob("*.py"))
}


def imports(file: Path) -> set[str]:
    """The modules of cvsi that a file imports directly."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in FILES and name != "cvsi"}


def test_every_module_has_its_place() -> None:
    assert set(FILES) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_data_flows_one_way(module: str) -> None:
    later = set(ORDER[ORDER.index(module) + 1 :])
    # A package's face may name its own modules.
    assert not {name for name in imports(FILES[module]) & later if not name.startswith(f"{module}.")}


@pytest.mark.parametrize("module", ORDER)
def test_modules_and_functions_are_small(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{module} does not say what it is"
    assert len(text.splitlines()) <= 240
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 50, node.name


def test_only_places_spells_a_path_under_cache() -> None:
    for module, file in FILES.items():
        if module != "cvsi.places":
            strings = [
                n.value for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)
            ]
            assert not [text for text in strings if isinstance(text, str) and text == "cache"], module


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, cvsi.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
