"""Licences of the dependencies: each installed one is allowed or accepted, and docs/licences.md is up to date."""

from email.message import Message
from importlib.metadata import PackageMetadata
from typing import cast

import pytest

from tools import licences
from tools.licences import FREE, RESTRICTIVE, UNKNOWN, WEAK, licence, page, verdict


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", FREE),
        ("Apache-2.0 WITH LLVM-exception", FREE),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", WEAK),
        ("Apache-2.0 OR GPL-2.0-or-later", FREE),
        ("Apache-2.0 AND GPL-2.0-or-later", RESTRICTIVE),
        ("GPL-2.0-only OR EPL-1.0", WEAK),
        ("(MIT OR AGPL-3.0-only) AND LGPL-2.1-only", WEAK),
        ("CC-BY-NC-4.0", RESTRICTIVE),
        ("MIT AND", UNKNOWN),
        ("(MIT", UNKNOWN),
        ("Anything goes", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_alternatives_weaken_and_conditions_add_up(expression: str, expected: str) -> None:
    assert verdict(expression) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("License", "GPL")], "MIT OR Apache-2.0"),
        ([("License", "Apache License 2.0"), ("Classifier", "License :: OSI Approved :: MIT License")], "Apache-2.0"),
        ([("License", "a whole\ntext"), ("Classifier", "License :: OSI Approved :: BSD License")], "BSD"),
        ([("License", "GPLv3"), ("Classifier", "License :: OSI Approved")], "GPLv3"),
        ([("Classifier", "License :: OSI Approved :: GNU Affero"), ("Classifier", "Topic :: X")], "GNU Affero"),
        ([], ""),
    ],
)
def test_the_expression_comes_first_then_the_field_then_the_classifiers(
    fields: list[tuple[str, str]], expected: str
) -> None:
    message = Message()
    for name, value in fields:
        message[name] = value
    assert licence(cast(PackageMetadata, message)) == expected


@pytest.mark.parametrize(
    "package", [item for item in licences.packages() if item.installed], ids=lambda item: item.name
)
def test_every_installed_package_is_allowed_or_accepted(package: licences.Package) -> None:
    assert package.verdict in (FREE, WEAK) or package.accepted, f"{package.name}: licence {package.licence!r}"


def test_the_page_lists_every_pin_and_every_installed_package() -> None:
    text = licences.TARGET.read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    for package in licences.packages():
        row = rows.pop(package.name, "")
        assert f"| {', '.join(package.versions)} |" in row, f"{package.name}: run make licences"
        if package.installed and "not installed here" not in row:
            assert f"| {package.licence} | {package.verdict} |" in row, f"{package.name}: run make licences"
    assert set(rows) == {"package", "---"}, "packages that are no longer pinned: run make licences"
    assert "not decided" not in page(licences.packages())
