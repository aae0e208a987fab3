"""The structure of the code: which package imports which, no cycles, small functions, a light command line."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.imports import ROOT

# Each package may import only these, and itself. `commands` and the demo may import every package.
STAGE_PACKAGES = ("core", "store", "datasets", "models", "pipeline", "evaluation", "training", "explorer")
ALLOWED = {
    "core": (),
    "store": ("core",),
    "datasets": ("core", "store"),
    "models": ("core", "store"),
    "pipeline": ("core", "store", "models"),
    "evaluation": ("core", "datasets"),
    "training": ("core", "store", "models"),
    "explorer": ("core", "store", "datasets", "models", "pipeline", "evaluation"),
    "commands": STAGE_PACKAGES,
}
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "cvsi").rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules of this repository that a module imports directly, within functions too, by full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            names |= below or {node.module}
    return {name for name in names if name.split(".")[0] in ("cvsi", "demo")} - {"cvsi"}


def test_every_package_has_a_rule() -> None:
    folders = {path.name for path in (ROOT / "cvsi").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*ALLOWED, "prompts"}
    assert len(folders) <= 12
    # cli.py is the entry point of environments that were installed before the command line moved.
    assert {path.name for path in (ROOT / "cvsi").iterdir() if path.is_file()} == {"__init__.py", "cli.py"}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = (package, *ALLOWED[package])
    for module in [module for module in FILES if module.startswith(f"cvsi.{package}")]:
        wrong = [name for name in imports(module) if not name.startswith("cvsi.") or name.split(".")[1] not in allowed]
        assert not wrong, f"{module} imports {wrong}"


def test_no_modules_import_each_other_in_a_cycle() -> None:
    graph = {module: imports(module) - {module} for module in FILES}
    for module in graph:  # a package may import its own modules
        if FILES[module].name == "__init__.py":
            graph[module] = {name for name in graph[module] if not name.startswith(f"{module}.")}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", FILES)
def test_modules_have_docstrings_and_functions_are_small(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 50, node.name


def test_only_paths_names_a_path_under_cache() -> None:
    for module, file in FILES.items():
        if module != "cvsi.core.paths":
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
            assert not [text for text in strings if isinstance(text, str) and text == "cache"], module


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, cvsi.commands.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
