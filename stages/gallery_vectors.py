"""Embeds every gallery image and its captions with a backbone."""

from cvsi.core import params, stage_runner
from cvsi.pipeline import vectors


def gallery_vectors(dataset: str, backbone: str) -> None:
    """Embed the dataset's gallery: cache/DATASET/BACKBONE/gallery_vectors."""
    vectors.write_gallery(dataset, backbone, params.load())


if __name__ == "__main__":
    stage_runner.run(gallery_vectors)
