"""Scans a dataset's folder into the tables images, queries and dropped."""

from cvsi import memo, stage


def index(dataset: str) -> None:
    """Scan the dataset's folder: cache/DATASET/index."""
    place = memo.place_of(dataset)
    if memo.recall(dataset, place):
        return
    from cvsi import params  # half a second of imports, needed only when something changed
    from cvsi.indexing import build

    memo.remember(dataset, place, *build(dataset, params.load()))


if __name__ == "__main__":
    stage.run(index)
