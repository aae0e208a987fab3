"""Embeds the five parts of every query with a backbone and its phi."""

from cvsi.core import params, stage_runner
from cvsi.pipeline import vectors


def query_vectors(dataset: str, backbone: str) -> None:
    """Embed the dataset's queries: cache/DATASET/BACKBONE/query_vectors."""
    vectors.write_queries(dataset, backbone, params.load())


if __name__ == "__main__":
    stage_runner.run(query_vectors)
