"""Rewrites the captions of every query's reference by its instruction, with the dataset's language model."""

from cvsi.core import params, stage_runner
from cvsi.pipeline.edits import write


def edits(dataset: str) -> None:
    """Edit the dataset's queries: cache/DATASET/edits."""
    write(dataset, params.load())


if __name__ == "__main__":
    stage_runner.run(edits)
