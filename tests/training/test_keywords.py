"""Keyword spans: runs of nouns and adjectives, as a spaCy pipeline or a word list tags them."""

from pathlib import Path
from random import Random

import polars as pl
import pytest
import spacy
from spacy.tokens import Doc

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute, WordList
from cvsi.store.rows import Store
from cvsi.training import keywords
from demo.texts import describe
from demo.world.scenes import draw_scene
from tests.imports import ROOT

FUNCTION_WORDS = set("a an and of on the with photo picture background is , $".split())
DEMO = WordList(words=str(ROOT / "demo" / "keywords.txt"))


@pytest.mark.parametrize(
    ("caption", "masked"),
    [
        ("a red circle and two small striped stars", "a $ and $"),
        ("Two Red Stars, a blue ring on the left.", "$ , a $ on the $ ."),
        ("on a pink background", "on a $ background"),
        ("nothing of that", "nothing of that"),
        ("red", "$"),
        ("a redder circles-star", "a redder $ - $"),
        ("", ""),
    ],
)
def test_spans_of_known_sentences_by_the_word_list(caption: str, masked: str) -> None:
    (text,) = keywords.masked(keywords.pipeline(DEMO), [caption])
    assert " ".join(text.split()) == masked


def test_nouns_proper_nouns_and_adjectives_make_a_span_and_nothing_else_does() -> None:
    words = "the happy Rex dog quickly chased seven old cats".split()
    tags = ["DET", "ADJ", "PROPN", "NOUN", "ADV", "VERB", "NUM", "ADJ", "NOUN"]
    doc = Doc(spacy.blank("en").vocab, words=words, pos=tags)
    assert " ".join(keywords.mask(doc).split()) == "the $ quickly chased seven $"


def test_the_demos_word_list_has_every_word_of_a_description_but_function_words() -> None:
    random = Random(5)
    texts = [describe(draw_scene(random, "training"), random) for _ in range(300)]
    left = {word for text in keywords.masked(keywords.pipeline(DEMO), texts) for word in text.split()}
    assert "$" in left and left <= FUNCTION_WORDS


def test_a_caption_is_tagged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, compute = Store(tmp_path / "store"), Compute()
    captions = pl.Series(["a red ring", "of it", "a red ring"])
    first = keywords.find(captions, DEMO, store, compute)
    assert "3 captions (2 distinct): 0 in the store, 2 to tag" in capsys.readouterr().out
    assert [" ".join(text.split()) for text in first] == ["a $", "of it", "a $"]
    assert keywords.find(captions, DEMO, store, compute).equals(first)
    assert "2 in the store, 0 to tag" in capsys.readouterr().out
    other = tmp_path / "words.txt"
    other.write_text("it\n", encoding="utf-8")
    changed = keywords.find(captions, WordList(words=str(other)), store, compute)
    assert [" ".join(text.split()) for text in changed] == ["a red ring", "of $", "a red ring"]


def test_a_missing_or_broken_pipeline_is_one_line() -> None:
    with pytest.raises(CvsiError, match="is not installed; run: python -m spacy download en_no_sm"):
        keywords.identify("en_no_sm")
    with pytest.raises(CvsiError, match="no such word list"):
        keywords.identify(WordList(words="nowhere.txt"))
    assert keywords.identify("numpy")["version"]
    with pytest.raises(CvsiError, match="spaCy does not load the pipeline 'numpy'") as error:
        keywords.pipeline("numpy")
    assert "\n" not in str(error.value)
