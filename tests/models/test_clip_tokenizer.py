"""Token ids word by word: the same as open_clip's own, for every text."""

import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cvsi.models.clip_tokenizer import Tokenizer

LIBRARY = open_clip.get_tokenizer("ViT-B-32")
CONTEXT = 77
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=400)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(st.lists(PRINTABLE | ANY, max_size=6))
@example(["", " ", "!", "wow!! it's <end_of_text> a $ photo", "a &lt;b&gt; c", "a &amp;lt; b", "don't DON'T 'tis"])
@example(
    [
        "dog " * 100,
        "x" * 500,
        "\x1b[31mred\x1b[0m",
        "a\tb\nc",
        "caf\u00e9 \u201cquoted\u201d",
        "1,234.5 u.s.a. e-mail@x.y",
    ]
)
def test_token_ids_are_those_of_open_clip(texts: list[str]) -> None:
    ids = Tokenizer(LIBRARY, CONTEXT)(texts)
    assert ids.shape == (len(texts), CONTEXT) and ids.dtype == torch.int64
    if texts:
        assert torch.equal(ids, LIBRARY(texts, context_length=CONTEXT))


def test_each_word_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = open_clip.tokenizer.SimpleTokenizer()
    encoded, encode = list[str](), library.encode

    def counted(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)  # type: ignore[no-any-return]

    monkeypatch.setattr(library, "encode", counted)
    tokenizer = Tokenizer(library, CONTEXT)
    tokenizer(["a red dog", "A red cat"])
    tokenizer(["a cat", "a bird"])
    assert sorted(encoded) == ["a", "bird", "cat", "dog", "red"]


def test_another_kind_of_tokenizer_gets_whole_texts() -> None:
    canonical = open_clip.tokenizer.SimpleTokenizer(clean="canonicalize")
    tokenizer = Tokenizer(canonical, CONTEXT)
    assert not tokenizer.by_words
    assert torch.equal(tokenizer(["a red_dog, barking!"]), canonical(["a red dog barking"], context_length=CONTEXT))
