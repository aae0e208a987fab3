"""Scans a dataset's folder into the tables images, queries and dropped."""

from cvsi.core import stage_runner
from cvsi.datasets import index_cache


def index(dataset: str) -> None:
    """Scan the dataset's folder: cache/DATASET/index."""
    place = index_cache.place_of(dataset)
    if index_cache.recall(dataset, place):
        return
    from cvsi.core import params  # half a second of imports, needed only when something changed
    from cvsi.datasets.index import build

    index_cache.remember(dataset, place, *build(dataset, params.load()))


if __name__ == "__main__":
    stage_runner.run(index)
