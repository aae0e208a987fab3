"""Shows a query's reference and each of its first images to a vision-language model, which answers yes or no."""

from cvsi.core import params, stage_runner
from cvsi.pipeline.verdicts import write


def verdicts(rerank: str) -> None:
    """Judge the first images of a rerank's run: cache/DATASET/BACKBONE/verdicts/RERANK."""
    write(rerank, params.load())


if __name__ == "__main__":
    stage_runner.run(verdicts)
