"""Scans a dataset's folder into the tables images, queries and dropped."""

from cvsi.core import params, stage_runner
from cvsi.datasets.index import build


def index(dataset: str) -> None:
    """Scan the dataset's folder: cache/DATASET/index."""
    build(dataset, params.load())


if __name__ == "__main__":
    stage_runner.run(index)
