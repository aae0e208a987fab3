"""The components of query and gallery vectors: which texts or images each uses, and how they become one vector.

A component is one column of the tables `query_vectors` or `gallery_vectors`, and one weight of a fusion. To add one,
write a class or an instance below and one line in its registry (or an entry point); nothing else lists components.

The rows that a query component gets have the columns of `queries.parquet`, and of the reference image: `path`,
`digest`, `captions`; of the edit: `edited`, `added`. A gallery component gets `image_id`, `path`, `digest`, `captions`.
Where queries have a second reference image, `captions` are those of both, and `second_digest` is its file (null without
one): what a component makes from the image is then the mean of both unit vectors, scaled to unit length.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from cvsi.core.registry import Registry
from cvsi.models.clip import template
from cvsi.pipeline.embeddings import Embeddings
from cvsi.pipeline.second_reference import mean_of_references

COMPUTED = frozenset({"captions", "edited", "added"})


class Component:
    """One component; by default it encodes neither texts nor sentences with a pseudo token.

    `uses_phi` is one that a backbone without phi leaves out, `composes` one that needs a backbone which embeds the
    reference image and the instruction together.
    """

    uses_phi = False
    composes = False

    @property
    def reads(self) -> frozenset[str]:
        """The columns it uses that models compute; a new query computes no other. All of them unless it says less."""
        return COMPUTED

    def texts(self, rows: pl.DataFrame) -> pl.Series:
        """All texts that its vectors are made from, in order."""
        return pl.Series([], dtype=pl.String)

    def sentences(self, rows: pl.DataFrame) -> pl.Series:
        """Where it uses phi: for each row, the sentence whose first `$` stands for the image."""
        return pl.Series([], dtype=pl.String)

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """One vector per row, [rows, d] float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class MeanOfTexts(Component):
    """The mean of the unit vectors of a list of texts; zeros for an empty list."""

    column: str

    @property
    def reads(self) -> frozenset[str]:
        """The lists."""
        return COMPUTED & {self.column}

    def texts(self, rows: pl.DataFrame) -> pl.Series:
        """The lists' texts."""
        return rows[self.column].explode()

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """The means."""
        import torch  # here and below: seconds of imports, needed only where vectors are read

        lists = rows[self.column]
        texts = lists.to_frame("text").with_row_index("row").explode("text").drop_nulls("text")
        vectors = torch.from_numpy(embeddings.texts(texts["text"]))
        index = torch.from_numpy(texts["row"].to_numpy().astype(np.int64))
        total = torch.zeros(len(lists), vectors.shape[1]).index_add_(0, index, vectors)
        counts = torch.from_numpy(lists.list.len().to_numpy().astype(np.float32)).clamp(min=1)
        return (total / counts.unsqueeze(1)).numpy()


@dataclass(frozen=True)
class OneText(Component):
    """The unit vector of a text."""

    column: str

    @property
    def reads(self) -> frozenset[str]:
        """The text."""
        return COMPUTED & {self.column}

    def texts(self, rows: pl.DataFrame) -> pl.Series:
        """The texts."""
        return rows[self.column]

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """The texts' vectors."""
        return embeddings.texts(rows[self.column])


class ImageVector(Component):
    """The image embedding, scaled to unit length."""

    @property
    def reads(self) -> frozenset[str]:
        """The image alone."""
        return frozenset()

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """The images' unit vectors."""
        return mean_of_references(rows, lambda chosen: unit(embeddings.images(chosen["digest"])))


class PseudoToken(Component):
    """The instruction in a sentence whose `$` is phi's word for the reference image."""

    uses_phi = True

    @property
    def reads(self) -> frozenset[str]:
        """The objects that the sentence names."""
        return frozenset({"added"})

    def sentences(self, rows: pl.DataFrame) -> pl.Series:
        """The sentences of the method, from the instruction and the added objects."""
        sentences = [template(*row) for row in rows.select("instruction", "added").iter_rows()]
        return pl.Series(sentences, dtype=pl.String)

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """The sentences' vectors."""
        return mean_of_references(
            rows, lambda chosen: embeddings.pseudo_tokens(chosen["digest"], self.sentences(chosen))
        )


class Composed(Component):
    """The reference image and the instruction in one vector, made by the backbone from both together."""

    composes = True

    @property
    def reads(self) -> frozenset[str]:
        """The image and the instruction alone."""
        return frozenset()

    def vectors(self, rows: pl.DataFrame, embeddings: Embeddings) -> np.ndarray:
        """The composed queries' vectors."""
        return mean_of_references(
            rows, lambda chosen: embeddings.composed_queries(chosen["digest"], chosen["instruction"])
        )


@dataclass(frozen=True)
class Role(MeanOfTexts):
    """The mean of the unit vectors of a reader's texts of one role; zeros for a query without one.

    Roles are no entries of the registry: each dataset's reader has its own.
    """

    @property
    def reads(self) -> frozenset[str]:
        """The role's texts."""
        return frozenset({self.column})


EDITED = MeanOfTexts("edited")
PSEUDO = PseudoToken()
REFERENCE = ImageVector()
SOURCE = MeanOfTexts("captions")
INSTRUCTION = OneText("instruction")
COMPOSED = Composed()
IMAGE = ImageVector()
CAPTION = MeanOfTexts("captions")

QUERY_COMPONENTS: Registry[Component] = Registry(
    "query component",
    "cvsi.query_components",
    {
        "edited": "cvsi.pipeline.components:EDITED",
        "pseudo": "cvsi.pipeline.components:PSEUDO",
        "reference": "cvsi.pipeline.components:REFERENCE",
        "source": "cvsi.pipeline.components:SOURCE",
        "instruction": "cvsi.pipeline.components:INSTRUCTION",
        "composed": "cvsi.pipeline.components:COMPOSED",
    },
)
GALLERY_COMPONENTS: Registry[Component] = Registry(
    "gallery component",
    "cvsi.gallery_components",
    {
        "image": "cvsi.pipeline.components:IMAGE",
        "caption": "cvsi.pipeline.components:CAPTION",
    },
)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1).numpy()
