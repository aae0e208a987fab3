"""Captions to captions with `$` in place of their keyword spans, which phi's word replaces in training.

A span is a run of nouns and adjectives, as spaCy tags them. Tagging is the slow part, so each distinct caption is
tagged once and kept in the store.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError, cause
from cvsi.core.params import Compute, WordList
from cvsi.core.schema import STORED_MASKS
from cvsi.models.clip import TOKEN
from cvsi.models.model_id import content_digest
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

if TYPE_CHECKING:  # spaCy takes a second to import and is needed only when a caption is not tagged yet
    from spacy.language import Language
    from spacy.tokens import Doc

BLOCK = 8192  # captions
SCHEMA = {"key": pl.String, "text": pl.String}
KEYWORDS = frozenset(("NOUN", "PROPN", "ADJ"))
UNUSED = ("parser", "ner", "lemmatizer")  # parts of a pipeline that no part of speech depends on


def identify(spans: str | WordList) -> dict[str, Any]:
    """What decides the spans, for a recipe; raises CvsiError where the pipeline or the word list is not there."""
    if isinstance(spans, WordList):
        if not Path(spans.words).is_file():
            raise CvsiError(f"{spans.words}: no such word list; check the phi's spans in params.yaml")
        return {"code": CODE_VERSIONS["keyword_spans"], "words": content_digest(Path(spans.words))}
    try:
        return {"code": CODE_VERSIONS["keyword_spans"], "pipeline": spans, "version": metadata.version(spans)}
    except metadata.PackageNotFoundError:
        raise CvsiError(
            f"params.yaml: spaCy's pipeline '{spans}' is not installed; run: python -m spacy download {spans} "
            "(or give the phi's spans a word list, {words: FILE})"
        ) from None


def pipeline(spans: str | WordList) -> "Language":
    """The spaCy pipeline of that name, or a blank English one that tags a list's words, in any case, as nouns."""
    import spacy

    if not isinstance(spans, WordList):
        try:
            return spacy.load(spans, exclude=UNUSED)
        except Exception as error:  # spaCy raises many kinds for a broken pipeline, or a package that is none
            raise CvsiError(f"params.yaml: spaCy does not load the pipeline '{spans}': {cause(error)}") from None
    try:
        words = Path(spans.words).read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise CvsiError(f"{spans.words}: not UTF-8 text (byte {error.start:,}); write one keyword a line") from None
    language = spacy.blank("en")
    ruler: Any = language.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": word.lower()}] for word in words], {"POS": "NOUN"})
    return language


def mask(doc: "Doc") -> str:
    """A tagged caption with ` $ ` in place of each run of nouns and adjectives."""
    runs = groupby(doc, key=lambda word: word.pos_ in KEYWORDS)
    return "".join(f" {TOKEN} " if keyword else "".join(w.text_with_ws for w in run) for keyword, run in runs)


def masked(language: "Language", captions: Iterable[str]) -> list[str]:
    """Captions with their keyword spans masked, in order."""
    return [mask(doc) for doc in language.pipe(captions, batch_size=256)]


@dataclass(frozen=True)
class KeywordJob(RowJob):
    """Captions with their keyword spans masked, by the digest of the caption."""

    kind: ClassVar[str] = "keyword_spans"
    words: ClassVar[Words] = Words("caption", "to tag", "tagged")

    spans: str | WordList
    captions: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """`key` and `masked`."""
        return STORED_MASKS

    @property
    def block_rows(self) -> int:
        """A fixed number of captions."""
        return BLOCK

    @property
    def workers(self) -> int:
        """One: spaCy holds the interpreter's lock."""
        return 1

    def recipe(self) -> dict[str, Any]:
        """The pipeline or the word list that finds keywords."""
        return identify(self.spans)

    def wanted(self) -> pl.DataFrame:
        """Every caption: `key` and `text`."""
        return pl.DataFrame({"key": _keys(self.captions), "text": self.captions}, SCHEMA)

    def load(self, worker: int) -> BlockWorker:
        """Load the spaCy pipeline."""
        language = pipeline(self.spans)
        return BlockWorker(lambda block: pa.table({"key": block["key"], "masked": masked(language, block["text"])}))


def find(captions: pl.Series, spans: str | WordList, store: Store, compute: Compute) -> pl.Series:
    """Captions with their keyword spans masked, in order; those not in the store are tagged."""
    texts = tuple(captions)
    rows = compute_missing(KeywordJob(compute, store, spans, texts))
    return pl.Series(rows.get(pl.Series(_keys(texts), dtype=pl.String))["masked"], dtype=pl.String)


def _keys(captions: Iterable[str]) -> list[str]:
    return [digest(text) for text in captions]
