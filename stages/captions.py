"""Captions every image of a dataset with its captioner; each distinct image once."""

from cvsi.core import params, stage_runner
from cvsi.pipeline.captions import write


def captions(dataset: str) -> None:
    """Caption the dataset's images: cache/DATASET/captions."""
    write(dataset, params.load())


if __name__ == "__main__":
    stage_runner.run(captions)
