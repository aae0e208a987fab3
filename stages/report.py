"""Makes the report: one page for human readers, and the methods of the table with their values per query."""

from cvsi.core import params, stage_runner
from cvsi.evaluation.report.build import build


def report(dataset: str, backbone: str) -> None:
    """Report on a dataset with a backbone: cache/DATASET/BACKBONE/report."""
    build(dataset, backbone, params.load())


if __name__ == "__main__":
    stage_runner.run(report)
