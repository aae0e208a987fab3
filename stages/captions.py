"""Captions every image of a dataset with its captioner; each distinct image once."""

from cvsi import params, stage
from cvsi.captions import build


def captions(dataset: str) -> None:
    """Caption the dataset's images: cache/DATASET/captions."""
    build(dataset, params.load())


if __name__ == "__main__":
    stage.run(captions)
