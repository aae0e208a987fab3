"""The registry of an extension point: built-in names, registered ones and entry points of installed packages."""

from pathlib import Path

import pytest

from cvsi.core.errors import CvsiError
from cvsi.core.registry import Registry

GROUP = "cvsi.test_letters"


def letters() -> Registry[str]:
    return Registry("letter", GROUP, {"lower": "string:ascii_lowercase", "upper": "string:ascii_uppercase"})


def install(folder: Path, *points: str, package: str = "letters") -> None:
    """A package's metadata with these entry points, as an installer writes them."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points]) + "\n")


def test_an_unknown_name_is_one_line_that_lists_the_names() -> None:
    registry = letters()
    registry.register("own", "xyz")
    with pytest.raises(CvsiError) as error:
        registry.get("greek", "params.yaml: datasets.toy.letters")
    assert str(error.value) == (
        "params.yaml: datasets.toy.letters: unknown letter 'greek'; there are: lower, upper, own"
    )
    with pytest.raises(CvsiError, match=r"unknown letter 'x+'; there are") as error:
        registry.get("x" * 10_000, "params.yaml")
    assert len(str(error.value)) < 200


def test_built_in_and_registered_names() -> None:
    registry = letters()
    registry.register("own", "xyz")
    assert registry.get("lower", "here").startswith("abc") and registry.get("own", "here") == "xyz"
    assert [name for name, _ in registry] == registry.names() == ["lower", "upper", "own"]
    assert letters().names() == ["lower", "upper"]  # a registration is one registry's


def test_an_entry_point_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "digits = string:digits")
    monkeypatch.syspath_prepend(tmp_path)
    assert letters().names() == ["lower", "upper", "digits"]
    assert letters().get("digits", "here") == "0123456789"


@pytest.mark.parametrize(
    ("point", "reason"),
    [("string:nothing", "module 'string' has no attribute 'nothing'"), ("no_such:thing", "No module named 'no_such'")],
)
def test_an_entry_point_that_does_not_load_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, reason: str
) -> None:
    install(tmp_path, f"broken = {point}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CvsiError) as error:
        letters().get("broken", "params.yaml: x")
    assert str(error.value) == f"params.yaml: x: letter 'broken' ({point}) does not load: {reason}"


@pytest.mark.parametrize("name", ["lower", "own", "digits"])
def test_a_duplicate_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(tmp_path, "digits = string:digits")
    monkeypatch.syspath_prepend(tmp_path)
    registry = letters()
    registry.register("own", "xyz")
    with pytest.raises(CvsiError, match=f"letter '{name}' is defined twice; rename one of them"):
        registry.register(name, "abc")


@pytest.mark.parametrize("point", ["lower = string:digits", "own = string:digits\nown = string:hexdigits"])
def test_an_entry_point_with_a_name_that_is_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    for number, line in enumerate(point.splitlines()):
        install(tmp_path / str(number), line, package=f"letters{number}")
        monkeypatch.syspath_prepend(tmp_path / str(number))
    with pytest.raises(CvsiError, match="is defined twice; rename one of them"):
        letters().get("lower", "here")
