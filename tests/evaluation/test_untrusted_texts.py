"""The report page of texts that contain HTML and templates: everything is escaped."""

from html.parser import HTMLParser

import polars as pl

from cvsi.core import params
from cvsi.pipeline import vectors
from tests.conftest import Workspace, write_queries
from tests.stage_inputs import write_index

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(2)\">{{ 7*7 }}&lt;"


class PageContent(HTMLParser):
    """The tags of a page and what of them could run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page_of_untrusted_texts_has_no_tag_of_theirs(toy: Workspace) -> None:
    folder = toy.path / "photos"
    names = [f"{HOSTILE.replace('/', '')}{number}.png" for number in range(2)]
    for name, old in zip(names, ("red", "green"), strict=True):
        (folder / f"{old}.png").rename(folder / name)
    write_queries(folder, {"reference": names[0], "instruction": HOSTILE, "targets": [names[1]]})
    toy.params(datasets__toy__editor__model=HOSTILE, datasets__toy__editor__engine="vllm")
    write_index()
    queries = pl.read_parquet("cache/toy/index/queries.parquet")
    queries.with_columns(aspects=pl.lit([HOSTILE])).write_parquet("cache/toy/index/queries.parquet")
    images = pl.read_parquet("cache/toy/index/images.parquet")
    edits = {"edited": pl.lit([HOSTILE]), "added": pl.lit(HOSTILE), "status": pl.lit(HOSTILE)}
    for stage, table in (
        ("captions", images.select("image_id", "digest", captions=pl.lit([HOSTILE]))),
        ("edits", queries.select("query_id", "split", **edits)),
    ):
        (toy.path / "cache/toy" / stage).mkdir()
        table.write_parquet(f"cache/toy/{stage}/part-00000.parquet")
    vectors.write_gallery("toy", "tiny", params.load())
    vectors.write_queries("toy", "tiny", params.load())
    for stage in ("scores", "report"):
        toy.run(stage, "toy", "tiny")
    page = (toy.path / "cache/toy/tiny/report/index.html").read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;alert(") >= 8 and "{{ 7*7 }}" in page
    content = PageContent(page)
    assert not content.tags & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}
    assert not [name for name in content.attributes if name.startswith("on")]
    own = ("data:image/", "explore.html")  # a link to the run's own explorer
    assert all(source.startswith(own) for source in content.sources)
