"""Ranks the gallery for every query by the dataset's fusion, and evaluates."""

from cvsi.core import params, stage_runner
from cvsi.evaluation.scores import build


def scores(dataset: str, backbone: str) -> None:
    """Score a dataset with a backbone: cache/DATASET/BACKBONE/scores."""
    build(dataset, backbone, params.load())


if __name__ == "__main__":
    stage_runner.run(scores)
