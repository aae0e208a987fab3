"""The documentation as a site: every document is in it, nothing is loaded from elsewhere, all links lead somewhere.

The site is built once, as `make docs` does; the strict build itself refuses broken links, and small sites with one
fault each show that it does.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from playwright.sync_api import Browser, sync_playwright
from pydantic import BaseModel, Field, PositiveInt

from cvsi.commands.main import app
from cvsi.core import params
from cvsi.datasets.formats import format_of
from tests.imports import ROOT
from tools import site_commands, site_keys
from tools.site_hooks import POINTS, in_site

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.xdist_group("site")  # built once


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to: addresses that a browser loads, links to follow, and its own anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded, self.links, self.anchors = list[str](), list[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        self.anchors |= {facts[name] for name in ("id", "name") if name in facts}
        if tag == "a":
            self.links += [facts["href"]] if "href" in facts else []
            return
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            self.loaded += [facts[name]] if name in facts else []
        self.loaded += re.findall(r"url\(([^)]*)\)", facts.get("style", ""))


def pages(site: Path) -> dict[Path, Page]:
    """All pages but the one for a server's missing pages, whose links begin at the server's root."""
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_document_is_in_the_navigation_once() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = re.split(r"^\w+:", settings.partition("\nnav:")[2], maxsplit=1, flags=re.M)[0]
    named = re.findall(r"^ +- .*: (\S+\.md)$", text, flags=re.M)
    documents = {path.name for path in (ROOT / "docs").glob("*.md")}
    made = {"index.md", "contributing.md", "changelog.md"}
    assert len(named) == len(set(named))
    assert {name for name in named if not name.startswith("reference/")} == documents | made
    parts = re.findall(r"^  - ([^:\n]+):", text, flags=re.M)
    assert parts == ["Home", "Tutorials", "How-to", "Reference", "The method explained"]


def test_no_page_loads_anything_from_another_origin(site: Path) -> None:
    found = pages(site)
    assert len(found) > 35
    for path, page in found.items():
        foreign = [
            address for address in page.loaded if urlsplit(address).scheme not in ("", "data") or "//" in address
        ]
        assert foreign == [], path
        assert page.loaded, path
    for style in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"""(url\(|@import\s*|href=)["']?(https?:)?//""", text), style


def test_all_links_lead_to_a_page_and_an_anchor(site: Path) -> None:
    found, number = pages(site), 0
    for path, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            assert not parts.scheme and not link.startswith("/"), (path, link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in found[target].anchors, (path, link)
            number += 1
    assert number > 2000


FAULTS = {
    "a document that does not exist": "[x](nothing.md)",
    "a picture that does not exist": "![x](nothing.png)",
    "an anchor that does not exist": "[x](other.md#nothing)",
    "an anchor of the page itself": "[x](#nothing)",
    "an absolute link": "[x](/other.md)",
    "a file of the project that does not exist": "[x](../cvsi/nothing.py)",
    "a folder": "[x](../cvsi)",
    "a link by reference": "[x][y]\n\n[y]: nothing.md",
}


def small_site(folder: Path, text: str, nav: list[str]) -> None:
    """Build a site of two pages with the settings of mkdocs.yml; raises Abort where the strict build fails."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# Home\n\n{text}\n", encoding="utf-8")
    (folder / "docs" / "other.md").write_text("# Other\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "docs_dir": str(folder / "docs"), "site_dir": str(folder / "site"), "nav": nav, "strict": True,
        "theme": {"name": "material", "font": False}, "plugins": [], "extra_css": [],
    }  # fmt: skip
    hook = folder / "hook.py"  # that of the links alone: the other pages need the whole of docs/
    hook.write_text("from tools.site_hooks import on_page_markdown\n", encoding="utf-8")
    build(load_config(str(ROOT / "mkdocs.yml"), **settings, hooks=[str(hook)]))


NAV = ["index.md", "other.md"]


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str) -> None:
    with pytest.raises(Abort):
        small_site(tmp_path, text, NAV)


@pytest.mark.parametrize("nav", [["index.md"], [*NAV, "nothing.md"]], ids=["a page left out", "a page not there"])
def test_a_wrong_navigation_fails_the_build(tmp_path: Path, nav: list[str]) -> None:
    with pytest.raises(Abort):
        small_site(tmp_path, "", nav)


def test_a_site_without_a_fault_is_built(tmp_path: Path) -> None:
    small_site(tmp_path, "[x](other.md#other), [y](https://example.org)", NAV)
    assert "other.html#other" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("index.md", "docs/demo.md", "demo.md"),
        ("index.md", "CHANGELOG.md", "changelog.md"),
        ("index.md", "docs/explore.png", "explore.png"),
        ("changelog.md", "docs/sharing.md", "sharing.md"),
        ("demo.md", "phi.md", "phi.md"),
        ("demo.md", "../README.md", "index.md"),
        ("demo.md", "../CONTRIBUTING.md", "contributing.md"),
        ("demo.md", "../cvsi/models/catalogue.yaml", "files/cvsi/models/catalogue.yaml.txt"),
        ("reference/keys.md", "../phi.md", "../phi.md"),
        ("reference/keys.md", "../../README.md", "../index.md"),
        ("demo.md", "../nothing.txt", "../nothing.txt"),
    ],
)
def test_links_that_leave_docs_lead_to_pages_or_copies(source: str, target: str, expected: str) -> None:
    assert in_site(source, target) == expected


def test_the_home_page_is_the_readme(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    for heading in re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M):
        assert f">{heading}<" in text


def test_code_blocks_of_documents_are_blocks_of_the_site(site: Path) -> None:
    """Python-Markdown reads fences and indentation as the forge does: as many blocks, with the same text."""
    from tests.project.test_documentation import BLOCKS

    for name in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        expected = [block.text.split() for block in BLOCKS if block.document == name]
        page = site / ("index.html" if name == "README.md" else f"{Path(name).stem}.html")
        assert [text.split() for text in code_blocks(page)] == expected, name


def code_blocks(page: Path) -> Iterator[str]:
    """The texts of a page's blocks of code."""
    for block in re.findall(r"<pre>(.*?)</pre>", page.read_text(encoding="utf-8"), flags=re.S):
        text = re.sub(r"<[^>]*>", "", block)
        for escaped, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&amp;", "&")):
            text = text.replace(escaped, character)
        yield text


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    text = site_keys.page()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    keys = sum(len(block.model.model_json_schema()["properties"]) for block in site_keys.blocks())
    assert len(rows) == keys > 250
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    assert "any value" not in {row[1].strip() for row in rows} - {"any value"}
    assert "| `mix` | number, at least 0, at most 1 | required |" in text
    assert "| `bad_images` | `stop`, `drop` | `stop` |" in text
    assert "| `phi` | text or `null` | none |" in text


def test_the_tables_of_the_documents_name_no_other_keys() -> None:
    """A key that was removed from the settings, or is spelled differently, is found in the docs."""
    known: dict[str, set[str]] = {}
    for block in site_keys.blocks():
        for source in block.sources:
            known.setdefault(source, set()).update(block.model.model_json_schema()["properties"])
    extra = {
        "methods.md#A method of your own": {"parts", "forms", "score"},  # Fusion's blocks, each with a table of its own
    }
    for source, keys in known.items():
        document, _, section = source.partition("#")
        named = set(site_keys.tables(document).get(section, ()))
        assert named <= keys | extra.get(source, set()), source


def test_a_key_without_a_meaning_is_an_error() -> None:
    class Undocumented(params.Settings):
        frobnicate: int = 1

    block = site_keys.Block("A test", "`x`", Undocumented, ("parameters.md#Dataset",))
    with pytest.raises(KeyError, match=r"A test: `frobnicate` has no meaning in parameters.md#Dataset"):
        site_keys.meaning(block, "frobnicate")


class Kinds(BaseModel):
    name: params.Name
    word: str = "x"
    several: tuple[str, ...] = ("a", "b")
    both: tuple[str, str] = ("yes", "no")
    choice: Literal["a", "b"] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    many: PositiveInt = 1000
    flag: bool = False
    rates: dict[params.Name, float] = Field(default={})
    block: params.WordList = params.WordList(words="x")
    empty: str = ""


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("name", "name", "required"),
        ("word", "text", "`x`"),
        ("several", "list: text", "`[a, b]`"),
        ("both", "list of 2: text", "`['yes', 'no']`"),
        ("choice", "`a`, `b` or `null`", "none"),
        ("share", "number, at most 1, more than 0", "`0.5`"),
        ("many", "whole number, more than 0", "`1000`"),
        ("flag", "`true` or `false`", "`false`"),
        ("rates", "mapping of names to: number", "`{}`"),
        ("block", "mapping", "that of each key"),
        ("empty", "text", "`''`"),
    ],
)
def test_types_and_defaults_in_words(key: str, kind: str, default: str) -> None:
    schema = Kinds.model_json_schema()
    assert site_keys.type_of(schema["properties"][key], schema["$defs"]) == kind
    assert site_keys.default_of(Kinds, key) == default


def test_the_reference_has_every_command_and_option() -> None:
    import typer

    text = site_commands.page()
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert re.findall(r"^## cvsi (.+)$", text, flags=re.M) == list(commands)
    for name, command in commands.items():
        section = re.split(rf"^## cvsi {name}$", text, flags=re.M)[1].partition("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert set(options) - {"--help"} == set(re.findall(r"^\* `(-[\w-]+)", section, flags=re.M)), name
        assert "console" not in section and "--help" not in section


def test_the_reference_has_what_the_examples_of_extending_import(site: Path) -> None:
    anchors = Page(site / "reference" / "extension_points.html").anchors
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    imports = re.findall(r"^from (cvsi\.[\w.]+) import (.+)$", text, flags=re.M)
    names = {f"{module}.{name}" for module, given in imports for name in given.split(", ") if not name.isupper()}
    assert len(names) > 15 and names <= anchors, names - anchors
    assert {module for modules in POINTS.values() for module in modules} <= anchors


def test_the_weights_of_the_method_are_those_of_params_yaml() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (CIRCO|CIRR|FashionIQ) \| (.+) \|$", text, flags=re.M)
    settings = params.load(ROOT / "params.yaml")
    assert len(rows) == 3
    for name, cells in rows:
        dataset = settings.datasets[{"CIRCO": "circo", "CIRR": "cirr-val", "FashionIQ": "fashioniq-dress"}[name]]
        assert isinstance(dataset.fusion, dict)
        *numbers, reference = cells.split(" | ")
        query, gallery = dataset.fusion["query"], dataset.fusion["gallery"]
        weights = [query.get(key, 0) for key in ("edited", "pseudo", "reference")]
        assert [float(number) for number in numbers] == [*weights, gallery["image"], gallery["caption"]]
        assert (reference == "is left out") == format_of(dataset, name).excludes_reference


def test_the_figure_has_words_and_a_dark_scheme() -> None:
    text = (ROOT / "docs" / "method.svg").read_text(encoding="utf-8")
    assert "<title" in text and "<desc" in text and 'role="img"' in text
    assert "prefers-color-scheme: dark" in text
    assert "](method.svg)" in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def test_the_output_folder_is_ignored() -> None:
    folder = yaml.safe_load(re.search(r"^site_dir:.*$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)[0])  # type: ignore[index]
    assert f"/{folder['site_dir']}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opened_as_a_file_the_site_searches_and_loads_nothing_else(site: Path, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme=scheme)
    page, foreign, messages = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: foreign.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((site / "method.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("semantic half and visual half")
    page.wait_for_selector(".md-search-result__link")
    found = [link.get_attribute("href") or "" for link in page.locator(".md-search-result__link").all()]
    assert "/method.html" in found[0], found
    page.keyboard.press("Escape")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert (red > 200) == (scheme == "light"), background
    assert messages == []  # before axe-core, which reads style sheets in a way that a file's page may not
    serious = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in serious]
    assert [url for url in foreign if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    context.close()


@pytest.mark.parametrize("name", ["index", "method", "own_photos", "licences", "reference/keys", "reference/commands"])
def test_a_phone_shows_each_page_without_moving_it_sideways(site: Path, browser: Browser, name: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto((site / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").first.is_visible()
    context.close()
