"""Which files of this repository a script imports, by reading the code and running nothing."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def imported(script: Path) -> set[str]:
    """Paths below the root of a script and all modules of `cvsi` and `demo` that it imports, directly or not."""
    files: set[Path] = set()
    todo = [script]
    while todo:
        file = todo.pop()
        if file in files:
            continue
        files.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            todo += [file for name in names for file in _files(name)]
    return {path.relative_to(ROOT).as_posix() for path in files}


def _files(module: str) -> list[Path]:
    """The module's own file and the packages above it; empty for a module outside `cvsi` and `demo`."""
    parts = module.split(".")
    if parts[0] not in ("cvsi", "demo"):
        return []
    paths = [ROOT.joinpath(*parts[: length + 1]) for length in range(len(parts))]
    candidates = [path / "__init__.py" for path in paths] + [paths[-1].with_suffix(".py")]
    return [file for file in candidates if file.is_file()]
