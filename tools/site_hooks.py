"""Hooks of MkDocs (`make docs`): pages from README.md, the command line and the typed settings, and links to files.

The documents in docs/ stay as a forge shows them. A link that leaves docs/ is changed here: README.md, CONTRIBUTING.md
and CHANGELOG.md are pages of the site, any other file of the project is copied into it as text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools import site_commands, site_keys

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
NAMED = re.compile(r"\[(?:docs/)?(\w+\.md)\](?=\(([^)#\s]+))")  # a link whose text is the name of a document
SEARCH = 'data-md-component="search"'
# The modules that a package of one's own imports, in the order of docs/extending.md.
POINTS = {
    "Datasets": ("cvsi.datasets.base", "cvsi.datasets.formats", "cvsi.datasets.metrics", "cvsi.datasets.submissions"),
    "Engines": ("cvsi.models.engines", "cvsi.models.captioner", "cvsi.models.editor", "cvsi.models.reader",
                "cvsi.models.judge"),
    "Backbones": ("cvsi.models.encoder",),
    "Components": ("cvsi.pipeline.components", "cvsi.pipeline.embeddings"),
    "Score forms": ("cvsi.evaluation.scorers",),
    "Executors and the store": ("cvsi.store.executors", "cvsi.store.jobs", "cvsi.store.rows"),
    "All of them": ("cvsi.core.registry", "cvsi.core.params"),
}  # fmt: skip
POINTS_INTRODUCTION = """\
---
search:
  boost: 0.3
---
# Extension points

`make docs` makes this page from the docstrings and types of the modules that an extension imports.
[Extending](../extending.md) has a complete example of each.

"""


def points() -> str:
    """The page of the extension points: directives that mkdocstrings replaces."""
    parts = [POINTS_INTRODUCTION]
    for title, modules in POINTS.items():
        parts += [f"## {title}\n\n", *(f"::: {module}\n    options: {{heading_level: 3}}\n\n" for module in modules)]
    return "".join(parts)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that are made, and the files of the project that documents link to."""
    made = {
        "reference/commands.md": site_commands.page(),
        "reference/keys.md": site_keys.page(),
        "reference/extension_points.md": points(),
    }
    for source, page in PAGES.items():
        made[page] = (ROOT / source).read_text(encoding="utf-8")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for path in sorted({path for file in files.documentation_pages() for path in linked(file)}):
        content = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, copy_of(path), content=content))
    return files


def linked(file: File) -> list[str]:
    """The files of the project outside docs/ that a page links to and that are no page."""
    paths = [in_project(file.src_uri, target) for target in LINK.findall(file.content_string)]
    return [path for path in paths if not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file()]


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Change links from and to files outside docs/ to those of the site, and names of documents to their titles."""
    source = page.file.src_uri
    inside = LINK.sub(lambda match: in_site(source, match[1]), markdown)

    def titled(match: re.Match[str]) -> str:
        folder = posixpath.dirname(source)
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, match[2])))
        return f"[{target.page.title}]" if target is not None and target.page is not None else match[0]

    return NAMED.sub(titled, inside)


def on_post_page(output: str, **_: Any) -> str:
    """Give the search's dialog a name, which Material leaves out and screen readers need."""
    return output.replace(f'{SEARCH} role="dialog"', f'{SEARCH} role="dialog" aria-label="Search"')


def in_project(source: str, target: str) -> str:
    """The path in the project of what a page links to."""
    folder = "" if source in PAGES.values() else posixpath.join("docs", posixpath.dirname(source))
    return posixpath.normpath(posixpath.join(folder, target))


def in_site(source: str, target: str) -> str:
    """The link from a page of the site; unchanged where it leads to no file, so that the build names it."""
    path = in_project(source, target)
    if path in PAGES:
        found = PAGES[path]
    elif path.startswith("docs/"):
        found = path.removeprefix("docs/")
    elif (ROOT / path).is_file():
        found = copy_of(path)
    else:
        return target
    return posixpath.relpath(found, posixpath.dirname(source) or ".")


def copy_of(path: str) -> str:
    """Where the site has a copy of a file of the project; `.txt`, so that a browser shows it."""
    return f"files/{path}.txt"
