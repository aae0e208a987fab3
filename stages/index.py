"""Scans a dataset's folder into the tables images, queries and dropped."""

from cvsi import params, stage
from cvsi.indexing import build


def index(dataset: str) -> None:
    """Scan the dataset's folder: cache/DATASET/index."""
    build(dataset, params.load())


if __name__ == "__main__":
    stage.run(index)
