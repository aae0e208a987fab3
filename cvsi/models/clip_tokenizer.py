"""Texts to CLIP's token ids as open_clip makes them, word by word: each distinct word is encoded once.

open_clip cleans and splits every text anew in Python, which takes longer than a GPU takes to embed it. A plain text
(printable ASCII without `&`) needs no cleaning but lower case, and no token of CLIP's spans a blank.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

PLAIN = "^[ -%'-~]*$"
IDS = pl.List(pl.Int64)


class Tokenizer:
    """One model's tokenizer; remembers the words it has seen."""

    def __init__(self, library: Any, context: int) -> None:
        """Wrap open_clip's tokenizer for texts of `context` positions; of a foreign kind it does all by itself."""
        from open_clip.tokenizer import SimpleTokenizer, get_clean_fn  # seconds, needed only when a row is missing

        self.library, self.context = library, context
        own = isinstance(library, SimpleTokenizer) and library.reduction_fn is None
        self.by_words = own and library.clean_fn is get_clean_fn("lower")
        self._known = pl.DataFrame(schema={"word": pl.String, "ids": IDS})

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts to token ids [n, context] int64, cut to the context with the end token kept."""
        frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
        plain = frame["text"].str.contains(PLAIN) & self.by_words
        tokens = torch.zeros(frame.height, self.context, dtype=torch.int64)
        rows = pl.arg_where(plain, eager=True).to_torch().long()
        tokens[rows] = self._plain(frame.filter(plain)["text"])
        other = frame.filter(~plain)["text"].to_list()
        if other:
            rows = pl.arg_where(~plain, eager=True).to_torch().long()
            tokens[rows] = self.library(other, context_length=self.context)
        return tokens

    def _plain(self, texts: pl.Series) -> Tensor:
        words = pl.DataFrame({"word": texts.str.to_lowercase().str.split(" ")}).with_row_index("row").explode("word")
        words = words.filter(pl.col("word") != "")
        ids = words.join(self._encoded(words["word"].unique()), on="word", how="left", maintain_order="left")
        ids = ids.select("row", "ids").explode("ids").with_columns(position=pl.int_range(1, pl.len() + 1).over("row"))
        ids = ids.filter(pl.col("position") < self.context - 1)
        tokens = torch.zeros(texts.len(), self.context, dtype=torch.int64)
        tokens[:, 0] = self.library.sot_token_id
        rows = ids["row"].to_torch().long()
        tokens[rows, ids["position"].to_torch()] = ids["ids"].to_torch()
        lengths = torch.bincount(rows, minlength=texts.len())
        tokens[torch.arange(texts.len()), lengths + 1] = self.library.eot_token_id
        return tokens

    def _encoded(self, words: pl.Series) -> pl.DataFrame:
        """The token ids of these words and of those known before."""
        known = self._known  # threads may look up at once; what one forgets is encoded again
        new = words.filter(~words.is_in(known["word"].implode())).to_list()
        if new:
            ids = pl.Series("ids", [self.library.encode(word) for word in new], dtype=IDS)
            known = self._known = pl.concat([known, pl.DataFrame({"word": new}).with_columns(ids)])
        return known
