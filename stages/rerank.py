"""Orders the first images of every query by a judge's verdicts, and evaluates."""

from cvsi.core import params, stage_runner
from cvsi.evaluation.rerank import build


def rerank(name: str) -> None:
    """Order a run's first images again: cache/DATASET/BACKBONE/rerank/NAME."""
    build(name, params.load())


if __name__ == "__main__":
    stage_runner.run(rerank)
