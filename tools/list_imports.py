"""Writes each stage's list of modules in dvc.yaml and training/dvc.yaml anew, from what its script imports.

Run it as `make deps` after adding an import; tests/test_dvc.py holds the lists against the code.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.imports import imported  # noqa: E402  a script of tools/ finds the tests once the root is on its path

COMMAND = re.compile(r"^\s+cmd: python (?:-m )?(\S+)")
MODULE = re.compile(r"^(\s+- )\S+\.py$")


def renewed(lines: list[str]) -> list[str]:
    """A dvc.yaml's lines with each stage's modules, which stand together, replaced."""
    found, script, listed = list[str](), Path(), False
    for line in lines:
        if command := COMMAND.match(line):
            name = command[1]
            script, listed = Path(name if name.endswith(".py") else name.replace(".", "/") + ".py"), False
        module = MODULE.match(line)
        if module is None:
            found.append(line)
        elif not listed:
            listed = True
            others = sorted(imported(ROOT / script) - {script.as_posix()})
            found += [f"{module[1]}{path}" for path in (script.as_posix(), *others)]
    return found


for path in (ROOT / "dvc.yaml", ROOT / "training" / "dvc.yaml"):
    path.write_text("\n".join(renewed(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
