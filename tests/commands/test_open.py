"""`cvsi open`: the page reaches a browser, or its address is printed; no browser is started by these tests."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cvsi.commands.main import app
from cvsi.core.errors import CvsiError
from tests.conftest import project_params

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report's path in a working directory with a blank in its name; there is no display and no browser."""
    place = tmp_path / "a folder #1"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("webbrowser._tryorder", None)  # browsers are looked up once per process
    monkeypatch.setattr("webbrowser._browsers", {})
    Path("params.yaml").write_text(yaml.safe_dump(project_params()), encoding="utf-8")
    page = place / "cache/demo/tiny/report/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<h1>report</h1>", encoding="utf-8")
    return page


def opened(run: str = "demo-tiny") -> Result:
    return CliRunner().invoke(app, ["open", run])


def browser(page: Path, code: int = 0) -> Path:
    """A browser that writes down what it was given."""
    script = page.parents[5] / "browser"
    target = page.parents[5] / "asked"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(target)!r}, 'w').write(' '.join(sys.argv[1:]))\nsys.exit({code})\n"
    )
    script.chmod(0o755)
    return script


def test_the_browser_gets_the_address(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = browser(page)
    monkeypatch.setenv("BROWSER", str(script))
    result = opened()
    assert result.exit_code == 0 and "opened in the browser" in result.stdout
    assert (page.parents[5] / "asked").read_text() == page.as_uri() and "%20" in page.as_uri()


@pytest.mark.parametrize("kind", ["none", "missing", "failing"])
def test_without_a_browser_the_address_is_printed(page: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(page.parent))  # no other browser is found
    if kind == "missing":
        monkeypatch.setenv("BROWSER", "no-such-browser")
    elif kind == "failing":
        monkeypatch.setenv("BROWSER", str(browser(page, code=3)))
    result = opened()
    assert result.exit_code == 0, result.exception
    assert result.stdout == (
        f"cvsi: cache/demo/tiny/report/index.html: no browser or display here; open {page.as_uri()}\n"
    )
    assert shlex.split(result.stderr) == ["next:", "dvc", "repro"], "there are no vectors to search"


def test_without_a_report_it_is_one_line_that_says_what_makes_it(page: Path) -> None:
    page.unlink()
    result = opened()
    assert result.exit_code == 1 and isinstance(result.exception, CvsiError)
    assert str(result.exception) == "cache/demo/tiny/report/index.html: no report yet; dvc repro makes it"


def test_a_folder_in_place_of_the_report_is_no_report(page: Path) -> None:
    page.unlink()
    page.mkdir()
    assert "no report yet" in str(opened().exception)


def test_an_unknown_run_is_one_line(page: Path) -> None:
    result = opened("demo-tin")
    assert isinstance(result.exception, CvsiError) and "demo-tin" in str(result.exception)
