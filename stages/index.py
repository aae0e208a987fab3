"""Scans a dataset's folder into the tables images, queries and dropped."""

from cvsi import stage
from cvsi.memo import recall


def index(dataset: str) -> None:
    """Scan the dataset's folder: cache/DATASET/index."""
    if recall(dataset):
        return
    from cvsi import params  # half a second of imports, needed only when something changed
    from cvsi.indexing import build

    build(dataset, params.load())


if __name__ == "__main__":
    stage.run(index)
